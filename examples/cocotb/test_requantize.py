"""Streams accumulators through rtl/requantize.sv; scalescope is the model."""

import cocotb
import numpy as np
from cocotb.triggers import Timer

from scalescope import ops

#: Input scale, weight scale, output scale of two steps. The factor of the second is a power of two, so that sums can lie in
#: the middle between two codes.
SCALES = (0.021, 0.0046, 0.083)
TIES = (0.5, 0.25, 8.0)
PROFILE = "asic-int8"


def accumulators(count, scales):
    """Small and large sums, the ends of the register, and the sums at or below the middle between two codes."""
    rng = np.random.default_rng(7)
    spread = rng.integers(-(2**31), 2**31, count) >> rng.integers(0, 31, count)
    multiplier, shift = ops.multiplier(*scales, profile=PROFILE)
    middles = [((2 * k + 1) << (shift - 1)) // multiplier for k in range(-130, 130)]
    return np.concatenate([spread, middles, [0, -1, 2**31 - 1, -(2**31)]])


async def stream(dut, values, multiplier, shift):
    """One accumulator every step of the simulator; the codes that come out."""
    dut.multiplier.value = multiplier
    dut.shift.value = shift
    codes = []
    for acc in values:
        dut.acc.value = int(acc) & 0xFFFF_FFFF
        await Timer(1, "step")
        out = dut.q.value
        codes.append(out.to_signed() if hasattr(out, "to_signed") else out.signed_integer)
    return np.array(codes, dtype=np.int8)


@cocotb.test()
async def every_code_is_the_models(dut):
    for scales in (SCALES, TIES):
        values = accumulators(4000, scales)
        multiplier, shift = ops.multiplier(*scales, profile=PROFILE)
        codes = await stream(dut, values, multiplier, shift)
        want = ops.requantize(values, *scales, profile=PROFILE)
        wrong = np.flatnonzero(codes != want)
        assert len(wrong) == 0, f"{len(wrong)} of {len(values)}, first acc {values[wrong[0]]}: {codes[wrong[0]]}, not {want[wrong[0]]}"
        assert len(set(want.tolist())) > 200, "the stream reaches most codes"


@cocotb.test()
async def a_fault_is_found(dut):
    values = accumulators(400, SCALES)
    multiplier, shift = ops.multiplier(*SCALES, profile=PROFILE)
    codes = await stream(dut, values, multiplier, shift - 1)
    wrong = np.flatnonzero(codes != ops.requantize(values, *SCALES, profile=PROFILE))
    assert len(wrong) > 100, f"only {len(wrong)} codes differ"
    cocotb.log.info("the fault was found: %d of %d codes differ", len(wrong), len(values))
