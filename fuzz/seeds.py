#!/usr/bin/env python3
"""Makes the first cases of each corpus: small valid files, and the hostile ones everybody knows.

    pip install numpy safetensors && python fuzz/seeds.py
"""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

CORPUS = Path(__file__).parent / "corpus"
rng = np.random.default_rng(0)


def case(target, name, data):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def npz(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(text):
    text += "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


# The model of `SMALL` in readers.rs: M = 16, E = 32, N = 4, R = 2, one block, eight tokens.
M, E, N, R, V, K = 16, 32, 4, 2, 8, 4
shapes = {
    "backbone.embeddings.weight": (V, M), "backbone.norm_f.weight": (M,),
    "backbone.layers.0.norm.weight": (M,), "backbone.layers.0.mixer.in_proj.weight": (2 * E, M),
    "backbone.layers.0.mixer.conv1d.weight": (E, 1, K), "backbone.layers.0.mixer.conv1d.bias": (E,),
    "backbone.layers.0.mixer.x_proj.weight": (R + 2 * N, E), "backbone.layers.0.mixer.dt_proj.weight": (E, R),
    "backbone.layers.0.mixer.dt_proj.bias": (E,), "backbone.layers.0.mixer.A_log": (E, N),
    "backbone.layers.0.mixer.D": (E,), "backbone.layers.0.mixer.out_proj.weight": (M, E),
}
model = save({n: rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()})
case("safetensors", "valid", model)
case("safetensors", "header-longer-than-file", struct.pack("<Q", 1 << 40) + b"{}")
case("safetensors", "offsets-near-the-end-of-u64", struct.pack("<Q", 87)
     + b'{"a":{"dtype":"F16","shape":[9223372036854775807,2],"data_offsets":[0,18446744073709551615]}}'[:87])
case("safetensors", "one-name-twice", struct.pack("<Q", 111)
     + b'{"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"I8","shape":[1],"data_offsets":[0,1]}}     x')
case("quantized", "a-float-model", model)
case("quantized", "no-tensors", struct.pack("<Q", 44) + b'{"__metadata__":{"format":"scalescope"}}    ')
case("index", "one-shard", json.dumps({"metadata": {}, "weight_map": {n: "a.safetensors" for n in shapes}}))
case("index", "outside", json.dumps({"weight_map": {"backbone.norm_f.weight": "../a.safetensors"}}))
config = dict(model_type="mamba", hidden_size=M, intermediate_size=E, state_size=N, conv_kernel=K,
              num_hidden_layers=1, time_step_rank=R, vocab_size=V, layer_norm_epsilon=1e-5)
case("config", "valid", json.dumps(config))
case("config", "sizes-that-overflow", json.dumps(config | dict(hidden_size=1 << 62, intermediate_size=1 << 63, vocab_size=2**64 - 1)))
case("config", "a-thousand-layers", json.dumps(config | dict(num_hidden_layers=1024)))
case("quantized", "a-thousand-layers", save({}, {"format": "int8-mamba", "config": json.dumps(config | dict(num_hidden_layers=1024))}))
keys = ["in_proj_input", "in_proj_output", "x_proj_input", "x_proj_output", "dt_proj_output", "ssm_state", "out_proj_input"]
case("scales", "valid", json.dumps({"layers": [{k: 0.01 for k in keys}]}))
case("scales", "zero-and-huge", json.dumps({"layers": [{k: 0 for k in keys}, {k: 1e300 for k in keys}]}))

arrays = [("tokens.npy", npy(np.arange(6, dtype=np.uint16).reshape(2, 3))),
          ("L0/conv_out.npy", npy(rng.integers(-128, 128, (2, 3, 4), dtype=np.int8))),
          ("L0/conv_out.scale.npy", npy(np.float32(0.5))), ("L0/ssm_y.npy", npy(rng.standard_normal((2, 3, 4)).astype(np.float16)))]
points = [("tokens.npy", npy(np.arange(6, dtype=np.int64).reshape(2, 3))), ("unknown.npy", npy(np.float32(1)))]
for name, kind, rows in [("conv_out", np.int8, 3), ("ssm_y", np.float16, 3), ("ssm_state", np.float32, 4)]:
    points += [(f"layer_00/{name}.npy", npy(np.zeros((2, rows, 4), kind))), (f"scale/layer_00/{name}.npy", npy(np.float32(0.5)))]
points += [("step_1/token.npy", npy(np.zeros((2, 1), np.uint32))), ("step_1/logits.npy", npy(np.zeros((2, 5), np.float32))),
           ("meta.npy", npy(np.frombuffer(b'{"mode": "0", "profile": "exact", "model": "m"}', np.uint8)))]
case("trace", "points", npz(points, zipfile.ZIP_DEFLATED))
case("trace", "one-sequence", npz([("final/logits.npy", npy(np.zeros((3, 5), np.float32))), ("layer_01/conv_out.npy", npy(np.zeros((3, 4), np.int8)))]))
for target in ("npz", "trace"):
    case(target, "valid-stored", npz(arrays))
    case(target, "valid-deflated", npz(arrays, zipfile.ZIP_DEFLATED))
    case(target, "names-that-climb", npz([("../../etc/x.npy", arrays[0][1]), ("/abs.npy", arrays[0][1]), ("a\\..\\b.npy", arrays[0][1])]))
    bomb = header("{'descr': '<f4', 'fortran_order': False, 'shape': (2000000,), }") + bytes(8_000_000)
    case(target, "bomb", npz([("a.npy", bomb)], zipfile.ZIP_DEFLATED))
    case(target, "shape-that-overflows", npz([("a.npy", header("{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296, 4), }"))]))
    case(target, "a-million-sequences", npz([("layer_00/conv_out.npy", npy(np.zeros((1 << 20, 1, 1), np.int8)))], zipfile.ZIP_DEFLATED))
case("npy", "valid", arrays[0][1])
case("npy", "fortran", npy(np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))))
case("npy", "shape-without-data", header("{'descr': '|i1', 'fortran_order': False, 'shape': (9223372036854775807,), }"))
case("npy", "deep-header", header("{'descr': " + "(" * 5000))
case("modes", "row", '[mode.mine]\nbase = "2-4"\nconv_in = "dynamic-token"\n')
case("modes", "unknown-key", '[mode.mine]\nbase = "0"\nwings = 2\n')
for name in ("asic-int8", "pow2"):
    case("profile", name, (Path(__file__).parent.parent / f"sim/profiles/{name}.toml").read_bytes())
