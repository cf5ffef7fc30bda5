"""Each step of a block by itself, on arrays: the golden model for a testbench.

Codes are int8, accumulators any integers, scales numbers. L tokens, C channels, K taps, N states, I inputs, O outputs,
M the width of the residual stream. Arrays may have any strides. `profile` names the rules (a name, a file, a dict or a
Profile), `phase` is "prefill" or "decode", `implementation` "cuda" or "torch". The results are those of the
simulator's own steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Optional

import numpy as np
import numpy.typing as npt

from . import _scalescope
from ._scalescope import Error
from .rules import AnyProfile, Profile

Array = npt.NDArray[Any]

#: Rounding rules by their short names, for `quantize`; docs/arithmetic.md lists the parts.
RULES: dict[str, dict[str, str]] = {
    "nearest-even": {"quotient": "divide", "rounding": "nearest-ties-to-even", "overflow": "saturate"},
    "half-away": {"quotient": "divide", "rounding": "nearest-ties-away", "overflow": "saturate"},
}


def _by(profile: AnyProfile, implementation: str, phase: str) -> tuple[tuple[str, Optional[str]], str, str]:
    profile = Profile(profile)
    return (profile.name, profile.toml), implementation, phase


class _Shapes:
    """Arrays whose axes must fit together."""

    def __init__(self) -> None:
        self.axes: dict[str, tuple[int, str]] = {}

    def take(self, name: str, array: Any, dtype: Any, axes: str) -> Array:
        """`array` as it is, if its type is `dtype` and its axes have the lengths that others gave them."""
        found = np.asarray(array)
        names = axes.split()
        expected = f"expected {np.dtype(dtype).name} [{', '.join(names)}]"
        if found.dtype != dtype:
            raise Error(f"{name}: {expected}, found {found.dtype} {list(found.shape)}")
        if found.ndim != len(names) or 0 in found.shape:
            raise Error(f"{name}: {expected}, found {found.dtype} {list(found.shape)}")
        for axis, length in zip(names, found.shape):
            known, by = self.axes.setdefault(axis, (length, name))
            if known != length:
                raise Error(f"{name}: {expected} with {axis} = {known} as {by} has it, found {list(found.shape)}")
        return found


def _integers(name: str, array: Any) -> Array:
    found = np.asarray(array)
    if found.dtype.kind not in "iu" or (found.dtype == np.uint64 and (found > np.uint64(2**63 - 1)).any()):
        raise Error(f"{name}: expected integers of 64 bits, found {found.dtype} {list(found.shape)}")
    return found.astype(np.int64)


def _reals(name: str, array: Any) -> Array:
    """Real values in FP32; float64 only if nothing is lost, since rounding twice would be another rule."""
    found = np.asarray(array)
    if found.dtype == np.float64:
        narrow = found.astype(np.float32)
        if not np.array_equal(narrow.astype(np.float64), found, equal_nan=True):
            raise Error(f"{name}: expected float32 or float16 values, found float64 that FP32 does not hold")
        return narrow
    if found.dtype not in (np.float32, np.float16):
        raise Error(f"{name}: expected float32 or float16 values, found {found.dtype} {list(found.shape)}")
    return found.astype(np.float32)


def _halves(name: str, array: Any) -> Array:
    found = np.asarray(array)
    if found.dtype != np.float16:
        raise Error(f"{name}: expected float16 [L, channels], found {found.dtype} {list(found.shape)}")
    return found


def quantize(
    values: npt.ArrayLike,
    scale: float,
    rule: Optional[Any] = None,
    *,
    profile: AnyProfile = "exact",
    site: str = "requantize",
    implementation: str = "cuda",
    phase: str = "prefill",
) -> Array:
    """INT8 codes of real values (any shape) on the grid of `scale`.

    `rule` is a name of `RULES` or a dict of quotient, rounding and overflow; without it the rule that the profile has at
    `site`: norm_out, conv_in, conv_out, state, requantize, or a linear step.

    >>> quantize(np.float32([0.5, 1.5, -2.5, 300]), 1.0)
    array([  0,   2,  -2, 127], dtype=int8)
    >>> quantize(np.float32([0.5, 1.5, -2.5, 300]), 1.0, "half-away")
    array([  1,   2,  -3, 127], dtype=int8)
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise Error(f"rule: expected one of {', '.join(RULES)}, or a dict, found {rule}")
        rule = RULES[rule]
    if rule is not None and not isinstance(rule, Mapping):
        raise TypeError(f"rule: expected a name or a dict, found {type(rule).__name__}")
    text = None if rule is None else json.dumps(dict(rule))
    by = _by(profile, implementation, phase)
    return _scalescope.quantize(_reals("values", values), scale, text, by, site)[0]


