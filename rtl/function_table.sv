// A function's table with straight lines between its entries (docs/asic.md, `nonlinearity`): X of
// INPUT bits to Y. Below LOW it is 0; at HIGH and above 1 for exp (EXP = 1), X itself for the others.
module function_table #(
    parameter FILE = "table.hex",
    parameter ENTRIES = 256,
    parameter INPUT = 16,
    parameter signed [31:0] LOW = -16384,   // in units of X
    parameter signed [31:0] HIGH = 16384,
    parameter WIDTH = 7,                    // bits of a segment
    parameter EXP = 0,
    parameter OUTPUT_FRACTION = 14,
    parameter SHIFT = 3,                    // bits behind the point that Y has more than X
    parameter WORD = 18,                    // bits of an entry
    parameter SIGNED = 0                    // whether the highest of them is a sign
) (
    input  signed [INPUT-1:0] x,
    output signed [31:0]      y
);
    reg [WORD-1:0] words [0:ENTRIES];
    initial $readmemh(FILE, words);
    wire signed [31:0] wide = {{(32-INPUT){x[INPUT-1]}}, x};
    wire signed [31:0] at = wide - LOW;
    wire covered = wide >= LOW && wide < HIGH;
    wire [31:0] segment = covered ? at >>> WIDTH : 0;
    wire [WORD-1:0] left = words[segment];
    wire [WORD-1:0] right = words[segment + 1];
    wire signed [31:0] y0 = {{(32-WORD){SIGNED != 0 && left[WORD-1]}}, left};
    wire signed [31:0] y1 = {{(32-WORD){SIGNED != 0 && right[WORD-1]}}, right};
    wire signed [31:0] fraction = at & ((32'sd1 << WIDTH) - 32'sd1);
    wire signed [63:0] slope = (y1 - y0) * fraction + (64'sd1 << (WIDTH - 1));
    wire signed [63:0] line = slope >>> WIDTH;
    assign y = covered ? y0 + line[31:0]
             : wide < LOW ? 32'sd0
             : (EXP != 0) ? 32'sd1 << OUTPUT_FRACTION
             : wide <<< SHIFT;
endmodule
