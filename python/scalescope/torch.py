"""A recorder for somebody's torch model: its tensors as a trace in our names, layouts and types.

    import scalescope.torch

    with scalescope.torch.record(model, "dump.npz"):
        model(input_ids)                  # prefill; later calls with one token each are decode steps

    scalescope.load("quantized").attribute("dump.npz", mode="2-4")

`TABLE` says which call of which module shows which trace point. It knows Quamba's quantized modules, whose methods are
called directly so that forward hooks see nothing, `mamba_ssm`'s Mamba, and MambaForCausalLM of transformers. Rows for a
fork's own classes are given as `rows=`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Callable, Optional, Union

import numpy as np
import numpy.typing as npt

from ._scalescope import Error
from .trace import Path, Trace, points

__all__ = ["TABLE", "Row", "Recorder", "record"]


@dataclass(frozen=True)
class Row:
    """One call of a module, and the tensor that it shows.

    `owner` and `module`: class names of the module and of the one that holds it, a base class's name too, or `*`;
    `attribute`: its name there. `method`: what is called. `take`: `result`, `result 1` of a tuple, `argument 0` or
    `argument residual` before the call, `after 1` an argument that the call changes. `point`: a trace point, or one for
    INT8 and one for other types as `conv_out|conv_out_f32`. `layout`: `bld` (`[B, L, D]`, in decode also `[B, D]`, or
    `[B·L, D]`), `bdl` (`[B, D, L]`), `state` (`[B, E, N]`), `bl` (a number for each token). `scale`: where the step of
    codes is found from the owner on, as `conv1d.output_scale`. `call`: the how manieth call in a pass. `unless`: a
    point that makes this one idle where it was seen in the same block.
    """

    owner: str
    attribute: str
    method: str
    take: str
    point: str
    layout: str = "bld"
    scale: Optional[str] = None
    module: str = "*"
    call: Optional[int] = None
    unless: Optional[str] = None


#: Quamba's mixers of Mamba-1; a class of a fork that derives from one is one.
_QUAMBA = ("W8A8QMamba", "W4A8QMamba")


def _quamba(owner: str) -> list[Row]:
    return [
        Row(owner, "in_proj", "to_seqlen_last", "result", "in_proj_out", "bdl", "conv1d.input_scale"),
        Row(owner, "in_proj", "forward", "result", "in_proj_out", "bld", "conv1d.input_scale"),
        Row(owner, "conv1d", "forward", "result", "conv_out|conv_out_f32", "bdl", "conv1d.output_scale"),
        Row(owner, "conv1d", "update", "result", "conv_out|conv_out_f32", "bdl", "conv1d.output_scale"),
        Row(owner, "conv1d", "update", "argument 1", "conv_state_in", "state", "conv1d.input_scale"),
        Row(owner, "conv1d", "update", "after 1", "conv_state_out", "state", "conv1d.input_scale"),
        Row(owner, "x_proj", "forward", "argument 0", "x_proj_in", "bld", "conv1d.output_scale", unless="conv_out"),
        Row(owner, "x_proj", "forward", "result", "x_proj_out", "bld", "selective_scan.B_scale"),
        Row(owner, "dt_proj", "to_seqlen_last", "result", "dt_proj_out", "bdl", "selective_scan.dt_scale"),
        Row(owner, "dt_proj", "forward", "result", "dt_proj_out", "bld", "selective_scan.dt_scale"),
        Row(owner, "selective_scan", "forward", "argument 0", "ssm_u", "bdl", "selective_scan.u_scale"),
        Row(owner, "selective_scan", "forward", "result 0", "ssm_y", "bdl"),
        Row(owner, "selective_scan", "update", "argument 0", "ssm_state_in", "state", "selective_scan.ssm_state_scale"),
        Row(owner, "selective_scan", "update", "argument 1", "ssm_u", "bdl", "selective_scan.u_scale"),
        Row(owner, "selective_scan", "update", "result 0", "ssm_y", "bdl"),
        Row(owner, "selective_scan", "update", "result 1", "ssm_state_out", "state", "selective_scan.ssm_state_scale"),
        Row(owner, "had", "forward", "result", "had_out", "bld", "had.x_H_scale"),
        Row(owner, "out_proj", "forward", "result", "out_proj_out", "bld"),
    ]


#: Which call shows which point.
TABLE: tuple[Row, ...] = (
    # Ends, in every family.
    Row("*", "embedding", "forward", "argument 0", "tokens"),
    Row("*", "embeddings", "forward", "argument 0", "tokens"),
    Row("*", "lm_head", "forward", "result", "logits"),
    # Quamba: the norm that quantizes stands beside the mixer.
    Row("*", "norm", "forward", "argument 0", "hidden_in", module="QRMSNorm"),
    Row("*", "norm", "forward", "argument residual", "residual_in", module="QRMSNorm"),
    Row("*", "norm", "forward", "result 0", "norm_out", "bld", "norm.output_scale", module="QRMSNorm"),
    Row("*", "norm", "forward", "result 1", "residual_out", module="QRMSNorm"),
    *(row for owner in _QUAMBA for row in _quamba(owner)),
    # mamba_ssm: with the fused kernel only the ends of the mixer are seen; x_proj gets [B·L, E].
    Row("*", "mixer", "forward", "argument 0", "norm_out", module="Mamba"),
    Row("Mamba", "x_proj", "forward", "argument 0", "conv_out_f32"),
    Row("Mamba", "x_proj", "forward", "result", "x_proj_out"),
    Row("Mamba", "out_proj", "forward", "argument 0", "ssm_y"),
    Row("*", "mixer", "forward", "result", "out_proj_out", module="Mamba"),
    # transformers: dt_proj adds its bias, so its point is not seen; SiLU is called on the convolution first.
    Row("*", "norm", "forward", "argument 0", "residual_out", module="MambaRMSNorm"),
    Row("*", "mixer", "forward", "argument 0", "norm_out", module="MambaMixer"),
    Row("MambaMixer", "in_proj", "forward", "result", "in_proj_out"),
    Row("MambaMixer", "act", "forward", "result", "conv_out_f32", "bdl", call=0),
    # In version 5 SiLU is a part of the convolution's function.
    Row("MambaMixer", "x_proj", "forward", "argument 0", "conv_out_f32", unless="conv_out_f32"),
    Row("MambaMixer", "x_proj", "forward", "result", "x_proj_out"),
    Row("MambaMixer", "out_proj", "forward", "argument 0", "ssm_y"),
    Row("MambaMixer", "out_proj", "forward", "result", "out_proj_out"),
)


def _array(tensor: Any, what: str) -> npt.NDArray[Any]:
    """A copy of a tensor in NumPy; bfloat16, which NumPy lacks, as float32, which holds it."""
    if hasattr(tensor, "detach"):
        tensor = tensor.detach()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        tensor = tensor.cpu().numpy()
    array = np.array(tensor)
    if array.dtype.kind not in "iu" and array.dtype not in (np.float16, np.float32):
        raise Error(f"{what}: expected INT8 codes, float16, bfloat16 or float32, found {array.dtype}")
    return array


def _names(module: Any) -> set[str]:
    return {"*", *(cls.__name__ for cls in type(module).__mro__)}


def _number(value: Any) -> Optional[float]:
    """A step as a float; None for what is no single number."""
    try:
        value = float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return value if value > 0 else None


class Recorder:
    """What is recorded while a `with` block of `record` runs; `trace` afterwards."""

    def __init__(self, model: Any, path: Optional[Path], rows: tuple[Row, ...], only: Optional[set[str]]) -> None:
        self._model, self._path, self._rows, self._only = model, path, rows, only
        self._undo: list[Callable[[], None]] = []
        #: One dict a pass: the prefill first, then the decode steps.
        self._passes: list[dict[tuple[Optional[int], str], npt.NDArray[Any]]] = []
        self._tokens: list[npt.NDArray[Any]] = []
        self._scales: dict[tuple[Optional[int], str], float] = {}
        self._calls: dict[tuple[int, int], int] = {}
        #: The trace, once the block has ended without an exception.
        self.trace: Optional[Trace] = None

    def __enter__(self) -> "Recorder":
        modules = dict(self._model.named_modules())
        for name, module in modules.items():
            owner_name, _, attribute = name.rpartition(".")
            owner = modules.get(owner_name, self._model)
            fitting = [
                row
                for row in self._rows
                if row.attribute == attribute and row.module in _names(module) and row.owner in _names(owner)
            ]
            for method in dict.fromkeys(row.method for row in fitting):
                self._wrap(name, module, owner, method, [row for row in fitting if row.method == method])
        if not self._undo:
            found = sorted({type(module).__name__ for module in modules.values()})
            raise Error(f"model: expected modules that a row of the table names, found {', '.join(found)}")
        return self

    def _wrap(self, name: str, module: Any, owner: Any, method: str, rows: list[Row]) -> None:
        inner = getattr(module, method, None)
        if inner is None:
            return
        number = re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)(?:\.|$)", name)
        layer = int(number.group(1)) if number else getattr(owner, "layer_idx", None)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for row in rows:
                self._see(row, layer, name, owner, "argument", args, kwargs, None)
            result = inner(*args, **kwargs)
            for row in rows:
                self._see(row, layer, name, owner, "after", args, kwargs, None)
                self._see(row, layer, name, owner, "result", args, kwargs, result)
            self._calls[id(module), len(self._passes)] = self._calls.get((id(module), len(self._passes)), 0) + 1
            return result

        # On the instance, where calls by the module and by name both find it.
        own = module.__dict__.get(method)
        object.__setattr__(module, method, wrapper)

        def undo() -> None:
            if own is None:
                object.__delattr__(module, method)
            else:
                object.__setattr__(module, method, own)

        self._undo.append(undo)

    def _see(
        self, row: Row, layer: Any, name: str, owner: Any, kind: str, args: Any, kwargs: Any, result: Any
    ) -> None:
        taken, _, at = row.take.partition(" ")
        if taken != kind:
            return
        if kind == "result":
            is_tuple = isinstance(result, (tuple, list))
            index = int(at or 0)
            if not is_tuple and index > 0:
                return
            tensor = result[index] if is_tuple and index < len(result) else None if is_tuple else result
        else:
            tensor = (args[int(at)] if int(at) < len(args) else None) if at.isdigit() else kwargs.get(at)
        if tensor is None or not hasattr(tensor, "shape"):
            return
        if row.point == "tokens":
            ids = np.atleast_2d(_array(tensor, f"tokens of {name}"))
            self._tokens.append(ids)
            self._passes.append({})
            return
        if not self._passes:
            raise Error(f"{name}: expected the embedding of token ids before it, found none in the model's call")
        module_id = id(getattr(owner, row.attribute, None))
        if row.call is not None and self._calls.get((module_id, len(self._passes)), 0) != row.call:
            return
        array = _array(tensor, name)
        names = row.point.split("|")
        point = names[0] if array.dtype == np.int8 else names[-1]
        place = (layer if point not in ("residual", "norm_f_out", "logits") else None, point)
        seen = self._passes[-1]
        if self._only is not None and point not in self._only:
            return
        if row.unless is not None and (place[0], row.unless) in seen:
            return
        seen[place] = self._laid(array, row.layout, name)
        if array.dtype == np.int8 and row.scale is not None:
            value: Any = owner
            for part in row.scale.split("."):
                value = getattr(value, part, None)
            step = _number(value)
            if step is not None:
                self._scales[place] = step

    def _laid(self, array: npt.NDArray[Any], layout: str, name: str) -> npt.NDArray[Any]:
        batch, length = self._tokens[-1].shape
        shape = array.shape
        if layout == "state" and array.ndim == 3:
            return array
        if layout == "bl":
            array = array.reshape(batch, length, 1)
        elif array.ndim == 2 and length == 1 and shape[0] == batch:
            array = array[:, None, :]
        elif array.ndim == 2 and shape[0] == batch * length:
            array = array.reshape(batch, length, -1)
        elif layout == "bdl" and array.ndim == 3:
            array = array.transpose(0, 2, 1)
        if array.ndim != 3 or array.shape[:2] != (batch, length):
            raise Error(f"{name}: expected a tensor of {batch} sequences and {length} tokens as {layout}, found {list(shape)}")
        return np.ascontiguousarray(array)

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        if kind is None:
            self.trace = self._made()
            if self._path is not None:
                self.trace.save(self._path)

    def _made(self) -> Trace:
        if not self._passes or not any(self._passes):
            raise Error("record: expected a call of the model inside the block, found none")
        order = {point: i for i, point in enumerate(points())}

        def key(place: tuple[Optional[int], str]) -> str:
            layer, point = place
            return f"final/{point}" if layer is None else f"layer_{layer:02}/{point}"

        def in_order(place: tuple[Optional[int], str]) -> tuple[Any, ...]:
            layer, point = place
            return (layer is None, layer or 0, order.get(point, len(order)))

        arrays: dict[str, Any] = {}
        many = len(self._passes) > 1
        prefill = np.ascontiguousarray(self._tokens[0], dtype=np.int32)
        arrays["prefill_tokens" if many else "tokens"] = prefill
        for place in sorted(self._passes[0], key=in_order):
            arrays[key(place)] = self._passes[0][place]
        for step, (seen, tokens) in enumerate(zip(self._passes[1:], self._tokens[1:])):
            if tokens.shape[1] != 1:
                raise Error(f"call {step + 2} of the model: expected one token a sequence, found {tokens.shape[1]}")
            arrays[f"step_{step}/token"] = tokens[:, 0].astype(np.int32)
            for place in sorted(seen, key=in_order):
                layer, point = place
                arrays[f"step_{step}/{point if layer is None else key(place)}"] = seen[place]
        scales = {key(place): self._scales[place] for place in sorted(self._scales, key=in_order)}
        found = type(self._model)
        return Trace(arrays, scales, {"recorded": f"{found.__module__}.{found.__qualname__}"})


def record(
    model: Any,
    path: Optional[Path] = None,
    *,
    rows: Iterable[Row] = (),
    points: Union[None, str, Iterable[str]] = None,
) -> Recorder:
    """Records what `model` (a torch module) computes in a `with` block, and writes it to `path` at its end.

    Methods of the model's modules are wrapped for the time of the block, and nothing is written if it ends with an
    exception. `rows` go before those of `TABLE`; `points` keeps some points only. The first call of the model is the
    prefill, each later one a decode step.
    """
    only = None if points is None else {points} if isinstance(points, str) else set(points)
    return Recorder(model, path, (*rows, *TABLE), only)
