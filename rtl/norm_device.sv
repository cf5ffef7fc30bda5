// Residual add and RMSNorm in floats, and its requantizer: rows of binary16 and of the f32 residual stream come
// in (the first block has no stream: RESIDUAL = 0), the new stream and INT8 codes go out.
module norm_device #(
    parameter DIR = "./",
    parameter ROWS = 1,
    parameter WIDTH = 8,
    parameter RESIDUAL = 1,
    parameter [31:0] EPS = 0,               // f32
    parameter [31:0] SCALE = 0,             // f32 of the output
    parameter TIES_UP = 0
) (
    input             clk,
    input             rst,
    input             hidden_valid,
    output            hidden_ready,
    input             hidden_last,
    input      [15:0] hidden_data,
    input             residual_valid,
    output            residual_ready,
    input             residual_last,
    input      [31:0] residual_data,
    output reg        residual_out_valid,
    input             residual_out_ready,
    output reg        residual_out_last,
    output reg [31:0] residual_out_data,
    output reg        out_valid,
    input             out_ready,
    output reg        out_last,
    output reg [7:0] out_data
);
`include "float.svh"
    localparam WORDS = ROWS*WIDTH;          // at most; the last word says how many
    reg [15:0] hidden [0:WORDS-1];
    reg [31:0] old [0:WORDS-1];
    reg [31:0] stream [0:WORDS-1];
    reg [7:0] codes [0:WORDS-1];
    reg [31:0] weight [0:WIDTH-1];
    initial $readmemh({DIR, "weight.hex"}, weight);
    integer hidden_at = 0, old_at = 0, done = 0, out = 0, stream_out = 0, i, quotient;
    reg hidden_closed = 0, residual_closed = 0;
    assign hidden_ready = !hidden_closed;
    assign residual_ready = !residual_closed;
    real lanes [0:7];
    real sum, rstd, value;
    wire row_in = hidden_at >= (done + 1)*WIDTH && (RESIDUAL == 0 || old_at >= (done + 1)*WIDTH);
    always @(posedge clk) begin
        if (rst) begin
            hidden_at <= 0; old_at <= 0; done <= 0; out <= 0; stream_out <= 0;
            hidden_closed <= 0; residual_closed <= 0; out_valid <= 0; residual_out_valid <= 0;
        end else begin
            if (hidden_valid && hidden_ready) begin
                hidden[hidden_at] <= hidden_data;
                hidden_at <= hidden_at + 1;
                hidden_closed <= hidden_last;
            end
            if (residual_valid && residual_ready) begin
                old[old_at] <= residual_data;
                old_at <= old_at + 1;
                residual_closed <= residual_last;
            end
            if (row_in) begin
                for (i = 0; i < 8; i = i + 1) lanes[i] = 0.0;
                for (i = 0; i < WIDTH; i = i + 1) begin
                    value = from_f16(hidden[done*WIDTH + i]);
                    if (RESIDUAL != 0) value = single(value + from_f32(old[done*WIDTH + i]));
                    stream[done*WIDTH + i] = to_f32(value);
                    lanes[i % 8] = lanes[i % 8] + value * value;
                end
                sum = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
                rstd = single(1.0 / $sqrt(sum / $itor(WIDTH) + from_f32(EPS)));
                for (i = 0; i < WIDTH; i = i + 1) begin
                    value = single(from_f32(stream[done*WIDTH + i]) * rstd);
                    value = single(value * from_f32(weight[i]));
                    quotient = nearest(single(value / from_f32(SCALE)), TIES_UP);
                    codes[done*WIDTH + i] = (quotient > 127) ? 8'sd127 : (quotient < -128) ? -8'sd128 : quotient[7:0];
                end
                done <= done + 1;
            end
            if (!out_valid || out_ready) begin
                out_valid <= out < done*WIDTH;
                out_last <= hidden_closed && out == hidden_at - 1;
                out_data <= codes[out];
                if (out < done*WIDTH) out <= out + 1;
            end
            if (!residual_out_valid || residual_out_ready) begin
                residual_out_valid <= stream_out < done*WIDTH;
                residual_out_last <= hidden_closed && stream_out == hidden_at - 1;
                residual_out_data <= stream[stream_out];
                if (stream_out < done*WIDTH) stream_out <= stream_out + 1;
            end
        end
    end
endmodule
