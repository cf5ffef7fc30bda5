// A butterfly of the integer Hadamard transform: sum and difference, halved with ties up where the
// stage may not grow.
module hadamard_butterfly #(
    parameter WIDTH = 32
) (
    input  signed [WIDTH-1:0] a,
    input  signed [WIDTH-1:0] b,
    input         [5:0]       shift,
    output signed [WIDTH-1:0] sum,
    output signed [WIDTH-1:0] difference
);
    wire signed [WIDTH:0] half = (shift == 0) ? 0 : ({{WIDTH{1'b0}}, 1'b1} << (shift - 1));
    wire signed [WIDTH:0] s = a + b + half;
    wire signed [WIDTH:0] d = a - b + half;
    assign sum = s >>> shift;
    assign difference = d >>> shift;
endmodule
