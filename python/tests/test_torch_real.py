"""Against the real classes of transformers and mamba_ssm, and files of the real torch.

Runs where they are installed, and is skipped elsewhere:

    pip install torch transformers einops
    MAMBA_SSM=FOLDER    its source, unpacked: the kernels need a GPU, their references here do not
    QUAMBA_MODEL=FOLDER, QUAMBA_FLOAT=FOLDER, QUAMBA_SCALES=FILE    a folder that Quamba wrote, what it was made from,
                        and its activation scales

    python -m pytest python/tests/test_torch_real.py

docs/python.md has the last results.
"""

import os
import pathlib
import sys
import types

import numpy as np
import pytest

import scalescope
from scalescope.torch import record

torch = pytest.importorskip("torch", reason="torch is not installed")

VOCABULARY, LAYERS, WIDTH = 97, 3, 48
TOKENS = np.random.default_rng(7).integers(0, VOCABULARY, 37)


def filled(model):
    """Random weights of which every one matters: norms, biases and D are not constant."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith((".D", "conv1d.bias")):
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    return model.eval()


def agree(folder, recorded, points):
    """Every recorded tensor is that of the checkpoint's own mode, to FP32's last bits."""
    model = scalescope.load(folder)
    ours = model.run(TOKENS, mode="original", profile="torch")
    seen = {name for name in ours if name in recorded}
    for name in seen:
        theirs, here = np.float64(recorded[name]), np.float64(ours.real(name))
        assert theirs.shape == here.shape, name
        scale = max(np.abs(here).max(), 1e-6)
        assert np.abs(theirs - here).max() <= 2e-5 * scale, (name, np.abs(theirs - here).max() / scale)
    found = {name.rpartition("/")[2] for name in seen} - {"tokens"}
    assert found == points, found ^ points
    assert all(f"layer_{layer:02}/out_proj_out" in seen for layer in range(LAYERS))


def of_transformers(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=16, time_step_rank=3
    )
    torch.manual_seed(3)
    model = filled(transformers.MambaForCausalLM(config))
    model.save_pretrained(folder)
    return model


def test_mamba_of_transformers(tmp_path):
    model = of_transformers(tmp_path / "model")
    ids = torch.tensor(TOKENS[None])
    with torch.no_grad():
        plain = model(ids).logits
        with record(model, tmp_path / "dump.npz"):
            logits = model(ids).logits
    assert torch.equal(plain, logits)
    recorded = scalescope.Trace.open(tmp_path / "dump.npz")
    points = {"norm_out", "in_proj_out", "conv_out_f32", "x_proj_out", "ssm_y", "out_proj_out", "residual_out"}
    agree(tmp_path / "model", recorded, points | {"logits"})


@pytest.fixture
def mamba_ssm(monkeypatch):
    """The package's own Python, with its reference in place of the kernel that needs a GPU."""
    source = os.environ.get("MAMBA_SSM")
    if source is None:
        pytest.skip("MAMBA_SSM does not name its source")
    pytest.importorskip("einops", reason="einops is not installed")
    pytest.importorskip("triton", reason="triton, which torch brings on Linux, is not installed")
    package = types.ModuleType("mamba_ssm")
    package.__path__ = [str(pathlib.Path(source) / "mamba_ssm")]
    monkeypatch.setitem(sys.modules, "mamba_ssm", package)
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", types.ModuleType("selective_scan_cuda"))
    for name in ("mamba2", "mamba3"):
        stand_in = types.ModuleType(name)
        stand_in.Mamba2 = stand_in.Mamba3 = type("Unused", (), {})
        monkeypatch.setitem(sys.modules, f"mamba_ssm.modules.{name}", stand_in)
    from mamba_ssm.models import config_mamba, mixer_seq_simple
    from mamba_ssm.modules import mamba_simple
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    monkeypatch.setattr(mamba_simple, "selective_scan_fn", selective_scan_ref)
    monkeypatch.setattr(mixer_seq_simple, "RMSNorm", lambda size, eps, **kw: torch.nn.RMSNorm(size, eps, **kw))
    yield types.SimpleNamespace(Config=config_mamba.MambaConfig, Model=mixer_seq_simple.MambaLMHeadModel)
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        sys.modules.pop(name)


