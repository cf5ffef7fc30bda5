// requantize on the vectors of a linear step: sum, multiplier, shift -> out.
`timescale 1ns/1ps
module tb_requantize;
    parameter DEPTH = 1;    // words of sum and out
    parameter COLUMNS = 1;  // outputs of a row
    parameter FACTORS = 1;  // 1, or one for each column
    parameter ACC = 28;
    reg signed [ACC-1:0] sum [0:DEPTH-1];
    reg [7:0] out [0:DEPTH-1];
    reg [15:0] multiplier [0:FACTORS-1];
    reg [6:0] shift [0:FACTORS-1];
    reg signed [ACC-1:0] acc;
    reg signed [31:0] m;
    reg [5:0] s;
    wire signed [7:0] q;
    integer i, f, errors;
    requantize #(.ACC(ACC)) dut (.acc(acc), .multiplier(m), .shift(s), .q(q));
    initial begin
        $readmemh("sum.hex", sum);
        $readmemh("out.hex", out);
        $readmemh("multiplier.hex", multiplier);
        $readmemh("shift.hex", shift);
        errors = 0;
        for (i = 0; i < DEPTH; i = i + 1) begin
            f = (FACTORS == 1) ? 0 : i % COLUMNS;
            acc = sum[i]; m = multiplier[f]; s = shift[f][5:0];
            #1;
            if ((q ^ q) !== 0 || q !== out[i]) begin
                if (errors < 10) $display("out[%0d]: expected %h, found %h", i, out[i], q);
                errors = errors + 1;
            end
        end
        if (errors == 0) $display("PASS requantize: %0d words", DEPTH);
        else begin
            $display("FAIL requantize: %0d of %0d words", errors, DEPTH);
            $fatal(1);
        end
        $finish;
    end
endmodule