case("profile", "every-kind-of-key", """version = 1
seed = 7
requant = {scaling = "fixed", rounding_steps = "double", rounding = "stochastic", overflow = "wrap"}
quantizer = {rounding = "ceil", overflow = "saturate-symmetric"}
accumulator.in_proj = {bits = 17, overflow = "trap"}
weights = {bits = 4, granularity = "group"}
nonlinearity.exp.form = "shift"
nonlinearity.silu = {form = "polynomial", segments = 16, degree = 3, range = [-8, 8], beyond = "clamp", input_fraction = 12}
scan = {state = "int24", requantize_every = 3, guard = 4, order = "kogge-stone", block = 8}
""")
case("profile", "numbers-at-their-ends", "version = 1\nseed = 4294967295\n[nonlinearity.silu]\nform = \"table\"\n"
     "entries = 65536\ninput_bits = 24\ninput_fraction = 0\nrange = [-256, 256]\n[scan]\nheadroom = 9223372036854775807\n")

EXACT = dict(name="exact", hash="", toml="version = 1\n")
CHIP = dict(name="chip", hash="", toml="version = 1\nextends = \"asic-int8\"\n")
BITS = dict(i8=8, f16=16, f32=32, i64=64)


def vectors(name, step, arrays, files, profile=EXACT, **parameters):
    """`arrays`: name, type, shape, file. Every array of codes has a scale."""
    entries = [dict(name=n, role="input", file=file, dtype=t, bits=BITS[t], shape=shape, layout="row-major",
                    depth=int(np.prod([int(n) for n in shape], dtype=object)), packing="one element a word",
                    sha256="", **(dict(scale=0.5) if t == "i8" else {})) for n, t, shape, file in arrays]
    manifest = dict(scalescope_vectors=1, step=step, layer=0, mode="0", profile=profile, model=None, format="hex",
                    parameters=parameters, arrays=entries)
    case("vectors", name, "\0".join([json.dumps(manifest), *files]))


