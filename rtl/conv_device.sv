// The causal convolution with SiLU: a window of TAPS - 1 + ROWS rows of CHANNELS codes at most comes in; a sum over the
// taps and the bias in a saturating register, SiLU from its table, codes out.
module conv_device #(
    parameter DIR = "./",
    parameter ROWS = 1,
    parameter CHANNELS = 1,
    parameter TAPS = 4,
    parameter ACC = 28
) (
    input             clk,
    input             rst,
    input             x_valid,
    output            x_ready,
    input             x_last,
    input      [7:0] x_data,
    output reg        out_valid,
    input             out_ready,
    output reg        out_last,
    output reg [7:0] out_data
);
    localparam WINDOW = (TAPS - 1 + ROWS)*CHANNELS;
    localparam signed [ACC:0] MAX = {2'b00, {(ACC-1){1'b1}}};
    localparam signed [ACC:0] MIN = {2'b11, {(ACC-1){1'b0}}};
    reg [7:0] x [0:WINDOW-1];
    reg [7:0] weight [0:CHANNELS*TAPS-1];
    reg signed [ACC-1:0] bias [0:CHANNELS-1];
    reg [15:0] silu_multiplier [0:0], multiplier [0:0];
    reg [6:0] silu_shift [0:0], shift [0:0];
    initial begin
        $readmemh({DIR, "weight.hex"}, weight);
        $readmemh({DIR, "bias_sum.hex"}, bias);
        $readmemh({DIR, "silu_multiplier.hex"}, silu_multiplier);
        $readmemh({DIR, "silu_shift.hex"}, silu_shift);
        $readmemh({DIR, "multiplier.hex"}, multiplier);
        $readmemh({DIR, "shift.hex"}, shift);
    end
    integer filled = 0, at = 0, k;
    reg closed = 0;
    wire [31:0] outputs = filled - (TAPS - 1)*CHANNELS;
    wire busy = closed && at < outputs;
    assign x_ready = !closed;
    reg signed [ACC-1:0] sum;
    reg signed [ACC:0] next;
    reg signed [7:0] a, b;
    wire signed [63:0] input_wide;
    requantize_wide #(.ACC(ACC)) to_silu (.acc(sum), .multiplier({16'd0, silu_multiplier[0]}), .shift(silu_shift[0][5:0]),
        .integer_out(input_wide));
    wire signed [15:0] fitted = (input_wide < -64'sd32768) ? -16'sd32768
                              : (input_wide > 64'sd32767) ? 16'sd32767 : input_wide[15:0];
    wire signed [31:0] y;
    function_table #(.FILE({DIR, "silu_table.hex"}), .LOW(-16384), .HIGH(16384), .WIDTH(7), .OUTPUT_FRACTION(14), .SHIFT(3),
        .WORD(18), .SIGNED(1))
        silu (.x(fitted), .y(y));
    wire signed [7:0] q;
    requantize #(.ACC(32)) to_codes (.acc(y), .multiplier({16'd0, multiplier[0]}), .shift(shift[0][5:0]), .q(q));
    reg summed = 0;
    always @(posedge clk) begin
        if (rst) begin
            filled <= 0; at <= 0; summed <= 0; closed <= 0; out_valid <= 0;
        end else begin
            if (x_valid && x_ready) begin
                x[filled] <= x_data;
                filled <= filled + 1;
                closed <= x_last;
            end
            if (out_valid && out_ready) out_valid <= 0;
            if (busy && !summed) begin
                next = 0;
                for (k = 0; k <= TAPS; k = k + 1) begin
                    if (k < TAPS) begin
                        a = x[at + k*CHANNELS];
                        b = weight[(at % CHANNELS)*TAPS + k];
                        next = next + a * b;
                    end else next = next + bias[at % CHANNELS];
                    next = (next > MAX) ? MAX : (next < MIN) ? MIN : next;
                end
                sum <= next[ACC-1:0];
                summed <= 1;
            end
            if (summed && !(out_valid && !out_ready)) begin
                out_valid <= 1;
                out_last <= at == outputs - 1;
                out_data <= q;
                at <= at + 1;
                summed <= 0;
            end
        end
    end
endmodule
