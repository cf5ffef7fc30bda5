// A linear step as the exported testbench drives it: takes rows of LENGTH codes (ROWS at most) up to the last word,
// then multiplies and accumulates one term a clock in a mac_lane, and gives INT8 codes by `requantize`, or binary16 (HALF = 1).
module linear_device #(
    parameter DIR = "./",
    parameter ROWS = 1,
    parameter LENGTH = 1,
    parameter OUTPUTS = 1,
    parameter FACTORS = 1,
    parameter ACC = 28,
    parameter HALF = 0,
    parameter WORD = 8
) (
    input                 clk,
    input                 rst,
    input             x_valid,
    output            x_ready,
    input             x_last,
    input      [7:0] x_data,
    output reg        out_valid,
    input             out_ready,
    output reg        out_last,
    output reg [WORD-1:0] out_data
);
`include "float.svh"
    reg [7:0] x [0:ROWS*LENGTH-1];
    reg [7:0] weight [0:OUTPUTS*LENGTH-1];
    reg [15:0] multiplier [0:FACTORS-1];
    reg [6:0] shift [0:FACTORS-1];
    initial begin
        $readmemh({DIR, "weight.hex"}, weight);
        $readmemh({DIR, "multiplier.hex"}, multiplier);
        $readmemh({DIR, "shift.hex"}, shift);
    end
    integer filled = 0, t = 0, n = 0, k = 0;
    reg clear = 1, closed = 0;
    wire busy = closed && t*LENGTH < filled;
    assign x_ready = !closed;
    wire valid = busy && !clear && k < LENGTH;
    wire [7:0] a = x[valid ? t*LENGTH + k : 0];
    wire [7:0] b = weight[valid ? n*LENGTH + k : 0];
    wire signed [ACC-1:0] acc;
    mac_lane #(.ACC(ACC)) mac (.clk(clk), .clear(clear), .valid(valid), .a(a), .b(b), .acc(acc));
    wire signed [31:0] m = {16'd0, multiplier[FACTORS == 1 ? 0 : n]};
    wire [6:0] s = shift[FACTORS == 1 ? 0 : n];
    wire signed [7:0] q;
    requantize #(.ACC(ACC)) to_codes (.acc(acc), .multiplier(m), .shift(s[5:0]), .q(q));
    always @(posedge clk) begin
        if (rst) begin
            filled <= 0; t <= 0; n <= 0; k <= 0; clear <= 1; closed <= 0; out_valid <= 0;
        end else begin
            if (x_valid && x_ready) begin
                x[filled] <= x_data;
                filled <= filled + 1;
                closed <= x_last;
            end
            if (out_valid && out_ready) out_valid <= 0;
            if (busy && !(out_valid && !out_ready)) begin
                clear <= 0;
                if (valid) k <= k + 1;
                else if (!clear) begin
                    out_valid <= 1;
                    out_last <= n == OUTPUTS - 1 && (t + 1)*LENGTH == filled;
                    if (HALF != 0)
                        out_data <= to_f16(single($itor(acc) * $itor(m) / (2.0 ** $itor(s))));
                    else
                        out_data <= q;
                    k <= 0;
                    clear <= 1;
                    n <= (n == OUTPUTS - 1) ? 0 : n + 1;
                    if (n == OUTPUTS - 1) t <= t + 1;
                end
            end
        end
    end
endmodule
