"""The recorder, on stand-ins that call as the real classes call: the tensors are those of a run, in their layouts.

The opt-in tests of the real sources are in test_torch_real.py.
"""

import numpy as np
import pytest

import scalescope
from scalescope.torch import Row, record

MODE = "2-1"


class Module:
    """What the recorder asks of a torch module: names, and a call that goes to `forward`."""

    def named_modules(self, prefix=""):
        yield prefix, self
        for name, child in vars(self).items():
            children = enumerate(child) if isinstance(child, list) else [(None, child)]
            for number, module in children:
                if isinstance(module, Module):
                    path = name if number is None else f"{name}.{number}"
                    yield from module.named_modules(f"{prefix}.{path}" if prefix else path)

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)


def seqlen_last(array):
    """`[B, L, D]` as a kernel that writes `[D, B, L]` gives it: a `[B, D, L]` view that is not contiguous."""
    view = np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 0, 2)
    assert array.shape[0] == 1 or not view.flags.c_contiguous
    return view


class Replay(Module):
    """A module that gives recorded tensors, whatever it is called with."""

    def __init__(self, source, key, **attributes):
        self.source, self.key = source, key
        vars(self).update(attributes)

    def value(self):
        return self.source[0][self.source[1](self.key)]


class Linear(Replay):
    def forward(self, x):
        return self.value()

    def to_seqlen_last(self, x):
        return seqlen_last(self.value())


class QCausalConv1D(Replay):
    def forward(self, x):
        return seqlen_last(self.value())

    def update(self, x, conv_state):
        conv_state[:] = self.source[0][self.source[1]("conv_state_out")]
        return self.value()[:, 0]


class QSScan(Replay):
    def forward(self, u, dt, B, C, z=None, return_last_state=False):
        y = seqlen_last(self.value())
        return (y, np.zeros(3, np.float32)) if return_last_state else y

    def update(self, state, u, dt, B, C, z=None):
        return self.value()[:, 0], self.source[0][self.source[1]("ssm_state_out")]


class QRMSNorm(Replay):
    def forward(self, x, residual=None, prenorm=False, residual_in_fp32=False):
        return (self.value(), self.source[0][self.source[1]("residual_out")]) if prenorm else self.value()


class W8A8QMamba(Module):
    """The mixer's prefill and step: which method of which module, with what."""

    def __init__(self, at, layer, scale):
        self.layer_idx = layer
        source = lambda key: (at, lambda k=key: f"{at['head']}layer_{layer:02}/{k}")
        replay = lambda cls, key, **more: cls((at, lambda k: f"{at['head']}layer_{layer:02}/{k}"), key, **more)
        self.in_proj = replay(Linear, "in_proj_out")
        self.conv1d = replay(QCausalConv1D, "conv_out", input_scale=scale("in_proj_out"), output_scale=scale("conv_out"))
        self.x_proj = replay(Linear, "x_proj_out")
        self.dt_proj = replay(Linear, "dt_proj_out")
        step = np.float32(scale("ssm_state"))
        self.selective_scan = replay(
            QSScan, "ssm_y", u_scale=scale("conv_out"), dt_scale=scale("dt_proj_out"), B_scale=scale("x_proj_out"),
            ssm_state_scale=np.array(step),
        )
        self.had = replay(Linear, "had_out", x_H_scale=scale("had_out"))
        self.out_proj = replay(Linear, "out_proj_out")

    def forward(self, hidden, state=None):
        if state is not None:
            return self.step(hidden, state)
        xz = self.in_proj.to_seqlen_last(hidden)
        x, z = np.split(xz, 2, axis=1)
        x = self.conv1d.forward(x)
        x_dbl = self.x_proj(np.ascontiguousarray(x.transpose(0, 2, 1)))
        dt = self.dt_proj.to_seqlen_last(x_dbl)
        y = self.selective_scan.forward(x, dt, None, None, z=z)
        return self.out_proj(self.had(y))

    def step(self, hidden, state):
        xz = self.in_proj(hidden[:, 0])
        x, z = np.split(xz, 2, axis=-1)
        conv_state = np.zeros_like(self.in_proj.source[0][self.in_proj.source[1]("conv_state_in")])
        conv_state[:] = self.in_proj.source[0][self.in_proj.source[1]("conv_state_in")]
        x = self.conv1d.update(x, conv_state)
        dt = self.dt_proj(self.x_proj(x))
        state = self.in_proj.source[0][self.in_proj.source[1]("ssm_state_in")]
        y, _ = self.selective_scan.update(state, x, dt, None, None, z=z)
        return self.out_proj(self.had(y))


