import pathlib
import subprocess
import sys

import pytest

import scalescope

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def model():
    return scalescope.load("sample")


@pytest.fixture(scope="session")
def command():
    """The command of the package: its exit code and what it prints."""

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "scalescope", *map(str, arguments)], capture_output=True, text=True, timeout=120
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="session")
def tokens(model):
    text = "It was a dark night, and the old captain said to the men that the ship would not last until morning."
    return model.encode(text)[:24]
