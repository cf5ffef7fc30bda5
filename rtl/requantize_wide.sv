// An integer times an integer factor, shifted right with ties up: docs/asic.md, `requant`, before the result
// is made to fit.
module requantize_wide #(
    parameter ACC = 32
) (
    input  signed [ACC-1:0] acc,
    input  signed [31:0]    multiplier,
    input         [5:0]     shift,
    output signed [63:0]    integer_out
);
    wire signed [95:0] product = acc * multiplier;
    wire signed [95:0] half = (shift == 0) ? 96'sd0 : (96'sd1 << (shift - 1));
    wire signed [95:0] rounded = (product + half) >>> shift;
    assign integer_out = rounded[63:0];
endmodule