class Fork(W8A8QMamba):
    """A class of a fork: its base is known."""


class Embedding(Module):
    def forward(self, ids):
        return np.zeros((*ids.shape, 4), np.float16)


class Block(Module):
    def __init__(self, at, layer, scale, mixer):
        key = lambda k: f"{at['head']}layer_{layer:02}/{k}"
        self.norm = QRMSNorm((at, key), "norm_out", output_scale=scale("norm_out"))
        self.mixer = mixer(at, layer, scale)
        self.key = key

    def forward(self, at, state):
        before = at.get(self.key("residual_in"))
        hidden, _ = self.norm(at[self.key("hidden_in")], residual=before, prenorm=True)
        return self.mixer(hidden, state)


class Quamba(Module):
    """Replays a trace, prefill and then steps."""

    def __init__(self, trace, mixer=W8A8QMamba):
        self.at = dict(trace) | {"head": ""}
        scale = lambda layer: lambda key: trace.scales.get(f"layer_{layer:02}/{key}", 0.5)
        self.embedding = Embedding()
        layers = sorted({name.split("/")[-2] for name in trace if "layer_" in name})
        self.layers = [Block(self.at, i, scale(i), mixer) for i in range(len(layers))]
        self.lm_head = Linear((self.at, lambda k: f"{self.at['head'] or 'final/'}{k}"), "logits")

    def forward(self, ids, step=None):
        self.at["head"] = "" if step is None else f"step_{step}/"
        self.embedding(ids)
        for layer in self.layers:
            layer(self.at, None if step is None else {})
        return self.lm_head(None)


def run(model, tokens, **more):
    return model.run(tokens, mode=MODE, profile="deployed", **more)


def test_a_recorded_prefill_is_the_run(model, tokens, tmp_path):
    trace = run(model, tokens)
    stand_in = Quamba(trace, Fork)
    with record(stand_in, tmp_path / "dump.npz") as recorder:
        stand_in(trace.tokens)
    dump = scalescope.Trace.open(tmp_path / "dump.npz")
    assert list(dump) == list(recorder.trace)
    # What no module's call shows, or no scale of a module states, is not there; all else is the run's.
    assert set(trace) - set(dump) == {f"layer_{i:02}/ssm_state" for i in range(12)} | {"final/residual"}
    for name in dump:
        assert dump[name].dtype == trace[name].dtype and np.array_equal(dump[name], trace[name]), name
    for name, step in dump.scales.items():
        assert step == trace.scales[name], name
    assert len(dump.scales) > 12 * 5
    assert model.check(dump, mode=MODE, profile="deployed").equal
    assert model.attribute(dump, mode=MODE).equal
    # Nothing stays behind.
    assert all("forward" not in vars(m) and "to_seqlen_last" not in vars(m) for _, m in stand_in.named_modules())


def test_a_recorded_fault_is_found(model, tokens, tmp_path):
    fault = "stale-scale@layer=4,site=x_proj_input,factor=1.7"
    stand_in = Quamba(run(model, tokens, faults=fault))
    with record(stand_in) as recorder:
        stand_in(np.asarray([tokens], dtype=np.int64))
    found = model.attribute(recorder.trace, mode=MODE)
    assert not found.equal and found.rows()[0]["layer"] == 4


