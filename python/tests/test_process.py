"""Threads, Ctrl-C, panics, bad input: exceptions, and the process goes on."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import scalescope
from scalescope import _scalescope


def test_several_threads_use_one_model(model, tokens):
    want = {mode: model.run(tokens, mode=mode, points="logits")["final/logits"] for mode in ("0", "1", "2-4")}
    with ThreadPoolExecutor(6) as pool:
        jobs = [(mode, pool.submit(model.run, tokens, mode=mode, points="logits")) for mode in list(want) * 4]
        assert all(np.array_equal(job.result()["final/logits"], want[mode]) for mode, job in jobs)
    sequence = model.decode(mode="0")
    sequence.feed(tokens)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(sequence.feed, tokens[:8].tolist()))
    assert sequence.position == len(tokens) + 8


def test_the_lock_is_released(model, tokens):
    """Another thread runs Python while the model runs."""
    ticks, stop = [], threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.monotonic())
            time.sleep(0.001)

    other = threading.Thread(target=tick)
    other.start()
    begin = time.monotonic()
    model.run(np.tile(tokens, 16), mode="0", points=[])
    end = time.monotonic()
    stop.set()
    other.join()
    inside = [t for t in ticks if begin < t < end]
    assert len(inside) > 5, f"{len(inside)} ticks in {end - begin} s"


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
@pytest.mark.parametrize("work", ['model.run([ids] * 60, mode="0", points=[])', 'model.recommend(mode="0")'])
def test_ctrl_c_stops_work_and_leaves_the_process_alive(work):
    code = f"""
import os, signal, threading, time
import scalescope
model = scalescope.load()
ids = list(range(5, 2005))
threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
begin = time.monotonic()
try:
    {work}
except KeyboardInterrupt:
    print("stopped", time.monotonic() - begin)
print(model.run([5, 6, 7], points="logits")["final/logits"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=110)
    assert done.returncode == 0, done.stderr
    word, seconds = done.stdout.splitlines()[0].split()
    assert word == "stopped" and float(seconds) < 20
    assert done.stdout.splitlines()[1] == "(1, 3, 8192)"


def test_a_panic_is_an_exception_and_the_process_goes_on(model, capfd):
    with pytest.raises(scalescope.Panic, match="scalescope panicked.*on purpose"):
        _scalescope.panic_on_purpose()
    assert model.run([5], points="logits")["final/logits"].shape == (1, 1, 8192)
    capfd.readouterr()


@pytest.mark.parametrize("wrong, match", [
    (lambda m: scalescope.load("nowhere.safetensors"), "nowhere.safetensors: No such file"),
    (lambda m: scalescope.load("synthetic:13m"), "130m"),
    (lambda m: scalescope.load(float="x"), "float: expected a model beside it"),
    (lambda m: scalescope.load(recipe="nobody"), "quamba"),
    (lambda m: m.run([8192]), "token 0: expected an id below the vocabulary size 8192, found 8192"),
    (lambda m: m.run([[1, 2], [3, -1]]), "sequence 1: token 1: .* found -1"),
    (lambda m: m.run([[1, 2], [3]]), "different lengths"),
    (lambda m: m.run([1.5]), "expected integers"),
    (lambda m: m.run([]), "at least one token"),
    (lambda m: m.run(np.zeros((1, 2, 3), int)), r"found int64 \[1, 2, 3\]"),
    (lambda m: m.run([1], mode="9-9"), "mode: expected one of 0, 1"),
    (lambda m: m.run([1], profile="exakt"), "profile: expected one of exact"),
    (lambda m: m.run([1], layers=[12]), "layers: expected blocks below 12, found 12"),
    (lambda m: m.run([1], faults="stale-scale@layer=99"), "stale-scale"),
    (lambda m: m.decode().state(0), "state: expected one token at least"),
    (lambda m: m.decode().feed([[1], [2]]), "expected one sequence, found 2"),
    (lambda m: m.equiv("0", "9-9"), "mode: expected one of"),
    (lambda m: m.lineage(length="x"), "--length"),
    (lambda m: m.check("nowhere.npz"), "nowhere.npz: No such file"),
    (lambda m: scalescope.compare("a.npz", "b.npz"), "a.npz: No such file"),
    (lambda m: scalescope.Trace.open(__file__), "test_process.py"),
    (lambda m: m.scorer().score([([1, 2], 2)]), "targets: expected 1 to 1, found 2"),
])
def test_bad_input_is_one_line(model, wrong, match):
    with pytest.raises(scalescope.Error, match=match) as error:
        wrong(model)
    assert "\n" not in str(error.value)


def test_a_model_of_random_weights(command):
    model = scalescope.load("synthetic:tiny")
    assert model.config["vocab_size"] == 256 and "tiny" in model.name
    assert model.run([5, 6], mode="1", points="logits")["final/logits"].shape == (1, 2, 256)
    assert model.run([5, 6], mode="0", points="logits")["final/logits"].dtype == np.float16
    with pytest.raises(scalescope.Error, match="tokenizer"):
        model.encode("a")
    code, printed, _ = command("headroom", "--synthetic", "tiny", "--text", "a", "--json")
    assert code == 2 and printed == ""


def test_types_that_make_no_sense(model, tmp_path):
    with pytest.raises(TypeError):
        scalescope.Mode(3.5)
    with pytest.raises(TypeError):
        scalescope.Profile(None)
    with pytest.raises(TypeError, match="complex"):
        scalescope.Trace({"x": np.ones(3, complex)}).save(tmp_path / "x.npz")
    assert not list(tmp_path.iterdir())
    with open(__file__) as file:
        pass
    with pytest.raises(TypeError):
        model.check(file)


def test_what_the_command_says_on_stderr_is_a_warning(model, tmp_path):
    data = tmp_path / "d.jsonl"
    data.write_text('{"text": "It was a dark night"}\n')
    with pytest.warns(UserWarning, match="1 rows, fewer than the 5 asked for"):
        model.evaluate(data, modes="0", limit=5)