one, two, four = "3f800000\n", "01\nfe\n", "01\n80\n7f // comment\n@3\n0_3\n"
vectors("norm", "norm", [("hidden", "f16", [1, 4], "a"), ("weight", "f32", [4], "a")], [four], output_scale=0.1, eps=1e-5)
for name, rules in (("exact", EXACT), ("chip", CHIP)):
    vectors(f"linear-{name}", "x_proj", [("x", "i8", [2, 2], "a"), ("weight", "i8", [2, 2], "a"),
            ("weight_scale", "f32", [1], "c")], [four, two, one], rules, output="int8", output_scale=0.1)
    vectors(f"conv-{name}", "conv", [("x", "i8", [2, 2], "a"), ("weight", "i8", [2, 2], "a"), ("bias", "i8", [2], "b")],
            [four, two], rules, output_scale=0.1)
    vectors(f"scan-{name}", "scan", [(n, "i8", [1, 2], "b") for n in ("u", "dt", "z", "b", "c")]
            + [("a_log", "i8", [2, 2], "a"), ("d", "i8", [2], "b"), ("dt_bias", "i8", [2], "b")],
            [four, two], rules, state_scale=0.1)
    vectors(f"hadamard-{name}", "hadamard", [("y", "f16", [1, 4], "a")], [four], rules, output_scale=0.1)
vectors("words-that-overflow", "norm", [("hidden", "i64", [1 << 31, 1 << 30], "a")], [four])
vectors("no-scales", "x_proj", [("x", "i8", [0, 2], "b"), ("weight", "i8", [0, 2], "b"), ("weight_scale", "f32", [0], "b")],
        ["", "", ""], output="f16")
vectors("a-bias-too-short", "conv", [("x", "i8", [2, 2], "a"), ("weight", "i8", [2, 2], "a"), ("bias", "i8", [1], "b")],
        [four, "01"], output_scale=0.1)
vectors("a-file-that-climbs", "norm", [("hidden", "f16", [1, 4], "../a")], [four])
vectors("signed-digits", "norm", [("hidden", "f16", [1, 4], "a"), ("weight", "f32", [4], "a")], ["+1\n-1\n+0\n1\n"],
        output_scale=0.1, eps=1e-5)
