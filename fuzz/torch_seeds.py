#!/usr/bin/env python3
"""Makes the first cases of the corpora `torch` and `quamba`: small files as torch.save writes them, made by
Python's own pickle without torch, and hostile ones.

    python fuzz/torch_seeds.py
"""

import io
import math
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"

# What a pickle of tensors names, under torch's names.
torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
sys.modules |= {"torch": torch, "torch._utils": utils}
for kind in ("Half", "Float", "Char", "Int", "Long", "BFloat16"):
    setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))


def _rebuild_tensor_v2():
    pass


_rebuild_tensor_v2.__module__ = "torch._utils"
utils._rebuild_tensor_v2 = _rebuild_tensor_v2


class Storage:
    def __init__(self, kind, data, elements):
        self.kind, self.data, self.elements = kind, data, elements


class Tensor:
    def __init__(self, storage, shape, strides, offset=0):
        self.storage, self.shape, self.strides, self.offset = storage, shape, strides, offset

    def __reduce__(self):
        return _rebuild_tensor_v2, (self.storage, self.offset, self.shape, self.strides, False, OrderedDict())


def archive(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        for name, data in members:
            file.writestr(zipfile.ZipInfo(name), data, method)
    return out.getvalue()


def saved(value, protocol=2, byteorder=b"little", method=zipfile.ZIP_STORED, cut=0):
    storages, out = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            if not isinstance(thing, Storage):
                return None
            if thing not in storages:
                storages.append(thing)
            key = str(storages.index(thing))
            return "storage", getattr(torch, thing.kind), key, "cpu", thing.elements

    Pickler(out, protocol).dump(value)
    members = [("m/data.pkl", out.getvalue()), ("m/byteorder", byteorder)]
    members += [(f"m/data/{i}", s.data[:len(s.data) - cut]) for i, s in enumerate(storages)]
    return archive([*members, ("m/version", b"3\n")], method)


def case(name, data, target="torch"):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


codes = Storage("CharStorage", bytes(range(12)), 12)
halves = Storage("HalfStorage", struct.pack("<4e", 1, -2, 0.5, 65504), 4)
numbers = Storage("LongStorage", struct.pack("<3q", 5, -6, 7), 3)


def model(**others):
    dictionary = OrderedDict(
        [("columns", Tensor(codes, (4, 3), (1, 4))), ("rows", Tensor(codes, (3, 4), (4, 1))),
         ("inner", Tensor(codes, (2, 2), (4, 1), 5)), ("halves", Tensor(halves, (4,), (1,))),
         ("ids", Tensor(numbers, (1, 3), (3, 1))), ("scale", 0.25), ("layers", 3), ("nothing", None), *others.items()])
    dictionary._metadata = OrderedDict([("", {"version": 1})])
    return dictionary


for protocol in (2, 3, 4, 5):
    case(f"protocol-{protocol}", saved(model(), protocol))
case("a-plain-dict", saved(dict(model())))
case("asks-for-system", archive([("m/data.pkl", pickle.dumps({"a": os.system}, 2))]))
case("asks-for-eval", archive([("m/data.pkl", pickle.dumps({"a": eval}, 4))]))
case("a-stride-beyond", saved(model(far=Tensor(codes, (4, 3), (1, 5)))))
case("an-offset-beyond", saved(model(far=Tensor(codes, (4, 3), (1, 4), 1))))
case("one-element-a-billion-times", saved(model(wide=Tensor(codes, (1 << 30,), (0,)))))
case("shapes-that-overflow", saved(model(wide=Tensor(codes, (1 << 62, 1 << 62, 0), (1 << 62, 1, 1)))))
case("one-storage-a-hundred-times", saved(model(**{f"copy{i}": Tensor(codes, (12,), (1,)) for i in range(100)})))
case("a-storage-cut-short", saved(model(), cut=1))
case("big-endian", saved(model(), byteorder=b"big"))
case("a-bomb", saved(model(zeros=Tensor(Storage("CharStorage", bytes(1 << 20), 1 << 20), (1 << 20,), (1,))),
                     method=zipfile.ZIP_DEFLATED))
case("legacy", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.")
case("two-of-one-name", archive([("m/data.pkl", b"\x80\x02}(X\x01\0\0\0aK\x01X\x01\0\0\0aK\x02u.")]))
case("deep", archive([("m/data.pkl", b"\x80\x02)" + b"\x85" * 2000 + b"q\0" * 100 + b".")]))
case("marks", archive([("m/data.pkl", b"\x80\x02" + b"(" * 1000 + b"t" * 1000 + b".")]))

# The model of `SMALL` in readers.rs: M = 16, E = 32, N = 4, R = 2, one block, eight tokens.
M, E, N, R, V, K = 16, 32, 4, 2, 8, 4


def f16(*shape):
    count = math.prod(shape)
    return dense(Storage("HalfStorage", struct.pack(f"<{count}e", *[1.0] * count), count), shape)


def i8(*shape):
    count = math.prod(shape)
    return dense(Storage("CharStorage", bytes(count), count), shape)


def f32(shape, value):
    return dense(Storage("FloatStorage", struct.pack("<f", value), 1), shape)


def dense(storage, shape):
    strides, step = [], 1
    for length in reversed(shape):
        strides.insert(0, step)
        step *= length
    return Tensor(storage, tuple(shape), tuple(strides))


def linear(name, outputs, inputs, a):
    padded = (outputs + 15) // 16 * 16
    weight = Tensor(Storage("CharStorage", bytes(inputs * padded), inputs * padded), (inputs, padded), (1, inputs))
    return {f"{name}.weight": weight, f"{name}.a": f32((1, 1), a), f"{name}.b": f32((1, 1), 0.5), f"{name}.alpha": a / 2}


# Every scale is 1/2.
scan = {f"{n}_scale": f32((), 0.5) for n in ("A", "D", "dt_bias", "u", "z", "B", "C", "dt", "ssm_state")}
scan |= {"A_log": i8(E, N), "D": i8(E), "dt_bias": i8(E)}
conv = {f"{n}_scale": 0.5 for n in ("weight", "bias", "input", "output")} | {"weight": i8(E, K), "bias": i8(E)}
mixer = {f"conv1d.{k}": v for k, v in conv.items()} | {f"selective_scan.{k}": v for k, v in scan.items()}
mixer |= linear("in_proj", 2 * E, M, 1.0) | linear("x_proj", R + 2 * N, E, 1.0) | linear("dt_proj", E, R, 1.0)
mixer |= linear("out_proj", M, E, 0.5) | {"had.x_H_scale": 0.5}
block = {"norm.weight": f16(M), "norm.output_scale": 0.5} | {f"mixer.{k}": v for k, v in mixer.items()}
blocks = {f"backbone.layers.0.{k}": v for k, v in block.items()} | {"backbone.norm_f.weight": f16(M)}
ends = {"backbone.embedding.weight": f16(V, M), "lm_head.weight": f16(V, M)}
int8 = {"backbone.embedding.weight": i8(V, M), "backbone.embedding.scales": f16(V), "backbone.norm_f.output_scale": 0.5}
case("w8a8", saved(OrderedDict(blocks | ends)), "quamba")
case("w8a8-int8-ends", saved(OrderedDict(blocks | int8 | linear("lm_head", V, M, 0.5))), "quamba")
case("w4a16", saved({"backbone.layers.0.mixer.in_proj.scale": f16(1, 64), "backbone.layers.0.mixer.x_proj.scale": f16(1)}), "quamba")
floats = {"backbone.embedding.weight": f16(V, M), "backbone.norm_f.weight": f16(M), "backbone.layers.0.norm.weight": f16(M)}
floats |= {f"backbone.layers.0.mixer.{k}": v for k, v in {
    "in_proj.weight": f16(2 * E, M), "conv1d.weight": f16(E, 1, K), "conv1d.bias": f16(E), "x_proj.weight": f16(R + 2 * N, E),
    "dt_proj.weight": f16(E, R), "dt_proj.bias": f16(E), "A_log": f16(E, N), "D": f16(E), "out_proj.weight": f16(M, E)}.items()}
case("float", saved(OrderedDict(floats)), "quamba")
