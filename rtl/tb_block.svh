    // The body of the testbench of a whole block; sizes L, M, E, N, R and HISTORY (the zeros before the first
    // token of the convolution) stand before it, the devices are modules block_STEP. Every stream has valid, ready
    // and last; a stream that two devices take advances when both are ready.
    reg clk = 0, rst = 1;
    always #5 clk = ~clk;
    reg [15:0] hidden [0:L*M-1], out [0:L*M-1];
    reg [31:0] residual [0:L*M-1], residual_out [0:L*M-1];
    reg [7:0] state [0:E*N-1];
    integer at = 0, zeros = 0, columns = 0, proj = 0, p_row = 0, x_row = 0, cycles = 0, quiet = 0, errors = 0;
    integer out_at = 0, residual_at = 0, state_at = 0;
    reg in_valid = 0, in_last = 0;
    reg [15:0] hidden_data = 0;
    reg [31:0] residual_data = 0;
    // What comes out is taken in three of four clocks.
    reg [31:0] draw = 32'd1;
    wire taking = draw[1:0] != 0;
    wire n_valid, s_valid, p_valid, c_valid, x_valid, d_valid, y_valid, h_valid, o_valid, r_valid;
    wire n_ready, p_ready, c_ready, x_ready, d_ready, y_ready, h_ready;
    wire n_last, s_last, p_last, c_last, x_last, d_last, y_last, h_last, o_last, r_last;
    wire [7:0] n_data, s_data, p_data, c_data, x_data, d_data, h_data;
    wire [15:0] y_data, o_data;
    wire [31:0] r_data;
    wire hidden_ready, residual_ready, conv_ready, z_ready, x_proj_ready, u_ready, dt_ready;
    wire b_ready, scan_c_ready;
    block_norm norm (.clk(clk), .rst(rst),
        .hidden_valid(in_valid && residual_ready), .hidden_ready(hidden_ready), .hidden_last(in_last), .hidden_data(hidden_data),
        .residual_valid(in_valid && hidden_ready), .residual_ready(residual_ready), .residual_last(in_last), .residual_data(residual_data),
        .residual_out_valid(r_valid), .residual_out_ready(taking), .residual_out_last(r_last), .residual_out_data(r_data),
        .out_valid(n_valid), .out_ready(n_ready), .out_last(n_last), .out_data(n_data));
    block_in_proj in_proj (.clk(clk), .rst(rst), .x_valid(n_valid), .x_ready(n_ready), .x_last(n_last), .x_data(n_data),
        .out_valid(p_valid), .out_ready(p_ready), .out_last(p_last), .out_data(p_data));
    // A row of in_proj is x, then z.
    wire padding = zeros < HISTORY;
    wire to_conv = columns < E;
    assign p_ready = to_conv ? conv_ready && !padding : z_ready;
    block_conv conv (.clk(clk), .rst(rst), .x_valid(padding ? !rst : p_valid && to_conv), .x_ready(conv_ready),
        .x_last(!padding && p_row == L - 1 && columns == E - 1), .x_data(padding ? 8'd0 : p_data),
        .out_valid(c_valid), .out_ready(c_ready), .out_last(c_last), .out_data(c_data));
    assign c_ready = x_proj_ready && u_ready;
    block_x_proj x_proj (.clk(clk), .rst(rst), .x_valid(c_valid && u_ready), .x_ready(x_proj_ready), .x_last(c_last), .x_data(c_data),
        .out_valid(x_valid), .out_ready(x_ready), .out_last(x_last), .out_data(x_data));
    // A row of x_proj is dt, then B, then C.
    wire is_dt = proj < R;
    wire is_b = !is_dt && proj < R + N;
    wire is_c = !is_dt && !is_b;
    wire last_x_row = x_row == L - 1;
    assign x_ready = is_dt ? dt_ready : is_b ? b_ready : scan_c_ready;
    block_dt_proj dt_proj (.clk(clk), .rst(rst), .x_valid(x_valid && is_dt), .x_ready(dt_ready), .x_last(last_x_row && proj == R - 1),
        .x_data(x_data), .out_valid(d_valid), .out_ready(d_ready), .out_last(d_last), .out_data(d_data));
    block_scan scan (.clk(clk), .rst(rst),
        .u_valid(c_valid && x_proj_ready), .u_ready(u_ready), .u_last(c_last), .u_data(c_data),
        .dt_valid(d_valid), .dt_ready(d_ready), .dt_last(d_last), .dt_data(d_data),
        .b_valid(x_valid && is_b), .b_ready(b_ready), .b_last(last_x_row && proj == R + N - 1), .b_data(x_data),
        .c_valid(x_valid && is_c), .c_ready(scan_c_ready), .c_last(x_last), .c_data(x_data),
        .z_valid(p_valid && !to_conv), .z_ready(z_ready), .z_last(p_last), .z_data(p_data),
        .y_valid(y_valid), .y_ready(y_ready), .y_last(y_last), .y_data(y_data),
        .state_valid(s_valid), .state_ready(taking), .state_last(s_last), .state_data(s_data));
    block_hadamard hadamard (.clk(clk), .rst(rst), .y_valid(y_valid), .y_ready(y_ready), .y_last(y_last), .y_data(y_data),
        .out_valid(h_valid), .out_ready(h_ready), .out_last(h_last), .out_data(h_data));
    block_out_proj out_proj (.clk(clk), .rst(rst), .x_valid(h_valid), .x_ready(h_ready), .x_last(h_last), .x_data(h_data),
        .out_valid(o_valid), .out_ready(taking), .out_last(o_last), .out_data(o_data));
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
        draw <= {draw[30:0], draw[31] ^ draw[21] ^ draw[1] ^ draw[0]};
        if (padding && conv_ready) zeros <= zeros + 1;
        if (!in_valid || hidden_ready && residual_ready) begin
            in_valid <= at < L*M;
            if (at < L*M) begin
                hidden_data <= hidden[at];
                residual_data <= residual[at];
                in_last <= at == L*M - 1;
                at <= at + 1;
            end
        end
        if (p_valid && p_ready) begin
            columns <= (columns == 2*E - 1) ? 0 : columns + 1;
            if (columns == 2*E - 1) p_row <= p_row + 1;
        end
        if (x_valid && x_ready) begin
            proj <= (proj == R + 2*N - 1) ? 0 : proj + 1;
            if (proj == R + 2*N - 1) x_row <= x_row + 1;
        end
        if (r_valid && taking) begin
            quiet = 0;
            if (residual_at >= L*M || r_last !== (residual_at == L*M - 1) || r_data !== residual_out[residual_at]) begin
                if (errors < 10) $display("residual_out[%0d]: found %h", residual_at, r_data);
                errors = errors + 1;
            end
            residual_at = residual_at + 1;
        end
        if (s_valid && taking) begin
            quiet = 0;
            if (state_at >= E*N || s_last !== (state_at == E*N - 1) || s_data !== state[state_at]) begin
                if (errors < 10) $display("state[%0d]: found %h", state_at, s_data);
                errors = errors + 1;
            end
            state_at = state_at + 1;
        end
        if (o_valid && taking) begin
            quiet = 0;
            if (out_at >= L*M || o_last !== (out_at == L*M - 1) || o_data !== out[out_at]) begin
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