case("tokenizer", "byte-level", json.dumps({"version": "1.0", "added_tokens": [], "normalizer": None,
     "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}, "post_processor": None,
     "decoder": {"type": "ByteLevel"}, "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}}))
case("passages", "valid", '{"text": "It was a dark and stormy night"}\n\n{"text": "x y", "n": 1}\n')
case("passages", "damaged", b'{"text": 3}\n\xff\xfe\n{"text": " "}\n[[[[[[\n{"text": "a\\ud800 b"}\n')
case("samples", "no-settings", '{"scalescope_samples": 1}\n')
case("samples", "another-version", '{"scalescope_samples": 99, "settings": {}}\n')
settings = dict(version="0", model=dict(name="m", sha256="0"), data=dict(name="d", sha256="1"), limit=None, lines=1, units=1,
                bad_lines=[dict(id=3, reason="no text")], task=dict(task="last-word", max_length=8), profile="exact",
                modes=[dict(name="0"), dict(name="1")], reference=dict(name="1"), shard=dict(index=0, count=1))
record = dict(id=0, mode="0", greedy=True, log_likelihood=-1.5, target_tokens=1, greedy_tokens=1, bytes=4)
outcomes = [record, record | dict(mode="1", part=0, kl=0.0, agreed_tokens=1)]


def samples(name, outcomes, **changed):
    case("samples", name, "".join(json.dumps(line) + "\n" for line in [dict(scalescope_samples=1, settings=settings | changed), *outcomes]))


samples("valid", outcomes)
samples("windows", outcomes, task=dict(task="perplexity", window=4, stride=2), faults=["conv_out:3:7"], limit=1)
samples("no-modes", outcomes, modes=[])
samples("a-shard-beyond-its-count", outcomes, shard=dict(index=1, count=0))
samples("one-of-2-to-the-60-shards", outcomes, shard=dict(index=0, count=1 << 60))
samples("counts-that-overflow", [o | dict(id=i, target_tokens=2**63) for i in range(2) for o in outcomes], units=2)

for target in ("npy", "tokens"):
    case(target, "nothing-of-2-to-the-63-columns", header("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 9223372036854775808), }"))
case("tokens", "sequences", npy(np.arange(12, dtype=np.int64).reshape(3, 4)))
case("tokens", "negative", npy(np.array([1, -1], np.int8)))
case("tokens", "reals", npy(np.ones(2, np.float32)))
case("tokens", "no-columns", npy(np.zeros((3, 0), np.uint32)))
case("tokens", "texts", '{"text": "a"}\n\n{"text": 3}\n')
case("tokens", "more-columns-than-bytes", header("{'descr': '<i8', 'fortran_order': False, 'shape': (0, 9223372036854775807), }"))

interval = dict(value=0.5, low=0.4, high=0.6, stderr=0.05)
mode = dict(mode="0", summary="all INT8", accuracy=interval, log_likelihood=interval, perplexity=interval, bits_per_byte=1.0,
            kl=0.1, top1_agreement=0.9, tied=dict(accuracy="a", log_likelihood="a"))
pair = dict(a="0", b="1", identical=False,
            accuracy=dict(difference=0.1, a_only=2, b_only=1, p=0.5, p_holm=0.5, detectable=0.1, samples_needed=9.0),
            log_likelihood=dict(difference=0.1, stderr=0.1, low=-0.1, high=0.3, p=0.3, p_holm=0.3, detectable=0.2, samples_needed=20.0))
step = dict(step="folding", **{"from": "1", "to": "0"}, ratio=1.1, perplexity=3.0, low=2.0, high=4.0)
report = dict(settings=settings, statistics=dict(alpha=0.05, power=0.8, resamples=100, seed=1), samples=3, target_tokens=3,
              modes=[mode, mode | dict(mode="1")], tied=dict(accuracy=[["0", "1"]], log_likelihood=[["0"], ["1"]]), costs=[step], pairs=[pair])


def results(name, **changed):
    case("results", name, json.dumps(report | changed))


results("valid")
results("no-modes", modes=[], pairs=[])
results("infinite", modes=[mode | dict(perplexity=interval | dict(high=1e308, low=-1e308))])

cost = dict(weight_bits=8, exact_functions=1, table_bits=0, state_bits=16, accumulator_bits=32, multiplier_bits=64)
design = dict(values={"linear.accumulator.bits": 24}, profile_hash="0", perplexity=30.0, kl=0.1, agreement=0.9, cost=cost)


def designs(name, *lines):
    case("designs", name, "".join(json.dumps(line) + "\n" for line in [{}, *lines]))


designs("valid", design, design | dict(values={"linear.accumulator.bits": 16}, perplexity=40.0))
designs("other-keys", design, design | dict(values={"other": [1, {"a": None}]}, perplexity=-1.0))
designs("nothing-done")
case("stored_scales", "no-scales", struct.pack("<Q", 2) + b"{}")
