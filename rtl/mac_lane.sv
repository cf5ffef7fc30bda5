// One multiply-accumulate lane: INT8 times INT8 into a saturating register, one term a clock.
// docs/asic.md, `accumulator`: overflow "saturate".
module mac_lane #(
    parameter ACC = 28
) (
    input                        clk,
    input                        clear,
    input                        valid,
    input  signed [7:0]          a,
    input  signed [7:0]          b,
    output reg signed [ACC-1:0]  acc
);
    localparam signed [ACC:0] MAX = {2'b00, {(ACC-1){1'b1}}};
    localparam signed [ACC:0] MIN = {2'b11, {(ACC-1){1'b0}}};
    wire signed [15:0] product = a * b;
    wire signed [ACC:0] sum = acc + product;
    always @(posedge clk)
        if (clear) acc <= 0;
        else if (valid) acc <= (sum > MAX) ? MAX[ACC-1:0] : (sum < MIN) ? MIN[ACC-1:0] : sum[ACC-1:0];
endmodule