def test_mamba_of_mamba_ssm(mamba_ssm, tmp_path):
    config = mamba_ssm.Config(
        d_model=WIDTH, n_layer=LAYERS, vocab_size=VOCABULARY, rms_norm=True, residual_in_fp32=True, fused_add_norm=False
    )
    torch.manual_seed(3)
    model = filled(mamba_ssm.Model(config))
    model.save_pretrained(tmp_path / "model")
    ids = torch.tensor(TOKENS[None])
    with torch.no_grad(), record(model, tmp_path / "dump.npz"):
        model(ids)
    recorded = scalescope.Trace.open(tmp_path / "dump.npz")
    # in_proj's weight is used without its module; x_proj's input is the convolution's output.
    agree(
        tmp_path / "model",
        recorded,
        {"norm_out", "conv_out_f32", "x_proj_out", "ssm_y", "out_proj_out", "logits"},
    )


def told(folder):
    """What torch makes of a Quamba folder."""
    return torch.load(pathlib.Path(folder) / "pytorch_model.bin", weights_only=True, map_location="cpu")


def test_a_quamba_folder_of_ours_goes_through_torch(command, tmp_path):
    """Loaded without anything unsafe, saved again by torch, and the same model still."""
    of_transformers(tmp_path / "model")
    out = tmp_path / "ours"
    code, _, error = command("quantize", tmp_path / "model", "--format", "quamba", "--ends", "int8", "-o", out)
    assert code == 0, error
    loaded = told(out)
    mixer = "backbone.layers.0.mixer."
    weight = loaded[mixer + "in_proj.weight"]
    assert (weight.dtype, weight.is_contiguous()) == (torch.int8, False)
    assert type(loaded[mixer + "conv1d.input_scale"]) is float
    again = tmp_path / "again"
    again.mkdir()
    (again / "config.json").write_bytes((out / "config.json").read_bytes())
    torch.save(loaded, again / "pytorch_model.bin")
    runs = [scalescope.load(folder).run(TOKENS, mode="0", points="logits") for folder in (out, again)]
    logits = [run["final/logits"] for run in runs]
    assert np.array_equal(*logits) and np.ptp(logits[0]) > 0


def test_a_quamba_folder_of_ours_is_that_of_quamba(command, tmp_path):
    float_model, scales, theirs = (os.environ.get(f"QUAMBA_{name}") for name in ("FLOAT", "SCALES", "MODEL"))
    if not (float_model and scales and theirs):
        pytest.skip("QUAMBA_FLOAT, QUAMBA_SCALES and QUAMBA_MODEL do not name files")
    out = tmp_path / "ours"
    code, _, error = command("quantize", float_model, "--scales", scales, "--format", "quamba", "-o", out)
    assert code == 0, error
    ours, theirs = told(out), told(theirs)
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        if not hasattr(tensor, "shape"):
            assert type(ours[key]) is type(tensor) and ours[key] == tensor, key
            continue
        same = (ours[key].dtype, ours[key].shape, ours[key].stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert same, (key, ours[key].dtype, ours[key].shape, ours[key].stride(), tensor.dtype, tensor.shape, tensor.stride())
        assert torch.equal(ours[key], tensor), key


def test_what_torch_saves_is_read_as_it_is(tmp_path):
    """Views with strides and offsets of one storage, and every type."""
    base = torch.arange(240, dtype=torch.float32).reshape(10, 24)
    dump = {
        "layer_00/conv_out_f32": base[2:9:2, ::3].unsqueeze(0),
        "layer_00/ssm_y": base.half().t()[4:8].unsqueeze(0),
        "layer_00/conv_out": base.to(torch.int8)[:4].unsqueeze(0),
    }
    torch.save(dump, tmp_path / "dump.pt")
    read = scalescope.Trace.open(tmp_path / "dump.pt")
    for name, tensor in dump.items():
        assert np.array_equal(read[name], tensor.numpy()), name
        assert read[name].dtype == tensor.numpy().dtype
