// hadamard_butterfly, stage by stage, and the c x c factor, on the vectors of the Hadamard step:
// input -> rotated.
`timescale 1ns/1ps
module tb_hadamard;
    parameter ROWS = 1;
    parameter SIZE = 2;     // n = BASE * 2^k
    parameter BASE = 1;
    parameter STAGES = 1;
    localparam BLOCK = SIZE / BASE;
    parameter BITS = 16;    // of the input
    parameter REGISTER = 25;
    reg signed [BITS-1:0] in [0:ROWS*SIZE-1];
    reg signed [REGISTER-1:0] rotated [0:ROWS*SIZE-1];
    reg [31:0] shift [0:STAGES-1];
    reg [7:0] signs [0:BASE*BASE-1];
    reg signed [31:0] row [0:SIZE-1];
    reg signed [31:0] mixed [0:SIZE-1];
    reg signed [31:0] a, b, total;
    reg [5:0] s;
    wire signed [31:0] sum, difference;
    integer t, i, j, k, stride, stage, errors;
    hadamard_butterfly #(.WIDTH(32)) dut (.a(a), .b(b), .shift(s), .sum(sum), .difference(difference));
    initial begin
        $readmemh("input.hex", in);
        $readmemh("rotated.hex", rotated);
        $readmemh("stage_shift.hex", shift);
        $readmemh("base.hex", signs);
        errors = 0;
        for (t = 0; t < ROWS; t = t + 1) begin
            for (i = 0; i < SIZE; i = i + 1) row[i] = in[t*SIZE + i];
            stage = 0;
            for (stride = 1; stride < BLOCK; stride = stride * 2) begin
                s = shift[stage][5:0];
                for (i = 0; i < SIZE; i = i + 1)
                    if ((i / stride) % 2 == 0) begin
                        a = row[i]; b = row[i + stride];
                        #1 row[i] = sum; row[i + stride] = difference;
                    end
                stage = stage + 1;
            end
            if (BASE > 1) begin
                for (i = 0; i < SIZE; i = i + 1) begin
                    total = 0;
                    for (j = 0; j < BASE; j = j + 1) begin
                        k = j*BLOCK + i % BLOCK;
                        total = signs[(i / BLOCK)*BASE + j][7] ? total - row[k] : total + row[k];
                    end
                    if (shift[stage] != 0) total = (total + (32'sd1 <<< (shift[stage] - 1))) >>> shift[stage];
                    mixed[i] = total;
                end
                for (i = 0; i < SIZE; i = i + 1) row[i] = mixed[i];
            end
            for (i = 0; i < SIZE; i = i + 1)
                if ((row[i] ^ row[i]) !== 0 || row[i] !== rotated[t*SIZE + i]) begin
                    if (errors < 10) $display("rotated[%0d]: expected %h, found %h", t*SIZE + i, rotated[t*SIZE + i], row[i]);
                    errors = errors + 1;
                end
        end
        if (errors == 0) $display("PASS hadamard: %0d words", ROWS*SIZE);
        else begin
            $display("FAIL hadamard: %0d of %0d words", errors, ROWS*SIZE);
            $fatal(1);
        end
        $finish;
    end
endmodule
