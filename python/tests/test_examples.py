"""The notebook and the testbench of examples/ run."""

import shutil
import subprocess
import sys

import pytest

from conftest import ROOT


def test_the_notebook():
    nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    book = nbformat.read(ROOT / "examples" / "scale_mismatch.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in book.cells), "outputs are not kept in the file"
    nbclient.NotebookClient(book, timeout=120, kernel_name="python3").execute()
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert any("<table>" in output.get("data", {}).get("text/html", "") for output in outputs)


def test_the_testbench(tmp_path):
    """Icarus Verilog and cocotb: `apt-get install iverilog`, `pip install cocotb`."""
    if shutil.which("iverilog") is None:
        pytest.skip("Icarus Verilog is not installed")
    pytest.importorskip("cocotb", reason="cocotb is not installed")
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "cocotb" / "run.py", tmp_path], capture_output=True, text=True, timeout=170
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the fault was found" in done.stdout + done.stderr