def dequantize(codes: npt.ArrayLike, scale: float) -> Array:
    """Real values of codes, FP32: `f32(code) * f32(scale)`.

    >>> dequantize(np.int8([-2, 3]), 0.5)
    array([-1. ,  1.5], dtype=float32)
    """
    found = np.asarray(codes)
    if found.dtype != np.int8:
        raise Error(f"codes: expected int8, found {found.dtype} {list(found.shape)}")
    return found.astype(np.float32) * np.float32(scale)


def requantize(
    acc: npt.ArrayLike,
    s_in: float,
    s_weight: float,
    s_out: float,
    *,
    profile: AnyProfile = "exact",
    step: str = "x_proj",
    phase: str = "prefill",
) -> Array:
    """Codes of accumulators (integers of any shape), as a linear step's last stage makes them.

    >>> requantize([1000, -70000, 12], 0.02, 0.005, 0.1)
    array([  1, -70,   0], dtype=int8)
    """
    by = _by(profile, "cuda", phase)
    return _scalescope.requantize(_integers("acc", acc), s_in, s_weight, s_out, by, step)


def multiplier(
    s_in: float,
    s_weight: float,
    s_out: float,
    *,
    profile: AnyProfile = "asic-int8",
    step: str = "x_proj",
    phase: str = "prefill",
) -> Optional[tuple[int, int]]:
    """Integer multiplier and right shift of a requantizer; None where the profile scales in FP32."""
    factor = float(np.float32(s_in)) * float(np.float32(s_weight)) / float(np.float32(s_out))
    return _scalescope.multiplier(factor, _by(profile, "cuda", phase), step)


def linear(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    s_in: float,
    s_weight: float,
    s_out: Optional[float] = None,
    *,
    out: str = "float16",
    profile: AnyProfile = "exact",
    step: str = "in_proj",
    phase: str = "prefill",
) -> Array:
    """`x` int8 `[L, I]` times `weight` int8 `[O, I]` transposed: codes `[L, O]` on the grid of `s_out`, or without it
    real values as `out`, float16 or float32.
    """
    if out not in ("float16", "float32"):
        raise Error(f"out: expected float16 or float32, found {out}")
    shapes = _Shapes()
    x = shapes.take("x", x, np.int8, "L I")
    weight = shapes.take("weight", weight, np.int8, "O I")
    by = _by(profile, "cuda", phase)
    return _scalescope.linear_step(x, weight, s_in, s_weight, s_out, out == "float16", by, step)


def conv1d_silu(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    bias: npt.ArrayLike,
    s_x: float,
    s_weight: float,
    s_bias: float,
    s_out: Optional[float] = None,
    *,
    history: Optional[npt.ArrayLike] = None,
    profile: AnyProfile = "exact",
    implementation: str = "cuda",
    phase: str = "prefill",
) -> Array:
    """Causal convolution and SiLU: `x` int8 `[L, C]`, `weight` `[C, K]`, `bias` `[C]`; codes `[L, C]` on the grid of
    `s_out`, without it FP32. `history` are the `[K - 1, C]` inputs before the first, zeros by default.
    """
    shapes = _Shapes()
    x = shapes.take("x", x, np.int8, "L C")
    weight = shapes.take("weight", weight, np.int8, "C K")
    bias = shapes.take("bias", bias, np.int8, "C")
    before = (weight.shape[1] - 1, x.shape[1])
    if history is None:
        history = np.zeros(before, dtype=np.int8)
    history = np.asarray(history)
    if history.dtype != np.int8 or history.shape != before:
        raise Error(f"history: expected int8 {list(before)}, found {history.dtype} {list(history.shape)}")
    by = _by(profile, implementation, phase)
    return _scalescope.conv1d_silu(x, history, weight, bias, (s_x, s_weight, s_bias), s_out, by)


