"""The steps by themselves: against the recorded vectors of the deployed kernels, the tensors of runs, and NumPy."""

import json

import numpy as np
import pytest

import scalescope
from scalescope import Trace, ops

from conftest import ROOT

VECTORS = ROOT / "golden" / "data" / "ops"
rng = np.random.default_rng(20261128)


def codes(*shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


def cases(file):
    """The cases of a file of vectors, as dicts."""
    with np.load(VECTORS / file) as npz:
        found = {}
        for name in npz.files:
            case, _, key = name.rpartition("/")
            found.setdefault(case, {})[key] = npz[name]
    found.pop("", None) if len(found) > 1 else None
    assert found
    return list(found.values())


def scale(case, name):
    return float(case[f"scale_{name}"])


def test_convolution_of_the_kernels():
    compared = 0
    for case in cases("conv1d_silu.npz"):
        args = [scale(case, n) for n in ("x", "w", "b")]
        for x, out, real in zip(case["x"], case["out"], case.get("out_f32", case["out"])):
            got = ops.conv1d_silu(x, case["weight"], case["bias"], *args, scale(case, "out"), profile="deployed")
            assert np.array_equal(got, out)
            if "out_f32" in case:
                got = ops.conv1d_silu(x, case["weight"], case["bias"], *args, profile="deployed")
                assert np.array_equal(got, real)
            compared += got.size
    assert compared > 1000


def test_scan_of_the_kernels():
    compared = 0
    for case in cases("selective_scan.npz"):
        names = {"u": "u", "dt": "dt", "B": "B", "C": "C", "z": "z", "A_log": "A_log", "D": "D", "dt_bias": "dt_bias"}
        scales = {name: scale(case, key) for name, key in names.items()}
        scales["state"] = scale(case, "ssm_state")
        for b in range(len(case["u"])):
            y, state = ops.selective_scan(
                *(case[n][b] for n in ("u", "dt", "B", "C", "z")),
                case["A_log"], case["D"], case["dt_bias"], scales, profile="deployed",
            )
            assert np.array_equal(y, case["y"][b])
            if "state" in case:
                assert np.array_equal(state, case["state"][b])
            compared += y.size
    assert compared > 1000


def test_norm_of_the_kernels():
    compared = 0
    for case in cases("rmsnorm_quant.npz"):
        got, stream = ops.rmsnorm_quantize(
            case["x"], case["weight"], float(case["scale"]), residual=case["residual"], eps=float(case["eps"])
        )
        assert np.array_equal(got, case["out"]) and np.array_equal(stream, case["residual_out"])
        compared += got.size
    assert compared > 1000


@pytest.mark.parametrize("profile", ["exact", "deployed", "asic-int8"])
def test_hadamard_is_that_of_a_run(model, tokens, profile):
    trace = model.run(tokens, mode="0", profile=profile, layers=[0, 7], points=["ssm_y", "had_out"])
    for layer in ("layer_00", "layer_07"):
        y, out = trace[f"{layer}/ssm_y"][0], trace[f"{layer}/had_out"][0]
        assert np.array_equal(ops.hadamard_quantize(y, trace.scale(f"{layer}/had_out"), profile=profile), out)


def test_linear_by_hand():
    x, w = codes(7, 64), codes(32, 64)
    acc = x.astype(np.int64) @ w.T.astype(np.int64)
    a, b = np.float32(np.float32(0.02) / np.float32(0.4)), np.float32(0.01)
    real = {"x_proj": a * (b * acc.astype(np.float32)), "in_proj": b * (a * acc.astype(np.float32))}
    for step, v in real.items():
        want = np.clip(np.rint(v), -128, 127).astype(np.int8)
        assert np.array_equal(ops.linear(x, w, 0.02, 0.01, 0.4, step=step), want)
        assert np.array_equal(ops.requantize(acc, 0.02, 0.01, 0.4, step=step), want)
    for profile in ("asic-int8", "tflite-single", "tflite-double", "pow2"):
        whole = ops.linear(x, w, 0.02, 0.01, 0.4, profile=profile, step="x_proj")
        assert np.array_equal(ops.requantize(acc, 0.02, 0.01, 0.4, profile=profile), whole)
    multiplier, shift = ops.multiplier(0.02, 0.01, 0.4, profile="asic-int8")
    by_hand = np.clip((acc * multiplier + (1 << (shift - 1))) >> shift, -128, 127)
    assert np.array_equal(ops.requantize(acc, 0.02, 0.01, 0.4, profile="asic-int8"), by_hand)
    assert ops.multiplier(0.02, 0.01, 0.4, profile="exact") is None


def test_quantizers():
    v = rng.normal(0, 40, 1000).astype(np.float32)
    assert np.array_equal(ops.quantize(v, 0.5), np.clip(np.rint(v / np.float32(0.5)), -128, 127))
    wrap = {"quotient": "divide", "rounding": "nearest-ties-to-even", "overflow": "wrap"}
    assert np.array_equal(ops.quantize(v, 0.25, wrap), np.rint(v / np.float32(0.25)).astype(np.int64).astype(np.int8))
    assert np.array_equal(ops.quantize(v.reshape(10, 100)[::-1, ::2], 0.5), ops.quantize(v, 0.5).reshape(10, 100)[::-1, ::2])
    with pytest.raises(scalescope.Error, match="rounding"):
        ops.quantize(v, 1.0, {"quotient": "divide", "rounding": "nearest", "overflow": "wrap"})


def test_functions():
    x = np.linspace(-20, 20, 4001, dtype=np.float32)
    for name, true in (("exp", np.exp), ("softplus", lambda v: np.where(v > 20, v, np.log1p(np.exp(v)))),
                       ("silu", lambda v: v / (1 + np.exp(-v)))):
        got = getattr(ops, name)(x)
        np.testing.assert_allclose(got, true(x.astype(np.float64)), rtol=4e-7, atol=1e-30)
        assert getattr(ops, name)(x.reshape(1, -1)).shape == (1, 4001)
    assert not np.array_equal(ops.exp(-abs(x), profile="asic-int8"), ops.exp(-abs(x)))
    assert not np.array_equal(ops.exp(x, profile="deployed"), ops.exp(x))


@pytest.mark.parametrize("wrong", [
    lambda x, w: ops.linear(x.astype(np.int32), w, 1, 1),
    lambda x, w: ops.linear(x, w[:, :5], 1, 1),
    lambda x, w: ops.linear(x[0], w, 1, 1),
    lambda x, w: ops.linear(x, w, 0.0, 1),
    lambda x, w: ops.linear(x, w, 1, 1, float("nan")),
    lambda x, w: ops.linear(x, w, 1, 1, step="conv"),
    lambda x, w: ops.linear(x[:0], w, 1, 1),
    lambda x, w: ops.requantize([1.5], 1, 1, 1),
    lambda x, w: ops.requantize([2**40], 1, 1, 1),
    lambda x, w: ops.requantize(np.array([2**63], np.uint64), 1, 1, 1),
    lambda x, w: ops.quantize([0.1], 1.0),
    lambda x, w: ops.quantize(np.float32([1]), -1.0),
    lambda x, w: ops.conv1d_silu(x, codes(8, 9), codes(8), 1, 1, 1),
    lambda x, w: ops.conv1d_silu(x, codes(8, 4), codes(8), 1, 1, 1, history=codes(4, 8)),
    lambda x, w: ops.hadamard_quantize(np.zeros((2, 7), np.float16), 1.0),
    lambda x, w: ops.rmsnorm_quantize(np.zeros((2, 8), np.float32), np.ones(8, np.float32), 1.0),
    lambda x, w: ops.linear(x, w, 1, 1, phase="training"),
])
def test_bad_input(wrong):
    with pytest.raises(scalescope.Error, match="expected .*found"):
        wrong(codes(3, 8), codes(4, 8))
