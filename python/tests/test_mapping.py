"""Mapping files: a dump as somebody else wrote it is the trace it was."""

import numpy as np
import pytest

import scalescope
from scalescope import Trace

MODE = "2-1"


@pytest.fixture
def dumped(model, tokens, tmp_path):
    """A run with a stale scale in a folder of .npy files: blocks from 1, `[B, D, L]`, codes as float16."""
    trace = model.run(tokens, mode=MODE, profile="deployed", faults="stale-scale@layer=4,site=x_proj_input,factor=1.7")
    folder = tmp_path / "dump"
    folder.mkdir()
    np.save(folder / "input_ids.npy", trace.tokens.astype(np.int64))
    names = {"in_proj_out": "in_proj", "conv_out": "conv1d_output", "x_proj_out": "x_proj", "dt_proj_out": "dt_proj", "ssm_y": "scan_y"}
    for name in trace.points:
        layer, _, point = name.partition("/")
        if point in names:
            number = int(layer[-2:]) + 1
            np.save(folder / f"layer{number}_{names[point]}.npy", trace[name].transpose(0, 2, 1).astype(np.float16))
    entries = [
        f"""
[[tensor]]
source = "layer{{layer}}_{file}.npy"
point = "{point}"
layout = "bdl"
dtype = "{'float16' if point == 'ssm_y' else 'int8'}"
"""
        for point, file in names.items()
    ]
    mapping = tmp_path / "map.toml"
    mapping.write_text('version = 1\nfirst_layer = 1\n[tokens]\nsource = "input_ids.npy"\n' + "".join(entries))
    return trace, folder, mapping, names


def test_a_foreign_dump_is_the_trace(model, dumped):
    trace, folder, mapping, names = dumped
    mapped = Trace.open(folder, map=mapping)
    assert len(mapped.points) == 12 * len(names)
    for name in mapped:
        assert np.array_equal(mapped[name], trace[name]) and mapped[name].dtype == trace[name].dtype
    found = model.attribute(folder, mode=MODE, map=mapping)
    assert not found.equal and found.rows()[0]["layer"] == 4
    assert scalescope.compare(trace, folder, map=mapping, common=True).equal
    assert not model.check(folder, mode=MODE, profile="deployed", map=mapping).equal
    assert model.check(folder, mode=MODE, profile="deployed", map=mapping, faults=trace.meta["faults"][0]).rows()


def test_a_suggestion_is_a_start(dumped, tmp_path, command):
    trace, folder, mapping, names = dumped
    text = scalescope.suggest_map(folder)
    assert command("map", folder)[1] == text
    assert "first_layer = 1" in text and 'point = "conv_out"' in text
    own = tmp_path / "own.toml"
    own.write_text(text.replace('# layout = "bdl"', 'layout = "bdl"'))
    mapped = Trace.open(folder, map=own)
    assert np.array_equal(mapped["layer_11/ssm_y"], trace["layer_11/ssm_y"])


def test_what_does_not_fit_is_said(dumped, tmp_path):
    _, folder, mapping, _ = dumped
    good = mapping.read_text()
    for old, new, match in [
        ('"conv_out"', '"conv_oot"', "one of hidden_in"),
        ("layer{layer}_scan_y", "layer{layer}_scam_y", "near it: "),
        ('"float16"', '"int8"', "element .*a value of int8"),
        ('"bdl"', '"bxl"', "layout"),
        ("first_layer", "first_layr", "map.toml: line 2"),
        ('"input_ids.npy"', '"ids.npy"', "near it: input_ids.npy"),
    ]:
        mapping.write_text(good.replace(old, new))
        with pytest.raises(scalescope.Error, match=match) as error:
            Trace.open(folder, map=mapping)
        assert "\n" not in str(error.value)
