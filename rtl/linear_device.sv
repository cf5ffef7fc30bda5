// A linear step as the exported testbench drives it: takes ROWS rows of LENGTH codes, then multiplies and
// accumulates one term a clock in a mac_lane, and gives INT8 codes by `requantize`, or binary16 (HALF = 1).
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
    input                 x_valid,
    input      [7:0]      x_data,
    output reg            out_valid,
    output reg [WORD-1:0] out_data
);
`include "float.svh"
    reg [7:0] x [0:ROWS*LENGTH-1];
    reg [7:0] weight [0:OUTPUTS*LENGTH-1];
    reg [31:0] multiplier [0:FACTORS-1];
    reg [31:0] shift [0:FACTORS-1];
    initial begin
        $readmemh({DIR, "weight.hex"}, weight);
        $readmemh({DIR, "multiplier.hex"}, multiplier);
        $readmemh({DIR, "shift.hex"}, shift);
    end
    integer filled = 0, t = 0, n = 0, k = 0;
    reg clear = 1;
    wire busy = filled == ROWS*LENGTH && t < ROWS;
    wire valid = busy && !clear && k < LENGTH;
    wire [7:0] a = x[valid ? t*LENGTH + k : 0];
    wire [7:0] b = weight[valid ? n*LENGTH + k : 0];
    wire signed [ACC-1:0] acc;
    mac_lane #(.ACC(ACC)) mac (.clk(clk), .clear(clear), .valid(valid), .a(a), .b(b), .acc(acc));
    wire [31:0] m = multiplier[FACTORS == 1 ? 0 : n];
    wire [31:0] s = shift[FACTORS == 1 ? 0 : n];
    wire signed [7:0] q;
    requantize #(.ACC(ACC)) to_codes (.acc(acc), .multiplier(m), .shift(s[5:0]), .q(q));
    always @(posedge clk) begin
        out_valid <= 0;
        if (rst) begin
            filled <= 0; t <= 0; n <= 0; k <= 0; clear <= 1;
        end else begin
            if (x_valid) begin
                x[filled] <= x_data;
                filled <= filled + 1;
            end
            if (busy) begin
                clear <= 0;
                if (valid) k <= k + 1;
                else if (!clear) begin
                    out_valid <= 1;
                    if (HALF != 0)
                        out_data <= to_f16(single($itor(acc) * $itor($signed(m)) / (2.0 ** $itor(s))));
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