def test_decode_steps_are_recorded(model, tokens):
    sequence = model.decode(mode=MODE, profile="deployed")
    sequence.feed(tokens[:6], points=None)
    whole = dict(sequence.trace)
    whole["prefill_tokens"] = whole.pop("tokens")
    scales = dict(sequence.trace.scales)
    sequence.feed(tokens[6:8], points=None)
    whole.update(sequence.trace)
    trace = scalescope.Trace(whole, scales)
    stand_in = Quamba(trace)
    with record(stand_in) as recorder:
        stand_in(np.asarray([tokens[:6]]))
        for step in range(2):
            stand_in(np.asarray([[tokens[6 + step]]]), step)
    dump = recorder.trace
    steps = [name for name in dump if name.startswith("step_")]
    assert len(steps) > 2 * 12 * 10 and "step_1/logits" in steps
    for name in dump:
        assert np.array_equal(dump[name].ravel(), trace[name].ravel()), name
    checked = model.check(dump, mode=MODE, profile="deployed")
    assert checked.equal, [row for row in checked.rows() if row.get("mismatched")]


def test_rows_of_ones_own_and_some_points(model, tokens):
    trace = run(model, tokens)
    stand_in = Quamba(trace)

    class Gate(Module):
        def shape(self, values):
            return values

    stand_in.layers[0].mixer.gate = Gate()
    old = W8A8QMamba.forward

    def forward(self, hidden, state=None):
        if hasattr(self, "gate"):
            self.gate.shape(trace["layer_00/conv_out"].astype(np.float32))
        return old(self, hidden, state)

    stand_in.layers[0].mixer.forward = forward.__get__(stand_in.layers[0].mixer)
    row = Row("W8A8QMamba", "gate", "shape", "argument 0", "conv_out_f32")
    with record(stand_in, rows=[row], points=["conv_out_f32", "ssm_y"]) as recorder:
        stand_in(trace.tokens)
    assert recorder.trace.points == ["layer_00/conv_out_f32", *(f"layer_{i:02}/ssm_y" for i in range(12))]


def test_what_cannot_be_recorded_is_said(model, tokens, tmp_path):
    class Stranger(Module):
        pass

    with pytest.raises(scalescope.Error, match="found Stranger"):
        record(Stranger()).__enter__()
    stand_in = Quamba(run(model, tokens))
    with pytest.raises(scalescope.Error, match="expected a call of the model"):
        with record(stand_in, tmp_path / "a.npz"):
            pass
    with pytest.raises(ZeroDivisionError):
        with record(stand_in, tmp_path / "a.npz"):
            stand_in(np.asarray([tokens]))
            1 / 0
    with pytest.raises(scalescope.Error, match="expected one token a sequence, found 23"):
        with record(stand_in, tmp_path / "a.npz"):
            stand_in(np.asarray([tokens]))
            stand_in(np.asarray([tokens]))
    assert not list(tmp_path.iterdir())


def test_tensors_of_torch():
    """torch's own types, if it is installed."""
    torch = pytest.importorskip("torch", reason="torch is not installed")

    class Norm(torch.nn.Module):
        def forward(self, x):
            return x

    class MambaMixer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_proj, self.out_proj = torch.nn.Linear(4, 8, bias=False), torch.nn.Linear(4, 4, bias=False)

        def forward(self, x):
            return self.out_proj(self.in_proj(x)[..., :4])

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.layers = torch.nn.Embedding(9, 4), torch.nn.ModuleList([torch.nn.Module()])
            self.layers[0].mixer = MambaMixer()

        def forward(self, ids):
            return self.layers[0].mixer(self.embedding(ids))

    model = Model().to(torch.bfloat16)
    with record(model) as recorder:
        out = model(torch.tensor([[1, 2, 3]]))
    assert np.array_equal(recorder.trace["layer_00/out_proj_out"], out.detach().float().numpy())
