#!/usr/bin/env python3
"""Makes the first cases of the corpus `torch`: small files as torch.save writes them, made by Python's own
pickle without torch, and hostile ones.

    python fuzz/torch_seeds.py
"""

import io
import os
import pickle
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus" / "torch"
CORPUS.mkdir(parents=True, exist_ok=True)

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


def case(name, data):
    (CORPUS / name).write_bytes(data)


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
