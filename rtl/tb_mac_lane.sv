// mac_lane on the vectors of a linear step: x, weight -> sum.
`timescale 1ns/1ps
module tb_mac_lane;
    parameter ROWS = 1;     // tokens
    parameter OUTPUTS = 1;
    parameter LENGTH = 1;   // terms of a sum
    parameter ACC = 28;
    reg [7:0] x [0:ROWS*LENGTH-1];
    reg [7:0] weight [0:OUTPUTS*LENGTH-1];
    reg signed [ACC-1:0] sum [0:ROWS*OUTPUTS-1];
    reg clk = 0, clear = 0, valid = 0;
    reg signed [7:0] a, b;
    wire signed [ACC-1:0] acc;
    integer t, n, k, errors;
    mac_lane #(.ACC(ACC)) dut (.clk(clk), .clear(clear), .valid(valid), .a(a), .b(b), .acc(acc));
    task tick; begin #1 clk = 1; #1 clk = 0; end endtask
    initial begin
        $readmemh("x.hex", x);
        $readmemh("weight.hex", weight);
        $readmemh("sum.hex", sum);
        errors = 0;
        for (t = 0; t < ROWS; t = t + 1)
            for (n = 0; n < OUTPUTS; n = n + 1) begin
                clear = 1; valid = 0; tick; clear = 0; valid = 1;
                for (k = 0; k < LENGTH; k = k + 1) begin
                    a = x[t*LENGTH + k]; b = weight[n*LENGTH + k]; tick;
                end
                if ((acc ^ acc) !== 0 || acc !== sum[t*OUTPUTS + n]) begin
                    if (errors < 10) $display("sum[%0d]: expected %h, found %h", t*OUTPUTS + n, sum[t*OUTPUTS + n], acc);
                    errors = errors + 1;
                end
            end
        if (errors == 0) $display("PASS mac_lane: %0d words", ROWS*OUTPUTS);
        else begin
            $display("FAIL mac_lane: %0d of %0d words", errors, ROWS*OUTPUTS);
            $fatal(1);
        end
        $finish;
    end
endmodule
