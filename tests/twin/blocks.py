#!/usr/bin/env python3
"""Mode 0, prefill, every primitive correctly rounded: the blocks once more, in numpy.

    python3 blocks.py quantized.safetensors trace.npz hadamard_quant.npz

Written from docs/arithmetic.md and the formats of the files, not from the Rust code, and sharing nothing
with it. Starts from the trace's tokens, goes on with its own tensors through every block to the residual
stream after the last, and, where the model's ends are INT8, to the logits (a binary16 head is not here). Compares
each with the trace's, bit for bit. Prints what differs and, last, how much was compared. Exit code 0: every tensor is there and equal; 1: not.
"""

import json
import sys

import numpy as np

f32, f64, wide = np.float32, np.float64, np.longdouble


# --- f32 operations: numpy's + - * / round to nearest even; these are what it lacks ---

def fma(a, b, c):
    """a*b + c rounded once: the product is exact in f64, the sum is rounded to odd before the last rounding."""
    p, c = f64(a) * f64(b), np.broadcast_to(f64(c), np.broadcast(a, b, c).shape)
    s = p + c
    back = s - p
    error = (p - (s - back)) + (c - back)
    even = (np.ascontiguousarray(s).view(np.int64) & 1) == 0
    toward = np.where(error > 0, np.inf, -np.inf)
    return f32(np.where((error != 0) & even, np.nextafter(s, toward), s))


def exp(x):
    return f32(np.exp(wide(x)))


def log1p(x):
    return f32(np.log1p(wide(x)))


def softplus(x):
    # exp overflows f32 beyond the threshold, where it is not used.
    return np.where(x > f32(20), x, log1p(exp(np.minimum(x, f32(21)))))


def to_codes(v):
    return np.clip(v, -128, 127).astype(np.int8)


def ties_even(v):
    return to_codes(np.rint(v))


def ties_away(v):
    size = np.abs(v)
    whole = np.floor(size)
    return to_codes(np.copysign(whole + (size - whole >= 0.5), v))


# --- files ---

def safetensors(path):
    types = {"F16": np.float16, "F32": np.float32, "I8": np.int8}
    with open(path, "rb") as file:
        data = file.read()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:8 + length]), data[8 + length:]
    meta = header.pop("__metadata__")
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = np.frombuffer(body[start:end], types[entry["dtype"]]).reshape(entry["shape"])
    return json.loads(meta["config"]), tensors


class Layer:
    """The tensors of a block: `w("in_proj.weight")` codes, `s(...)` its scale, `grid(...)` an activation scale."""

    def __init__(self, tensors, i):
        self.tensors, self.prefix = tensors, f"layers.{i}."

    def w(self, name):
        return self.tensors[self.prefix + name]

    def s(self, name):
        return f32(self.w(name + "_scale").reshape(()))

    def grid(self, name):
        return f32(self.w("scales." + name).reshape(()))


# --- steps ---

def products(x, weight):
    """Integer sums, exact in f64, as f32."""
    return f32(f64(x) @ f64(weight).T)


def ratio(a, b):
    return f32(f64(a) / f64(b))


def norm(residual, weight, eps):
    mean = np.sum(f64(residual) ** 2, axis=1, keepdims=True) / residual.shape[1]
    rstd = f32(1 / np.sqrt(mean + f64(f32(eps))))
    return (residual * rstd) * f32(weight)


def conv(layer, x):
    s_x, s_w, s_b = layer.grid("in_proj_output"), layer.s("conv1d.weight"), layer.s("conv1d.bias")
    weight, taps = layer.w("conv1d.weight"), layer.w("conv1d.weight").shape[1]
    padded = np.vstack([np.zeros((taps - 1, x.shape[1]), np.int64), np.int64(x)])
    acc = sum(padded[k:k + len(x)] * np.int64(weight[:, k]) for k in range(taps))
    v = fma(s_w * s_x, f32(acc), s_b * f32(layer.w("conv1d.bias")))
    y = v / (f32(1) + exp(-v))
    return ties_away(y / layer.grid("x_proj_input"))


def scan(layer, u_codes, dt_codes, b_codes, c_codes, z_codes):
    u = layer.grid("x_proj_input") * f32(u_codes)
    b, c = (layer.grid("x_proj_output") * f32(codes) for codes in (b_codes, c_codes))
    z = layer.grid("in_proj_output") * f32(z_codes)
    bias = layer.s("ssm.dt_bias") * f32(layer.w("ssm.dt_bias"))
    delta = softplus(fma(layer.grid("dt_proj_output"), f32(dt_codes), bias))
    alpha = exp(layer.s("ssm.A_log") * f32(layer.w("ssm.A_log")))
    scaled = delta * u
    state = np.zeros(alpha.shape, f32)
    states = np.empty((len(u), *alpha.shape), f32)
    for t in range(len(u)):
        decay = exp(-(alpha * delta[t][:, None]))
        state = fma(decay, state, b[t][None, :] * scaled[t][:, None])
        states[t] = state
    out = (layer.s("ssm.D") * f32(layer.w("ssm.D"))) * u
    for n in range(alpha.shape[1]):
        out = fma(states[:, :, n], c[:, n][:, None], out)
    y = (out * z) / (f32(1) + exp(-z))
    return np.float16(y), ties_away(state / layer.grid("ssm_state"))


