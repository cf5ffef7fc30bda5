// binary16 and f32 as bits, by way of real (f64), which holds both exactly. Rounding is to nearest, ties to
// even; overflow gives infinity. For devices whose streams are floats (norm, scan, Hadamard, out_proj).

// A real rounded to MANTISSA stored bits, as its magnitude's bits. BIAS is that of the exponent.
function automatic [31:0] narrowed(input real v, input integer stored, input integer bias);
    reg [63:0] bits;
    reg [52:0] whole, rest, half;
    reg [31:0] kept;
    integer exponent, drop;
    begin
        bits = $realtobits(v);
        exponent = bits[62:52];
        exponent = exponent - 1023;
        whole = {1'b1, bits[51:0]};
        drop = 52 - stored;
        if (exponent < 1 - bias) drop = drop + (1 - bias - exponent);
        if (bits[62:0] == 0 || drop > 53) narrowed = 0;
        else begin
            kept = whole >> drop;
            rest = whole & ((53'd1 << drop) - 53'd1);
            half = 53'd1 << (drop - 1);
            if (rest > half || (rest == half && kept[0])) kept = kept + 1;
            if (exponent >= 1 - bias) kept = kept + ((exponent + bias - 1) << stored);
            narrowed = (exponent > bias) ? (2*bias + 1) << stored : kept;
        end
    end
endfunction

function automatic [31:0] to_f32(input real v);
    reg [63:0] bits;
    begin
        bits = $realtobits(v);
        to_f32 = narrowed(v, 23, 127) | {bits[63], 31'd0};
    end
endfunction

function automatic [15:0] to_f16(input real v);
    reg [63:0] bits;
    reg [31:0] magnitude;
    begin
        bits = $realtobits(v);
        magnitude = narrowed(v, 10, 15);
        to_f16 = magnitude[15:0] | {bits[63], 15'd0};
    end
endfunction

function automatic real from_f32(input [31:0] v);
    real magnitude;
    reg [63:0] bits;
    begin
        if (v[30:23] == 0) magnitude = $bitstoreal(64'h36A0000000000000) * $itor(v[22:0]);
        else magnitude = $bitstoreal({1'b0, {3'd0, v[30:23]} + 11'd896, v[22:0], 29'd0});
        bits = $realtobits(magnitude);
        from_f32 = $bitstoreal({v[31], bits[62:0]});
    end
endfunction

function automatic real from_f16(input [15:0] v);
    real magnitude;
    reg [63:0] bits;
    begin
        if (v[14:10] == 0) magnitude = $bitstoreal(64'h3E70000000000000) * $itor(v[9:0]);
        else magnitude = $bitstoreal({1'b0, {6'd0, v[14:10]} + 11'd1008, v[9:0], 42'd0});
        bits = $realtobits(magnitude);
        from_f16 = $bitstoreal({v[15], bits[62:0]});
    end
endfunction

// The f32 nearest to a real.
function automatic real single(input real v);
    single = from_f32(to_f32(v));
endfunction

// The integer nearest to a real: ties to even, or up. Magnitudes stay below 2^31.
function automatic integer nearest(input real v, input integer ties_up);
    real low, part;
    integer whole;
    begin
        low = $floor(v);
        part = v - low;
        whole = $rtoi(low);
        if (part > 0.5 || (part == 0.5 && (ties_up != 0 || whole[0]))) whole = whole + 1;
        nearest = whole;
    end
endfunction
