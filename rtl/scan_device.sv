// The selective scan: every input is taken whole, then channel by channel and token by token the states of a
// channel are updated in a scan_lane, the sum over states is taken and gated. y comes out in the order of
// tokens, the state of the last token after it.
module scan_device #(
    parameter DIR = "./",
    parameter ROWS = 1,
    parameter CHANNELS = 1,
    parameter STATES = 16,
    parameter ACC = 28,
    parameter [31:0] STATE_SCALE = 0        // f32 of the INT8 state
) (
    input             clk,
    input             rst,
    input             u_valid,
    output            u_ready,
    input             u_last,
    input      [7:0] u_data,
    input             dt_valid,
    output            dt_ready,
    input             dt_last,
    input      [7:0] dt_data,
    input             b_valid,
    output            b_ready,
    input             b_last,
    input      [7:0] b_data,
    input             c_valid,
    output            c_ready,
    input             c_last,
    input      [7:0] c_data,
    input             z_valid,
    output            z_ready,
    input             z_last,
    input      [7:0] z_data,
    output reg        y_valid,
    input             y_ready,
    output reg        y_last,
    output reg [15:0] y_data,
    output reg        state_valid,
    input             state_ready,
    output reg        state_last,
    output reg [7:0] state_data
);
`include "float.svh"
    localparam WORDS = ROWS*CHANNELS;       // at most; the last words say how many
    localparam signed [63:0] MAX = (64'sd1 << (ACC - 1)) - 64'sd1;
    localparam signed [63:0] MIN = -(64'sd1 << (ACC - 1));
    reg [7:0] u [0:WORDS-1], dt [0:WORDS-1], z [0:WORDS-1];
    reg [7:0] b [0:ROWS*STATES-1], c [0:ROWS*STATES-1];
    reg [15:0] y [0:WORDS-1];
    reg [7:0] state [0:CHANNELS*STATES-1];
    reg [31:0] alpha [0:CHANNELS*STATES-1], bias [0:CHANNELS-1];
    reg [7:0] d [0:CHANNELS-1];
    reg [15:0] drive_m [0:0], skip_m [0:0], softplus_m [0:0], silu_m [0:0];
    reg [6:0] drive_s [0:0], skip_s [0:0], softplus_s [0:0], silu_s [0:0];
    reg [31:0] sum_step [0:0];
    initial begin
        $readmemh({DIR, "alpha.hex"}, alpha);
        $readmemh({DIR, "dt_bias_input.hex"}, bias);
        $readmemh({DIR, "d.hex"}, d);
        $readmemh({DIR, "drive_multiplier.hex"}, drive_m);
        $readmemh({DIR, "drive_shift.hex"}, drive_s);
        $readmemh({DIR, "skip_multiplier.hex"}, skip_m);
        $readmemh({DIR, "skip_shift.hex"}, skip_s);
        $readmemh({DIR, "softplus_multiplier.hex"}, softplus_m);
        $readmemh({DIR, "softplus_shift.hex"}, softplus_s);
        $readmemh({DIR, "silu_multiplier.hex"}, silu_m);
        $readmemh({DIR, "silu_shift.hex"}, silu_s);
        $readmemh({DIR, "sum_step.hex"}, sum_step);
    end
    integer u_at = 0, dt_at = 0, b_at = 0, c_at = 0, z_at = 0;
    reg u_closed = 0, dt_closed = 0, b_closed = 0, c_closed = 0, z_closed = 0;
    assign u_ready = !u_closed;
    assign dt_ready = !dt_closed;
    assign b_ready = !b_closed;
    assign c_ready = !c_closed;
    assign z_ready = !z_closed;
    wire full = u_closed && dt_closed && b_closed && c_closed && z_closed;

    // Where the work is: a channel, its tokens, the states of a token.
    integer e = 0, t = 0, s = 0;
    reg done = 0;
    wire [31:0] word = t*CHANNELS + e;
    wire last_row = (t + 1)*CHANNELS == u_at;
    function automatic signed [15:0] fit(input signed [63:0] v);
        fit = (v < -64'sd32768) ? -16'sd32768 : (v > 64'sd32767) ? 16'sd32767 : v[15:0];
    endfunction
    wire signed [63:0] dt_wide, skip, z_wide;
    requantize_wide #(.ACC(8)) to_softplus (.acc(dt[word]), .multiplier({16'd0, softplus_m[0]}), .shift(softplus_s[0][5:0]),
        .integer_out(dt_wide));
    wire signed [63:0] biased = dt_wide + $signed({{32{bias[e][31]}}, bias[e]});
    wire signed [31:0] delta;
    function_table #(.FILE({DIR, "softplus_table.hex"}), .LOW(-32768), .HIGH(32768), .WIDTH(8), .OUTPUT_FRACTION(16), .SHIFT(5),
        .WORD(21))
        softplus (.x(fit(biased)), .y(delta));
    wire signed [15:0] skipped = $signed(d[e]) * $signed(u[word]);
    requantize_wide #(.ACC(16)) to_sum (.acc(skipped), .multiplier({16'd0, skip_m[0]}), .shift(skip_s[0][5:0]), .integer_out(skip));
    requantize_wide #(.ACC(8)) to_silu (.acc(z[word]), .multiplier({16'd0, silu_m[0]}), .shift(silu_s[0][5:0]), .integer_out(z_wide));
    wire signed [31:0] gate;
    function_table #(.FILE({DIR, "silu_table.hex"}), .LOW(-16384), .HIGH(16384), .WIDTH(7), .OUTPUT_FRACTION(14), .SHIFT(3),
        .WORD(18), .SIGNED(1))
        silu (.x(fit(z_wide)), .y(gate));
    reg signed [15:0] x [0:STATES-1];
    wire signed [15:0] x_next;
    scan_lane #(.EXP_FILE({DIR, "exp_table.hex"})) lane (.alpha(alpha[e*STATES + s]), .delta(delta), .b(b[t*STATES + s]),
        .u(u[word]), .multiplier({16'd0, drive_m[0]}), .shift(drive_s[0][5:0]), .x(t == 0 ? 16'sd0 : x[s]), .x_next(x_next));
    reg signed [63:0] sum, total;
    wire signed [7:0] c_now = c[t*STATES + s];
    real out, step, scale;
    integer code;
    function automatic signed [63:0] register(input signed [63:0] v);
        register = (v > MAX) ? MAX : (v < MIN) ? MIN : v;
    endfunction
    integer y_out = 0, state_out = 0;
    always @(posedge clk) begin
        if (rst) begin
            u_closed <= 0; dt_closed <= 0; b_closed <= 0; c_closed <= 0; z_closed <= 0; y_valid <= 0; state_valid <= 0;
            u_at <= 0; dt_at <= 0; b_at <= 0; c_at <= 0; z_at <= 0;
            e <= 0; t <= 0; s <= 0; done <= 0; y_out <= 0; state_out <= 0;
        end else begin
            if (u_valid && u_ready) begin u[u_at] <= u_data; u_at <= u_at + 1; u_closed <= u_last; end
            if (dt_valid && dt_ready) begin dt[dt_at] <= dt_data; dt_at <= dt_at + 1; dt_closed <= dt_last; end
            if (b_valid && b_ready) begin b[b_at] <= b_data; b_at <= b_at + 1; b_closed <= b_last; end
            if (c_valid && c_ready) begin c[c_at] <= c_data; c_at <= c_at + 1; c_closed <= c_last; end
            if (z_valid && z_ready) begin z[z_at] <= z_data; z_at <= z_at + 1; z_closed <= z_last; end
            if (full && !done) begin
                total = (s == 0) ? register(skip) : sum;
                total = register(total + c_now * x_next);
                sum <= total;
                x[s] <= x_next;
                if (last_row) begin
                    // The state as INT8: f32 of its value, divided by its scale in f32, nearest.
                    scale = from_f32(STATE_SCALE);
                    step = scale * 127.0 / 32767.0 * 4.0;
                    code = nearest(single(single($itor(x_next) * step) / scale), 0);
                    state[e*STATES + s] <= (code > 127) ? 8'sd127 : (code < -128) ? -8'sd128 : code[7:0];
                end
                if (s == STATES - 1) begin
                    out = single(single($itor($signed(total[31:0]))) * from_f32(sum_step[0]));
                    out = single(out * ($itor(gate) / 16384.0));
                    y[word] <= to_f16(out);
                    s <= 0;
                    t <= last_row ? 0 : t + 1;
                    if (last_row) begin
                        e <= (e == CHANNELS - 1) ? 0 : e + 1;
                        if (e == CHANNELS - 1) done <= 1;
                    end
                end else s <= s + 1;
            end
            if (!y_valid || y_ready) begin
                y_valid <= done && y_out < u_at;
                y_last <= y_out == u_at - 1;
                y_data <= y[y_out];
                if (done && y_out < u_at) y_out <= y_out + 1;
            end
            if (!state_valid || state_ready) begin
                state_valid <= done && state_out < CHANNELS*STATES;
                state_last <= state_out == CHANNELS*STATES - 1;
                state_data <= state[state_out];
                if (done && state_out < CHANNELS*STATES) state_out <= state_out + 1;
            end
        end
    end
endmodule
