// Accumulator to INT8: multiply by an integer, shift right with ties up, saturate.
// docs/asic.md, `requant`: scaling "fixed", one rounding, rounding "nearest-ties-up".
module requantize #(
    parameter ACC = 32
) (
    input  signed [ACC-1:0] acc,
    input  signed [31:0]    multiplier,
    input         [5:0]     shift,
    output signed [7:0]     q
);
    wire signed [ACC+31:0] product = acc * multiplier;
    wire signed [ACC+32:0] half = (shift == 0) ? 0 : ({{(ACC+32){1'b0}}, 1'b1} << (shift - 1));
    wire signed [ACC+32:0] rounded = (product + half) >>> shift;
    assign q = (rounded > 127) ? 8'sd127 : (rounded < -128) ? -8'sd128 : rounded[7:0];
endmodule
