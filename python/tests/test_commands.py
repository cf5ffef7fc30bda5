"""Functions give what the commands print, byte for byte."""

import json

import numpy as np
import pytest

import scalescope
from scalescope import Mode, Profile

TEXT = "It was a dark night"


def test_run_is_the_command_and_its_trace_the_same_file(model, command, tmp_path):
    made, own = tmp_path / "command.npz", tmp_path / "own.npz"
    code, printed, _ = command("run", "--mode", "2-4", "--profile", "deployed", "--text", TEXT, "--trace", made, "--json")
    assert code == 0
    trace = model.run(TEXT, mode="2-4", profile="deployed")
    trace.save(own)
    assert own.read_bytes() == made.read_bytes()
    said = json.loads(printed)
    assert trace.perplexity == [said["sequences"][0]["perplexity"]]
    assert trace.quantizers == said["quantizers"]


@pytest.mark.parametrize(
    "name, arguments, call",
    [
        ("equiv", ["2-3", "2-1", "--text", TEXT], lambda m: m.equiv("2-3", "2-1", text=TEXT)),
        ("lineage", ["--mode", "2-4", "--text", TEXT], lambda m: m.lineage(mode="2-4", text=TEXT)),
        ("headroom", ["--text", TEXT], lambda m: m.headroom(text=TEXT)),
        ("propagate", ["--mode", "2-4", "--text", TEXT], lambda m: m.propagate(mode="2-4", text=TEXT)),
        (
            "sweep",
            ["--vary", "scan.state=int8,f16", "--text", TEXT],
            lambda m: m.sweep({"scan.state": ["int8", "f16"]}, text=TEXT),
        ),
    ],
)
def test_results_are_the_json_of_the_commands(model, command, name, arguments, call):
    code, printed, _ = command(name, *arguments, "--json")
    result = call(model)
    assert result.json == printed.rstrip("\n")
    assert result.equal == (code == 0)
    assert result.rows()
    assert "<table>" in result._repr_html_()


def test_eval_is_the_command(model, command, tmp_path):
    texts = ["It was a dark night", "The old captain said to the men", "She looked at the sea"]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, printed, _ = command("eval", "--data", data, "--modes", "0,2-4", "--json", "-")
    assert code == 0
    assert model.evaluate(data, modes=["0", "2-4"]).json == printed.rstrip("\n")
    assert model.evaluate(texts, modes="0,2-4")["modes"] == json.loads(printed)["modes"]


def test_compare_and_check_take_traces_and_files(model, tokens, tmp_path):
    a = model.run(tokens, mode="0")
    same = scalescope.compare(a, model.run(tokens, mode="2-1"), common=True)
    assert same.equal and len(same.rows()) > 100 and same["a"] == "trace.npz"
    b = model.run(tokens, mode="0", faults="stale-scale@layer=3,site=x_proj_input,factor=1.7")
    assert not scalescope.compare(a, b).equal
    path = tmp_path / "a.npz"
    a.save(path)
    assert scalescope.compare(path, a).equal
    assert model.check(a).equal and not model.check(b).equal
    broken = scalescope.Trace(dict(a), a.scales, a.meta)
    broken._arrays["layer_05/ssm_y"] = a["layer_05/ssm_y"].copy()
    broken["layer_05/ssm_y"][0, 3, 7] += np.float16(0.5)
    found = model.check(broken)
    wrong = [row for row in found.rows() if row.get("mismatched")]
    assert {row["layer"] for row in wrong} == {5} and not found.equal


def test_attribute_finds_a_stale_scale(model, tokens, command, tmp_path):
    dump = model.run(tokens, mode="2-4", faults="stale-scale@layer=3,site=x_proj_input,factor=1.7")
    found = model.attribute(dump, mode="2-4")
    first = found.rows()[0]
    assert not found.equal and first["layer"] == 3 and "x_proj_input" in str(first)
    path = tmp_path / "dump.npz"
    dump.save(path)
    code, printed, _ = command("attribute", "--mode", "2-4", "--trace", path, "--json")
    assert code == 1 and model.attribute(path, mode="2-4").json == printed.rstrip("\n")


def test_modes_and_profiles_of_ones_own(model, tokens, tmp_path):
    mode = Mode("2-4").replace(scan="cuda", name="2-4d")
    changed = {key for key, value in mode.fields.items() if Mode("2-4").fields[key] != value}
    assert changed == {"name", "summary", "scan"} and mode.fields["scan"] == "cuda"
    again = Mode.from_toml(mode.toml)
    assert again == mode and Mode({"name": "2-4d", "base": "2-4", "scan": "cuda"}) == mode
    assert model.run(tokens, mode=mode, points="logits").meta["mode"] == "2-4d"
    assert model.lineage(mode=mode, length=16)["mode"] == "2-4d"
    with pytest.raises(scalescope.Error, match="scam"):
        Mode("2-4").replace(scam="cuda")
    wide = Profile("asic-int8").replace({"requant.multiplier_bits": 24}, name="wide.toml")
    assert Profile.from_toml(wide.text).hash == wide.hash != Profile("asic-int8").hash
    same = wide.replace(requant={"multiplier_bits": Profile("asic-int8").rules["cuda"]["prefill"]["linear"]["in_proj"]["scaling"]["fixed"]["bits"]})
    assert same == Profile("asic-int8")
    assert model.headroom(profile=wide, length=8)["profile"] == "wide.toml"
    file = tmp_path / "file.toml"
    file.write_text(wide.text)
    assert Profile(file) == wide
    with pytest.raises(scalescope.Error, match="multiplier_bitz"):
        Profile({"requant": {"multiplier_bitz": 3}})
    assert len(scalescope.modes()) > 20 and {p.name for p in scalescope.profiles()} >= {"exact", "deployed"}


def test_tables_for_pandas_and_polars(model):
    result = model.lineage(mode="0", text=TEXT)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    frame = result.to_pandas()
    assert isinstance(frame, pandas.DataFrame) and len(frame) == len(result.rows())
    polars = pytest.importorskip("polars", reason="polars is not installed")
    assert isinstance(result.to_polars(), polars.DataFrame)
    assert result.to_polars()["scale_ratio"].to_list() == [row["scale_ratio"] for row in result.rows()]


def test_calibration_is_that_of_quantize(model, tmp_path):
    scales = model.calibrate(["It was a dark night", "She looked at the sea"], samples=2, length=4)
    assert len(scales.rows()) == model.config["n_layers"]
    other = model.calibrate(tokens=model._model.encode(["It was a dark night"])[:1], samples=1, length=4)
    assert other.rows() != scales.rows()
    with pytest.raises(scalescope.Error, match="samples"):
        model.calibrate(["night"], samples=0)


def test_the_command_of_the_package(command):
    assert command("modes", "--json")[0] == 0
    code, printed, said = command("run", "--mode", "9-9", "--text", TEXT)
    assert code == 2 and printed == "" and said.startswith("scalescope: mode: expected one of")
