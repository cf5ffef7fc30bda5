import subprocess
import sys

import numpy as np
import pytest

import scalescope
from scalescope import Trace


def test_arrays_are_numpys_own(model, tokens, tmp_path):
    trace = model.run(tokens, mode="0")
    codes = trace["layer_00/conv_out"]
    assert codes.dtype == np.int8 and codes.shape == (1, len(tokens), model.config["d_inner"])
    assert codes is trace["layer_00/conv_out"] and codes.flags.writeable and codes.flags.c_contiguous
    assert np.array_equal(np.from_dlpack(codes), codes)
    scale = trace.scale("layer_00/conv_out")
    assert np.array_equal(trace.real("layer_00/conv_out"), codes.astype(np.float32) * np.float32(scale))
    assert trace["layer_00/ssm_y"].dtype == np.float16 and trace.scale("layer_00/ssm_y") is None
    assert trace.tokens.tolist() == [tokens.tolist()]
    path = tmp_path / "t.npz"
    trace.save(path, compress=False)
    again = Trace.open(path)
    assert list(again) == list(trace) and again.scales == trace.scales and again.meta == trace.meta
    assert all(np.array_equal(again[name], trace[name]) for name in trace)
    with np.load(path) as file:
        assert set(trace) <= set(file.files)
    assert "layer_00/conv_out" in trace._repr_html_()


def test_scales_that_are_found_at_run_time(model, tokens):
    trace = model.run(tokens, mode="3")
    scale = trace.scale("layer_00/conv_in")
    assert isinstance(scale, np.ndarray) and scale.ndim == 3
    real = trace["layer_00/conv_in"].astype(np.float32) * scale
    assert np.array_equal(trace.real("layer_00/conv_in"), real)


def test_batches_are_their_sequences(model, tokens):
    both = model.run(np.stack([tokens, tokens[::-1]]), mode="2-4", points=["ssm_y", "logits"])
    for row, ids in enumerate([tokens, tokens[::-1]]):
        alone = model.run(ids, mode="2-4", points=["ssm_y", "logits"])
        assert all(np.array_equal(both[name][row], alone[name][0]) for name in alone.points)


def test_strides_and_types_of_tokens(model, tokens):
    want = model.run(tokens, mode="0", points="logits")["final/logits"]
    spread = np.zeros((len(tokens), 3), dtype=np.int64)
    spread[:, 1] = tokens
    for ids in (tokens.tolist(), spread[:, 1], tokens.astype(np.int16), tokens[::-1].copy()[::-1], [tokens.tolist()]):
        assert np.array_equal(model.run(ids, mode="0", points="logits")["final/logits"], want)


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory as Linux counts it")
def test_a_hundred_megabytes_are_not_copied(tmp_path):
    """Peak memory of opening: the file's arrays once, and what reading needs on the way."""
    path = tmp_path / "big.npz"
    length, width = 8192, 12800
    big = np.ones((1, length, width), dtype=np.int8)
    Trace({"tokens": np.zeros((1, length), np.int32), "layer_00/conv_out": big}).save(path, compress=False)
    megabytes = big.nbytes / 1e6
    code = f"""
import resource, scalescope
import numpy as np
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
trace = scalescope.Trace.open({str(path)!r})
opened = peak()
for name in trace:
    array = trace[name]
    assert np.asarray(array) is array
    assert not array.flags.owndata
total = int(trace["layer_00/conv_out"].sum(dtype=np.int64))
assert total == {length * width}
print(peak() - opened)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    grown = float(done.stdout)
    assert grown < megabytes / 4, f"{grown} MB more for arrays of {megabytes} MB"


def test_decode_is_the_prefill_of_the_whole_text(model, tokens):
    whole = model.run(tokens, mode="1", points="logits")["final/logits"][0]
    sequence = model.decode(mode="1")
    logits = sequence.feed(tokens[:10])
    assert np.array_equal(logits, whole[9]) and sequence.position == 10
    branch = sequence.copy()
    for at in range(10, len(tokens)):
        logits = sequence.feed(int(tokens[at]), points=None)
    assert np.array_equal(logits, whole[-1])
    assert "step_0/layer_00/ssm_state_out" in sequence.trace
    assert np.array_equal(sequence.trace["step_0/layer_00/ssm_state_out"][0], sequence.state(0)["ssm"])
    assert branch.position == 10 and np.array_equal(branch.feed(tokens[10:]), logits)
    int8 = model.decode(mode="0")
    int8.feed(tokens)
    state = int8.state(3)
    assert state["ssm"].dtype == np.int8 and state.scales["ssm"] > 0 and state["conv"].shape == (4, model.config["d_inner"])


def test_generation_is_the_commands(model, command, tokens):
    import json

    code, printed, _ = command("run", "--mode", "0", "--text", "It was a dark", "--generate", "12", "--json")
    want = json.loads(printed)["sequences"][0]
    made = model.decode(mode="0").generate("It was a dark", 12)
    assert code == 0 and made == want["generated"]
    assert model.decode_text(made) == want["generated_text"]
    assert model.decode(mode="0").generate("It was a dark", 12, stop=[made[4]])[-1] == made[4]


def test_names_that_are_nearly_right(model, tokens):
    trace = model.run(tokens, mode="0", points="conv_out", layers=[0])
    with pytest.raises(KeyError, match="layer_00/conv_out"):
        trace["layer_00/conv_oot"]
    with pytest.raises(scalescope.Error, match="near it: conv_out"):
        model.run(tokens, points=["conv_oot"])
