// The integer Hadamard rotation: a row of binary16 comes in, is rounded to the input's grid, goes through
// hadamard_butterfly stage by stage (and the BASE x BASE factor), and leaves as codes.
module hadamard_device #(
    parameter DIR = "./",
    parameter ROWS = 1,
    parameter SIZE = 2,
    parameter BASE = 1,
    parameter STAGES = 1,
    parameter BITS = 16,
    parameter FRACTION = 4,
    parameter [31:0] SCALE = 0              // f32 of the output
) (
    input             clk,
    input             rst,
    input             y_valid,
    output            y_ready,
    input             y_last,
    input      [15:0] y_data,
    output reg        out_valid,
    input             out_ready,
    output reg        out_last,
    output reg [7:0] out_data
);
`include "float.svh"
    localparam BLOCK = SIZE / BASE;
    reg [31:0] shift_of [0:STAGES-1];
    reg [7:0] signs [0:BASE*BASE-1];
    reg [15:0] multiplier [0:0];
    reg [6:0] shift [0:0];
    initial begin
        $readmemh({DIR, "stage_shift.hex"}, shift_of);
        $readmemh({DIR, "base.hex"}, signs);
        $readmemh({DIR, "multiplier.hex"}, multiplier);
        $readmemh({DIR, "shift.hex"}, shift);
    end
    reg signed [31:0] row [0:SIZE-1];
    reg signed [31:0] mixed [0:SIZE-1];
    reg [7:0] codes [0:ROWS*SIZE-1];
    reg signed [31:0] a, b, total;
    integer at = 0, done = 0, out = 0, i, j, k, stride, stage;
    reg closed = 0;
    assign y_ready = !closed;
    function automatic signed [31:0] halved(input signed [31:0] v, input [31:0] by);
        halved = (by == 0) ? v : (v + (32'sd1 <<< (by - 1))) >>> by;
    endfunction
    function automatic signed [7:0] code(input signed [31:0] v);
        reg signed [63:0] rounded;
        begin
            rounded = $signed({{32{v[31]}}, v}) * $signed({48'd0, multiplier[0]});
            if (shift[0] != 0) rounded = (rounded + (64'sd1 <<< (shift[0] - 1))) >>> shift[0];
            code = (rounded > 127) ? 8'sd127 : (rounded < -128) ? -8'sd128 : rounded[7:0];
        end
    endfunction
    function automatic signed [31:0] on_grid(input [15:0] y);
        real units;
        integer top;
        begin
            top = 1 << (BITS - 1);
            units = from_f16(y) / (from_f32(SCALE) / (2.0 ** $itor(FRACTION)));
            if (units >= $itor(top)) on_grid = top - 1;
            else if (units <= -$itor(top)) on_grid = -top;
            else begin
                on_grid = nearest(units, 0);
                if (on_grid > top - 1) on_grid = top - 1;
            end
        end
    endfunction
    always @(posedge clk) begin
        if (rst) begin
            at <= 0; done <= 0; out <= 0; closed <= 0; out_valid <= 0;
        end else begin
            if (y_valid && y_ready) begin
                row[at] = on_grid(y_data);
                closed <= y_last;
                at <= (at == SIZE - 1) ? 0 : at + 1;
                if (at == SIZE - 1) begin
                    stage = 0;
                    for (stride = 1; stride < BLOCK; stride = stride * 2) begin
                        for (i = 0; i < SIZE; i = i + 1)
                            if ((i / stride) % 2 == 0) begin
                                a = row[i];
                                b = row[i + stride];
                                row[i] = halved(a + b, shift_of[stage]);
                                row[i + stride] = halved(a - b, shift_of[stage]);
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
                            mixed[i] = halved(total, shift_of[stage]);
                        end
                        for (i = 0; i < SIZE; i = i + 1) row[i] = mixed[i];
                    end
                    for (i = 0; i < SIZE; i = i + 1) codes[done*SIZE + i] = code(row[i]);
                    done <= done + 1;
                end
            end
            if (!out_valid || out_ready) begin
                out_valid <= out < done*SIZE;
                out_last <= closed && out == done*SIZE - 1;
                out_data <= codes[out];
                if (out < done*SIZE) out <= out + 1;
            end
        end
    end
endmodule
