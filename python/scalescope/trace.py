"""Traces: the tensors of a run."""

from __future__ import annotations

import difflib
import json
import math
import os
from collections.abc import Iterator, Mapping
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from . import _scalescope
from ._scalescope import Error

Path = Union[str, "os.PathLike[str]"]


def points() -> list[str]:
    """The names of the trace points, in the order of the datapath (docs/trace-points.md)."""
    return _scalescope.points()


def near(name: str, known: list[str]) -> str:
    """What somebody may have meant by a name."""
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"; near it: {', '.join(found)}" if found else ""


class Trace(Mapping[str, npt.NDArray[Any]]):
    """The tensors of a run by name: `layer_07/conv_out`, `final/logits`, `step_3/layer_07/ssm_y`.

    Arrays are NumPy's own: INT8 codes as int8, binary16 as float16, FP32 as float32. Shapes are `[B, L, channels]`,
    states `[B, E, N]`, in decode steps `[B, 1, channels]`. docs/trace-points.md lists names, types and shapes.

    >>> import scalescope
    >>> trace = scalescope.load().run([5, 6, 7], mode="0", points=["conv_out", "logits"], layers=[0])
    >>> list(trace)
    ['tokens', 'layer_00/conv_out', 'final/logits']
    >>> trace.real("layer_00/conv_out").dtype
    dtype('float32')
    """

    def __init__(
        self,
        arrays: Mapping[str, npt.ArrayLike],
        scales: Optional[Mapping[str, float]] = None,
        meta: Optional[Mapping[str, Any]] = None,
    ) -> None:
        """A trace of one's own arrays: `tokens` or `prefill_tokens`, and tensors by their names."""
        self._arrays: dict[str, npt.NDArray[Any]] = {k: np.asarray(v) for k, v in arrays.items()}
        #: The step of INT8 tensors, by name.
        self.scales: dict[str, float] = dict(scales or {})
        #: Where the trace comes from: mode, profile, hash of its rules, digest of the model.
        self.meta: dict[str, Any] = dict(meta or {})
        #: Names in the file that are no names of tensors.
        self.unknown: list[str] = []
        #: Remarks on tensors that lie in the file in another type than their own.
        self.remarks: list[str] = []
        self._more: dict[str, Any] = {}

    @classmethod
    def _of(cls, parts: tuple[Any, ...], more: Optional[str] = None) -> "Trace":
        arrays, scales, meta, unknown, remarks = parts
        trace = cls({})
        trace._arrays, trace.scales = arrays, scales
        trace.meta = json.loads(meta) if meta else {}
        trace.unknown, trace.remarks = unknown, remarks
        trace._more = json.loads(more) if more else {}
        return trace

    @classmethod
    def open(cls, path: Path, *, map: Optional[Path] = None) -> "Trace":
        """Reads a trace: an .npz, a folder of exported vectors, a dict of tensors that torch.save wrote.

        With `map`, a mapping file (docs/mapping.md), a dump of any names, layouts and types, or a folder of them;
        `suggest_map` makes one to start from.
        """
        return cls._of(_scalescope.read_trace(os.fspath(path), None if map is None else os.fspath(map)))

    def save(self, path: Path, *, compress: bool = True) -> None:
        """Writes an .npz that every command reads. The file appears when it is whole."""
        arrays: list[tuple[str, npt.NDArray[Any]]] = list(self._arrays.items())
        for name, scale in self.scales.items():
            arrays.append((f"scale/{name}", np.asarray(scale, dtype=np.float32)))
        if self.meta:
            text = json.dumps(self.meta, separators=(",", ":"), ensure_ascii=False)
            arrays.append(("meta", np.frombuffer(text.encode(), dtype=np.uint8)))
        _scalescope.write_npz(os.fspath(path), arrays, compress)

    @property
    def tokens(self) -> npt.NDArray[Any]:
        """Token ids of the prefill, `[B, L]`."""
        for name in ("tokens", "prefill_tokens"):
            if name in self._arrays:
                return self._arrays[name]
        raise Error("tokens: expected token ids [B, L], found no such array")

    @property
    def points(self) -> list[str]:
        """The names of the tensors, without tokens."""
        return [name for name in self._arrays if "token" not in name.rpartition("/")[2]]

    def scale(self, name: str) -> Any:
        """The step of INT8 codes: a number, or an array `[B, L, 1]` where a quantizer found one for each token.

        None for a tensor that is not INT8.
        """
        array = self[name]
        if array.dtype != np.int8:
            return None
        if name in self.scales:
            return self.scales[name]
        # A decode step has the scales of the prefill.
        head, _, rest = name.partition("/")
        if head.startswith("step_") and rest in self.scales:
            return self.scales[rest]
        if f"{name}_scale" in self._arrays:
            return self._arrays[f"{name}_scale"]
        raise Error(f"scale of {name}: expected one in the trace, found none")

    def real(self, name: str) -> npt.NDArray[np.float32]:
        """The real values of a tensor in FP32: codes times their scale."""
        array = self[name].astype(np.float32)
        scale = self.scale(name)
        return array if scale is None else array * np.asarray(scale, dtype=np.float32)

    @property
    def log_likelihood(self) -> list[list[float]]:
        """Of each sequence, the log-likelihood of tokens 1, 2, … (runs only)."""
        return self._more.get("log_likelihood", [])

    @property
    def perplexity(self) -> list[float]:
        """exp(−mean log-likelihood) of each sequence (runs only); NaN of a single token."""

        def of(values: list[float]) -> float:
            # One after the other, as the command sums.
            total = 0.0
            for value in values:
                total += value
            return math.exp(-total / len(values)) if values else math.nan

        return [of(values) for values in self.log_likelihood]

    @property
    def quantizers(self) -> dict[str, dict[str, Any]]:
        """What every quantizer counted, over blocks and sequences (runs only)."""
        return self._more.get("quantizers", {})

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        try:
            return self._arrays[name]
        except KeyError:
            known = list(self._arrays)
            raise KeyError(f"{name}: no such tensor in the trace{near(name, known)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __repr__(self) -> str:
        size = sum(array.nbytes for array in self._arrays.values())
        facts = "".join(f", {k} {self.meta[k]}" for k in ("mode", "profile") if k in self.meta)
        return f"<Trace: {len(self.points)} tensors, {size / 1e6:.1f} MB{facts}>"

    def _repr_html_(self) -> str:
        from html import escape

        from .results import table

        def row(name: str) -> dict[str, Any]:
            array = self._arrays[name]
            largest = float(np.abs(array.astype(np.float32)).max()) if array.size else None
            return {
                "tensor": name,
                "type": str(array.dtype),
                "shape": str(list(array.shape)),
                "scale": self.scales.get(name),
                "largest": largest,
            }

        return f"<p>{escape(repr(self))}</p>{table([row(name) for name in self])}"
