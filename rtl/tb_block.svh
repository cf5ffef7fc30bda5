    // The body of the testbench of a whole block; sizes L, M, E, N, R and HISTORY (the zeros before the first
    // token of the convolution) stand before it, the devices are modules block_STEP.
    reg clk = 0, rst = 1;
    always #5 clk = ~clk;
    reg [15:0] hidden [0:L*M-1], out [0:L*M-1];
    reg [31:0] residual [0:L*M-1], residual_out [0:L*M-1];
    reg [7:0] state [0:E*N-1];
    integer at = 0, zeros = 0, columns = 0, proj = 0, cycles = 0, quiet = 0, errors = 0;
    integer out_at = 0, residual_at = 0, state_at = 0;
    reg in_valid = 0;
    reg [15:0] hidden_data = 0;
    reg [31:0] residual_data = 0;
    wire n_valid, s_valid, p_valid, c_valid, x_valid, d_valid, y_valid, h_valid, o_valid, r_valid;
    wire [7:0] n_data, s_data, p_data, c_data, x_data, d_data, h_data;
    wire [15:0] y_data, o_data;
    wire [31:0] r_data;
    block_norm norm (.clk(clk), .rst(rst), .hidden_valid(in_valid), .hidden_data(hidden_data),
        .residual_valid(in_valid), .residual_data(residual_data),
        .residual_out_valid(r_valid), .residual_out_data(r_data), .out_valid(n_valid), .out_data(n_data));
    block_in_proj in_proj (.clk(clk), .rst(rst), .x_valid(n_valid), .x_data(n_data), .out_valid(p_valid), .out_data(p_data));
    // A row of in_proj is x, then z.
    wire to_conv = p_valid && columns < E;
    wire padding = !rst && zeros < HISTORY;
    block_conv conv (.clk(clk), .rst(rst), .x_valid(padding || to_conv), .x_data(padding ? 8'd0 : p_data),
        .out_valid(c_valid), .out_data(c_data));
    block_x_proj x_proj (.clk(clk), .rst(rst), .x_valid(c_valid), .x_data(c_data), .out_valid(x_valid), .out_data(x_data));
    // A row of x_proj is dt, then B, then C.
    block_dt_proj dt_proj (.clk(clk), .rst(rst), .x_valid(x_valid && proj < R), .x_data(x_data),
        .out_valid(d_valid), .out_data(d_data));
    block_scan scan (.clk(clk), .rst(rst), .u_valid(c_valid), .u_data(c_data), .dt_valid(d_valid), .dt_data(d_data),
        .b_valid(x_valid && proj >= R && proj < R + N), .b_data(x_data), .c_valid(x_valid && proj >= R + N), .c_data(x_data),
        .z_valid(p_valid && columns >= E), .z_data(p_data),
        .y_valid(y_valid), .y_data(y_data), .state_valid(s_valid), .state_data(s_data));
    block_hadamard hadamard (.clk(clk), .rst(rst), .y_valid(y_valid), .y_data(y_data), .out_valid(h_valid), .out_data(h_data));
    block_out_proj out_proj (.clk(clk), .rst(rst), .x_valid(h_valid), .x_data(h_data), .out_valid(o_valid), .out_data(o_data));
    initial begin
        $readmemh("norm/hidden.hex", hidden);
        $readmemh("norm/residual.hex", residual);
        $readmemh("norm/residual_out.hex", residual_out);
        $readmemh("scan/state.hex", state);
        $readmemh("out_proj/out.hex", out);
        repeat (4) @(negedge clk);
        rst = 0;
    end
    always @(posedge clk) if (!rst) begin
        cycles <= cycles + 1;
        quiet = quiet + 1;
        if (padding) zeros <= zeros + 1;
        if (padding && to_conv) begin
            $display("FAIL block: a word of in_proj before the history of the convolution is in");
            $fatal(1);
        end
        in_valid <= !padding && at < L*M;
        if (!padding && at < L*M) begin
            hidden_data <= hidden[at];
            residual_data <= residual[at];
            at <= at + 1;
        end
        if (p_valid) columns <= (columns == 2*E - 1) ? 0 : columns + 1;
        if (x_valid) proj <= (proj == R + 2*N - 1) ? 0 : proj + 1;
        if (r_valid) begin
            quiet = 0;
            if (residual_at >= L*M || (r_data ^ r_data) !== 0 || r_data !== residual_out[residual_at]) begin
                if (errors < 10) $display("residual_out[%0d]: found %h", residual_at, r_data);
                errors = errors + 1;
            end
            residual_at = residual_at + 1;
        end
        if (s_valid) begin
            quiet = 0;
            if (state_at >= E*N || (s_data ^ s_data) !== 0 || s_data !== state[state_at]) begin
                if (errors < 10) $display("state[%0d]: found %h", state_at, s_data);
                errors = errors + 1;
            end
            state_at = state_at + 1;
        end
        if (o_valid) begin
            quiet = 0;
            if (out_at >= L*M || (o_data ^ o_data) !== 0 || o_data !== out[out_at]) begin
                if (errors < 10) $display("out[%0d]: found %h", out_at, o_data);
                errors = errors + 1;
            end
            out_at = out_at + 1;
        end
        if ((out_at >= L*M && quiet > 1000) || cycles > 20000000) begin
            if (errors == 0 && out_at == L*M && residual_at == L*M && state_at == E*N) begin
                $display("PASS block: out %0d, residual_out %0d, state %0d words", out_at, residual_at, state_at);
                $finish;
            end else begin
                $display("FAIL block: %0d mismatches: out %0d, residual_out %0d, state %0d words", errors, out_at, residual_at, state_at);
                $fatal(1);
            end
        end
    end
