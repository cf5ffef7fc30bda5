// One state of the selective scan, one token (docs/asic.md, the fixed-point scan): decay from exp's table,
// drive by an integer factor, a saturating register of STATE bits.
module scan_lane #(
    parameter EXP_FILE = "exp_table.hex",
    parameter STATE = 16
) (
    input  signed [31:0]      alpha,        // -A, 12 bits behind the point
    input  signed [31:0]      delta,        // the time step, 16 bits behind the point
    input  signed [7:0]       b,
    input  signed [7:0]       u,
    input  signed [31:0]      multiplier,   // of the drive
    input         [5:0]       shift,
    input  signed [STATE-1:0] x,
    output signed [STATE-1:0] x_next
);
    // exp's input has 11 bits behind the point: 12 + 16 - 11 = 17 go.
    wire signed [63:0] exponent = (-(alpha * delta) + (64'sd1 << 16)) >>> 17;
    wire signed [15:0] fitted = (exponent < -64'sd32768) ? -16'sd32768
                              : (exponent > 64'sd32767) ? 16'sd32767 : exponent[15:0];
    wire signed [31:0] a;
    function_table #(.FILE(EXP_FILE), .LOW(-32768), .HIGH(0), .WIDTH(7), .EXP(1), .OUTPUT_FRACTION(16), .SHIFT(5),
        .WORD(17))
        decay (.x(fitted), .y(a));
    wire signed [47:0] driven = b * (delta * u);
    wire signed [63:0] drive;
    requantize_wide #(.ACC(48)) to_state (.acc(driven), .multiplier(multiplier), .shift(shift), .integer_out(drive));
    wire signed [63:0] kept = (a * x + 64'sd32768) >>> 16;
    wire signed [63:0] sum = kept + drive;
    localparam signed [63:0] MAX = (64'sd1 << (STATE - 1)) - 64'sd1;
    localparam signed [63:0] MIN = -(64'sd1 << (STATE - 1));
    assign x_next = (sum > MAX) ? MAX[STATE-1:0] : (sum < MIN) ? MIN[STATE-1:0] : sum[STATE-1:0];
endmodule
