"""The extension module; the package's Python files say what is in it for users."""

from collections.abc import Callable, Sequence
from typing import Any, Optional, final

import numpy as np
import numpy.typing as npt

_Named = tuple[str, Optional[str]]
_By = tuple[_Named, str, str]
_Parts = tuple[dict[str, npt.NDArray[Any]], dict[str, float], Optional[str], list[str], list[str]]
_Progress = Optional[Callable[[int, int, str], object]]
_Array = npt.NDArray[Any]

__all__ = [
    "Decoder",
    "Error",
    "Model",
    "Panic",
    "Scorer",
    "__version__",
    "call",
    "conv1d_silu",
    "from_toml",
    "function",
    "hadamard_quantize",
    "linear_step",
    "main",
    "mode",
    "modes",
    "multiplier",
    "panic_on_purpose",
    "points",
    "profile",
    "profiles",
    "quantize",
    "read_trace",
    "requantize",
    "rmsnorm_quantize",
    "scan",
    "to_toml",
    "windows",
    "write_npz",
]

__version__: str

class Error(ValueError): ...
class Panic(RuntimeError): ...

@final
class Model:
    def __new__(
        cls,
        model: Optional[str] = None,
        synthetic: Optional[str] = None,
        float: Optional[str] = None,
        scales: Optional[str] = None,
        recipe_name: str = "quamba",
        tokenizer: Optional[str] = None,
        modes_file: Sequence[str] = ...,
    ) -> Model: ...
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> str: ...
    @property
    def source_config(self) -> str: ...
    def encode(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode_text(self, ids: Sequence[int]) -> str: ...
    def run(
        self,
        tokens: npt.NDArray[np.uint32],
        mode: _Named,
        profile: _Named,
        points: Optional[Sequence[str]] = None,
        layers: Optional[Sequence[int]] = None,
        faults: Sequence[str] = ...,
        progress: _Progress = None,
    ) -> tuple[_Parts, str]: ...
    def call(self, arguments: Sequence[str], progress: _Progress = None) -> tuple[bool, str]: ...
    def decoder(self, mode: _Named, profile: _Named, faults: Sequence[str] = ...) -> Decoder: ...
    def scorer(self, mode: _Named, profile: _Named, faults: Sequence[str] = ...) -> Scorer: ...
    def calibrate(
        self,
        sequences: Optional[Sequence[Sequence[int]]] = None,
        file: Optional[str] = None,
        samples: Optional[int] = None,
        length: Optional[int] = None,
        alpha: float = 0.9995,
        seed: Optional[int] = None,
        progress: _Progress = None,
    ) -> str: ...

@final
class Decoder:
    @property
    def position(self) -> int: ...
    def feed(
        self,
        tokens: Sequence[int],
        points: Optional[Sequence[str]] = None,
        layers: Optional[Sequence[int]] = None,
    ) -> tuple[npt.NDArray[np.float32], _Parts]: ...
    @staticmethod
    def pick(
        logits: npt.NDArray[np.float32], position: int, temperature: Optional[float] = None, seed: int = 0
    ) -> int: ...
    def generate(self, tokens: Sequence[int], count: int, stop: Sequence[int]) -> list[int]: ...
    def copy(self) -> Decoder: ...
    def state(self, layer: int) -> tuple[_Array, Optional[float], _Array, Optional[float]]: ...

@final
class Scorer:
    """A model ready to score in one mode."""

    def score(
        self, sequences: Sequence[tuple[Sequence[int], int]], progress: _Progress = None
    ) -> list[tuple[float, bool]]: ...

def main(arguments: Sequence[str]) -> int: ...
def call(arguments: Sequence[str], progress: _Progress = None) -> tuple[bool, str]: ...
def points() -> list[str]: ...
def panic_on_purpose() -> None: ...
def windows(ids: Sequence[int], start: int, window: int) -> list[tuple[list[int], int]]: ...
def read_trace(path: str, map: Optional[str] = None) -> _Parts: ...
def write_npz(path: str, arrays: Sequence[tuple[str, _Array]], compress: bool) -> None: ...
def mode(name: str, text: Optional[str] = None) -> str: ...
def modes() -> str: ...
def profile(name: str, text: Optional[str] = None) -> tuple[str, str, str]: ...
def profiles() -> list[str]: ...
def to_toml(json: str) -> str: ...
def from_toml(text: str) -> str: ...
def quantize(
    values: npt.NDArray[np.float32], step: float, rule: Optional[str], by: _By, site: str
) -> tuple[_Array, int]: ...
def requantize(
    acc: npt.NDArray[np.int64], s_in: float, s_weight: float, s_out: float, by: _By, step: str
) -> _Array: ...
def multiplier(factor: float, by: _By, step: str) -> Optional[tuple[int, int]]: ...
def linear_step(
    x: _Array, weight: _Array, s_in: float, s_weight: float, s_out: Optional[float], half: bool, by: _By, step: str
) -> _Array: ...
def conv1d_silu(
    x: _Array,
    history: _Array,
    weight: _Array,
    bias: _Array,
    scales: tuple[float, float, float],
    s_out: Optional[float],
    by: _By,
) -> _Array: ...
def scan(
    inputs: Sequence[_Array],
    z: Optional[_Array],
    a_log: _Array,
    d: _Array,
    dt_bias: _Array,
    state: Optional[_Array],
    scales: Sequence[float],
    s_state: Optional[float],
    by: _By,
) -> tuple[_Array, _Array]: ...
def rmsnorm_quantize(
    hidden: _Array, residual: Optional[_Array], weight: _Array, eps: float, step: float, by: _By
) -> tuple[_Array, _Array]: ...
def hadamard_quantize(y: _Array, step: float, by: _By) -> _Array: ...
def function(name: str, values: _Array, by: _By) -> _Array: ...