def selective_scan(
    u: npt.ArrayLike,
    dt: npt.ArrayLike,
    B: npt.ArrayLike,
    C: npt.ArrayLike,
    z: Optional[npt.ArrayLike],
    A_log: npt.ArrayLike,
    D: npt.ArrayLike,
    dt_bias: npt.ArrayLike,
    scales: Mapping[str, float],
    *,
    state: Optional[npt.ArrayLike] = None,
    profile: AnyProfile = "exact",
    implementation: str = "cuda",
    phase: str = "prefill",
) -> tuple[Array, Array]:
    """The selective scan: `u`, `dt`, `z` int8 `[L, E]`, `B`, `C` `[L, N]`, `A_log` `[E, N]`, `D`, `dt_bias` `[E]`.

    `scales` has one for each of u, dt, B, C, z, A_log, D, dt_bias, and for `state`, whose codes `[E, N]` are then read
    before the first token and given after the last. Gives y as float16 `[L, E]` and the state: int8, or FP32 without a
    scale. Without `z` the output is not gated.
    """
    names = ["u", "dt", "B", "C", "z", "A_log", "D", "dt_bias"]
    missing = [name for name in names if name not in scales and not (name == "z" and z is None)]
    if missing:
        raise Error(f"scales: expected one of each of {', '.join(names)}, found none of {', '.join(missing)}")
    shapes = _Shapes()
    u = shapes.take("u", u, np.int8, "L E")
    dt = shapes.take("dt", dt, np.int8, "L E")
    B, C = shapes.take("B", B, np.int8, "L N"), shapes.take("C", C, np.int8, "L N")
    z = None if z is None else shapes.take("z", z, np.int8, "L E")
    A_log = shapes.take("A_log", A_log, np.int8, "E N")
    if A_log.shape[1] > 256:
        raise Error(f"A_log: expected at most 256 states, found {A_log.shape[1]}")
    D, dt_bias = shapes.take("D", D, np.int8, "E"), shapes.take("dt_bias", dt_bias, np.int8, "E")
    state = None if state is None else shapes.take("state", state, np.int8, "E N")
    each = [float(scales.get(name, 1.0)) for name in names]
    by = _by(profile, implementation, phase)
    return _scalescope.scan([u, dt, B, C], z, A_log, D, dt_bias, state, each, scales.get("state"), by)


def rmsnorm_quantize(
    hidden: npt.ArrayLike,
    weight: npt.ArrayLike,
    scale: float,
    *,
    residual: Optional[npt.ArrayLike] = None,
    eps: float = 1e-5,
    profile: AnyProfile = "exact",
    phase: str = "prefill",
) -> tuple[Array, Array]:
    """Residual sum, RMSNorm, quantizer: `hidden` float16 `[L, M]`, `residual` float32 `[L, M]`, `weight` `[M]`. Gives the
    codes `[L, M]` and the residual stream float32 `[L, M]`.
    """
    shapes = _Shapes()
    hidden = shapes.take("hidden", _halves("hidden", hidden), np.float16, "L M")
    weight = shapes.take("weight", _reals("weight", weight), np.float32, "M")
    residual = None if residual is None else shapes.take("residual", residual, np.float32, "L M")
    return _scalescope.rmsnorm_quantize(hidden, residual, weight, eps, scale, _by(profile, "cuda", phase))


def hadamard_quantize(
    y: npt.ArrayLike, scale: float, *, profile: AnyProfile = "exact", phase: str = "prefill"
) -> Array:
    """Hadamard rotation of each row of `y`, float16 `[L, E]`, and its quantizer: codes `[L, E]`."""
    y = _Shapes().take("y", _halves("y", y), np.float16, "L E")
    return _scalescope.hadamard_quantize(y, scale, _by(profile, "cuda", phase))


def _function(name: str, values: npt.ArrayLike, by: Any) -> Array:
    values = _reals("values", values)
    return _scalescope.function(name, values.ravel(), by).reshape(values.shape)


def exp(values: npt.ArrayLike, *, profile: AnyProfile = "exact", implementation: str = "cuda", phase: str = "prefill") -> Array:
    """exp in FP32 as the profile's scan computes it; a chip's unit where the profile has one."""
    return _function("exp", values, _by(profile, implementation, phase))


def log1p(values: npt.ArrayLike, *, profile: AnyProfile = "exact", implementation: str = "cuda", phase: str = "prefill") -> Array:
    """log(1 + x) in FP32 as the profile's scan computes it."""
    return _function("log1p", values, _by(profile, implementation, phase))


def softplus(values: npt.ArrayLike, *, profile: AnyProfile = "exact", implementation: str = "cuda", phase: str = "prefill") -> Array:
    """log(1 + exp(x)) in FP32 as the profile's scan computes it.

    >>> softplus(np.float32([0, 30]))
    array([ 0.6931472, 30.       ], dtype=float32)
    """
    return _function("softplus", values, _by(profile, implementation, phase))


def silu(values: npt.ArrayLike, *, profile: AnyProfile = "exact", implementation: str = "cuda", phase: str = "prefill") -> Array:
    """x / (1 + exp(-x)) in FP32 as the profile's convolution computes it."""
    return _function("silu", values, _by(profile, implementation, phase))