def hadamard(y, matrices):
    """Rows through H_c ⊗ H_2^k, unscaled, in the defined order of additions."""
    length = y.shape[1]
    power = lambda n: n & (n - 1) == 0
    base = next((c for c in (12, 40, 28, 20) if length % c == 0 and power(length // c)), 1)
    block = length // base
    v = y.reshape(-1, base, block)
    stride = 1
    while stride < block:
        pairs = v.reshape(-1, base, block // (2 * stride), 2, stride)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        v = np.stack([low + high, low - high], axis=3).reshape(-1, base, block)
        stride *= 2
    if base > 1:
        signs = f32(matrices[f"h{base}"])
        mixed = signs[:, 0][None, :, None] * v[:, 0:1, :]
        for j in range(1, base):
            mixed = mixed + signs[:, j][None, :, None] * v[:, j:j + 1, :]
        v = mixed
    return v.reshape(-1, length)


def block(config, layer, hidden, residual, matrices):
    """Every tensor of a block, by its name in a trace."""
    inner, state, rank = config["intermediate_size"], config["state_size"], config["time_step_rank"]
    grid, t = layer.grid, {"hidden_in": hidden}
    stream = f32(hidden)
    if residual is not None:
        t["residual_in"] = residual
        stream = stream + residual
    t["residual_out"] = stream
    t["norm_out"] = ties_even(norm(stream, layer.w("norm.weight"), config["layer_norm_epsilon"]) / grid("in_proj_input"))

    a = ratio(grid("in_proj_input"), grid("in_proj_output"))
    t["in_proj_out"] = ties_even(layer.s("in_proj.weight") * (a * products(t["norm_out"], layer.w("in_proj.weight"))))
    x, z = t["in_proj_out"][:, :inner], t["in_proj_out"][:, inner:]
    t["conv_out"] = t["ssm_u"] = conv(layer, x)

    a = ratio(grid("x_proj_input"), grid("x_proj_output"))
    t["x_proj_out"] = ties_even(a * (layer.s("x_proj.weight") * products(t["conv_out"], layer.w("x_proj.weight"))))
    dt, b, c = np.split(t["x_proj_out"], [rank, rank + state], axis=1)
    a = ratio(grid("x_proj_output"), grid("dt_proj_output"))
    t["dt_proj_out"] = ties_even(layer.s("dt_proj.weight") * (a * products(dt, layer.w("dt_proj.weight"))))

    t["ssm_y"], t["ssm_state"] = scan(layer, t["conv_out"], t["dt_proj_out"], b, c, z)
    scale = f32(1 / np.sqrt(f64(inner)) / f64(grid("out_proj_input")))
    t["had_out"] = ties_away(hadamard(f32(t["ssm_y"]), matrices) * scale)
    v = grid("out_proj_input") * (layer.s("out_proj.weight") * products(t["had_out"], layer.w("out_proj.weight")))
    t["out_proj_out"] = np.float16(v)
    return t


def blocks(config, tensors, tokens, matrices):
    """Every tensor of a prefill with its key."""
    hidden, residual = tensors["embeddings.weight"][tokens], None
    if hidden.dtype == np.int8:
        hidden = np.float16(hidden) * tensors["embeddings.weight_scale"][tokens][:, None]
    for i in range(config["num_hidden_layers"]):
        made = block(config, Layer(tensors, i), hidden, residual, matrices)
        yield from ((f"layer_{i:02}/{point}", tensor) for point, tensor in made.items())
        hidden, residual = made["out_proj_out"], made["residual_out"]
    stream = f32(hidden) + residual
    yield "final/residual", stream
    if tensors["lm_head.weight"].dtype == np.int8:
        scale = f32(tensors["norm_f.output_scale"].reshape(()))
        codes = ties_even(norm(stream, tensors["norm_f.weight"], config["layer_norm_epsilon"]) / scale)
        yield "final/norm_f_out", codes
        s_w = f32(tensors["lm_head.weight_scale"].reshape(()))
        yield "final/logits", np.float16(scale * (s_w * products(codes, tensors["lm_head.weight"])))


def main(model, trace, matrices):
    config, tensors = safetensors(model)
    trace, matrices = np.load(trace), np.load(matrices)
    compared = different = 0
    for key, got in blocks(config, tensors, trace["tokens"][0], matrices):
        want = trace[key][0]
        if (want.dtype, want.shape) != (got.dtype, got.shape):
            sys.exit(f"{key}: expected {want.dtype} {want.shape}, found {got.dtype} {got.shape}")
        bits = np.dtype(f"u{got.dtype.itemsize}")
        unlike = np.ascontiguousarray(want).view(bits) != np.ascontiguousarray(got).view(bits)
        compared, different = compared + unlike.size, different + int(unlike.sum())
        if unlike.any():
            at = tuple(np.argwhere(unlike)[0])
            print(f"{key}: {unlike.sum()} of {unlike.size} differ, first at {[int(a) for a in at]}: "
                  f"expected {want[at]}, found {got[at]}")
    print(f"compared {compared}, different {different}")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
