"""What is written is so: docstrings and docs/python.md run, the stubs are those of the module."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import scalescope

from conftest import ROOT

MODULES = [m.name for m in pkgutil.iter_modules(scalescope.__path__) if m.name not in ("_scalescope", "lm_eval", "__main__")]


@pytest.mark.parametrize("name", ["", *MODULES])
def test_docstrings(name):
    module = importlib.import_module(f"scalescope.{name}" if name else "scalescope")
    assert doctest.testmod(module).failed == 0


def test_the_guide(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    found = doctest.testfile(str(ROOT / "docs" / "python.md"), module_relative=False, encoding="utf-8")
    assert found.failed == 0 and found.attempted > 20


def test_stubs_and_types():
    pytest.importorskip("mypy", reason="mypy is not installed")
    for tool in (["mypy.stubtest", "scalescope._scalescope"], ["mypy", "-p", "scalescope"]):
        done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT / "python")
        assert done.returncode == 0, done.stdout + done.stderr
