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


def test_stubs_and_types(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    settings = str(ROOT / "python" / "pyproject.toml")
    for tool in (
        ["mypy.stubtest", "--mypy-config-file", settings, "scalescope._scalescope"],
        ["mypy", "--config-file", settings, "-p", "scalescope"],
    ):
        # Elsewhere, so that the installed package is looked at.
        done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
