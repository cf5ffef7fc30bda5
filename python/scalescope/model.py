"""Models, and what runs them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import numpy.typing as npt

from . import _scalescope
from ._progress import Progress
from ._scalescope import Error
from .commands import Commands
from .rules import AnyMode, AnyProfile, Mode, Profile
from .trace import Path, Trace, near, points as known_points

#: Token ids of one sequence or of several of one length: lists, NumPy arrays, torch tensors on the CPU.
Tokens = Union[Sequence[int], Sequence[Sequence[int]], npt.NDArray[Any], Any]


def load(
    model: Optional[Path] = "sample",
    *,
    float: Optional[Path] = None,
    scales: Optional[Path] = None,
    recipe: str = "quamba",
    tokenizer: Optional[Path] = None,
    modes_file: Union[Path, Iterable[Path]] = (),
) -> "Model":
    """Opens a model.

    `model`: "sample" (built in), "synthetic:130m" (random weights), a folder of transformers, mamba_ssm or Quamba, or
    a quantized .safetensors file. `float`: the folder of the float model where `model` is quantized. `scales`:
    activation scales where it is a float model; without them it is calibrated on text that it writes itself, when
    a mode needs that. `recipe`: how it is folded and quantized, "quamba" or "golden".
    """
    files = [modes_file] if isinstance(modes_file, (str, os.PathLike)) else list(modes_file)
    name = "sample" if model is None else os.fspath(model)
    synthetic = name.partition(":")[2] if name.startswith("synthetic:") else None
    path = None if name == "sample" or synthetic is not None else name
    if path is None:
        for given, option in ((float, "float"), (scales, "scales")):
            if given is not None:
                raise Error(f"{option}: expected a model beside it, found none")
    optional = [None if p is None else os.fspath(p) for p in (float, scales, tokenizer)]
    inner = _scalescope.Model(
        path,
        synthetic,
        optional[0],
        optional[1],
        recipe,
        optional[2],
        [os.fspath(p) for p in files],
    )
    return Model(inner)


def _ids(tokens: Tokens, vocabulary: int) -> npt.NDArray[np.uint32]:
    """Token ids as `[B, L]`; arrays of any integer type, order and strides."""
    expected = "expected integers of shape [L] or [B, L]"
    try:
        ids = np.asarray(tokens)
    except ValueError:
        raise Error(f"tokens: {expected}, found sequences of different lengths") from None
    if ids.size == 0:
        raise Error("tokens: expected at least one token, found none")
    if ids.dtype.kind not in "iu" or ids.ndim not in (1, 2):
        raise Error(f"tokens: {expected}, found {ids.dtype} {list(ids.shape)}")
    ids = np.atleast_2d(ids)
    wrong = (ids < 0) | (ids >= vocabulary)
    if wrong.any():
        row, at = np.argwhere(wrong)[0]
        where = f"sequence {row}: token {at}" if len(ids) > 1 else f"token {at}"
        raise Error(f"{where}: expected an id below the vocabulary size {vocabulary}, found {ids[row, at]}")
    return np.ascontiguousarray(ids, dtype=np.uint32)


def _checked_points(points: Optional[Iterable[str]]) -> Optional[list[str]]:
    if points is None:
        return None
    points = [points] if isinstance(points, str) else list(points)
    known = known_points()
    for point in points:
        if point not in known:
            raise Error(f"points: expected some of {', '.join(known)}, found {point}{near(point, known)}")
    return points


class Model(Commands):
    """A model in memory. Several threads may use one; parts that a mode needs are loaded when it first runs."""

    _model: _scalescope.Model

    def __init__(self, inner: _scalescope.Model) -> None:
        self._model = inner

    @property
    def name(self) -> str:
        """The path, or what it is."""
        return self._model.name

    @property
    def config(self) -> dict[str, Any]:
        """The shape: vocab_size, d_model, d_inner, d_state, dt_rank, d_conv, n_layers, eps."""
        return json.loads(self._model.config)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        """Token ids of a text, `[L]`, no special ones added."""
        return np.asarray(self._model.encode([text])[0], dtype=np.uint32)

    def decode_text(self, tokens: Tokens) -> str:
        """The text of token ids."""
        return self._model.decode_text([int(t) for t in np.asarray(tokens).ravel()])

    def _tokens(self, tokens: Union[str, Tokens]) -> npt.NDArray[np.uint32]:
        tokens = self.encode(tokens) if isinstance(tokens, str) else tokens
        return _ids(tokens, self.config["vocab_size"])

    def run(
        self,
        tokens: Union[str, Tokens],
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "exact",
        points: Optional[Iterable[str]] = None,
        layers: Optional[Iterable[int]] = None,
        faults: Union[str, Iterable[str]] = (),
    ) -> Trace:
        """Runs a text or token ids (`[L]` or `[B, L]`) in one mode and gives the tensors of the run.

        `points` and `layers` say which tensors to keep, everything by default; `faults` as
        `stale-scale@layer=3,site=x_proj_input,factor=1.7`.
        """
        mode, profile = Mode(mode), Profile(profile)
        with Progress() as progress:
            parts, more = self._model.run(
                self._tokens(tokens),
                (mode.name, mode.toml),
                (profile.name, profile.toml),
                _checked_points(points),
                None if layers is None else [int(layer) for layer in layers],
                [faults] if isinstance(faults, str) else list(faults),
                progress,
            )
        return Trace._of(parts, more)

    def decode(
        self,
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "exact",
        faults: Union[str, Iterable[str]] = (),
    ) -> "Decoder":
        """A sequence before its first token, to be run token by token with its state in hand.

        >>> import scalescope
        >>> sequence = scalescope.load().decode(mode="0")
        >>> logits = sequence.feed([5, 6, 7])
        >>> branch = sequence.copy()
        >>> (branch.feed(8) == sequence.feed(8)).all()
        np.True_
        """
        mode, profile = Mode(mode), Profile(profile)
        faults = [faults] if isinstance(faults, str) else list(faults)
        named = (mode.name, mode.toml), (profile.name, profile.toml)
        return Decoder(self, self._model.decoder(*named, faults))

    def scorer(
        self,
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "exact",
        faults: Union[str, Iterable[str]] = (),
    ) -> _scalescope.Scorer:
        """What scores continuations on all cores, with the bits of `scalescope eval`."""
        mode, profile = Mode(mode), Profile(profile)
        faults = [faults] if isinstance(faults, str) else list(faults)
        return self._model.scorer((mode.name, mode.toml), (profile.name, profile.toml), faults)

    def __repr__(self) -> str:
        c = self.config
        return f"<Model {self.name}: {c['n_layers']} blocks, d_model {c['d_model']}, vocabulary {c['vocab_size']}>"

    def _repr_html_(self) -> str:
        from html import escape

        from .results import table

        return f"<p><b>{escape(self.name)}</b></p>{table([self.config])}"


class State(Mapping[str, npt.NDArray[Any]]):
    """The state of one block: `conv`, the last K conv inputs `[K, E]`, and `ssm`, `[E, N]`; copies."""

    def __init__(self, parts: tuple[Any, Optional[float], Any, Optional[float]]) -> None:
        self._arrays = {"conv": parts[0], "ssm": parts[2]}
        #: The scale of each that is INT8, else None.
        self.scales = {"conv": parts[1], "ssm": parts[3]}

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class Decoder:
    """A sequence that runs, and its state."""

    def __init__(self, model: Model, inner: _scalescope.Decoder) -> None:
        self._of, self._decoder = model, inner
        #: What the last call of `feed` recorded.
        self.trace: Optional[Trace] = None

    @property
    def position(self) -> int:
        """Tokens that the state has seen."""
        return self._decoder.position

    def feed(
        self,
        tokens: Union[str, int, Tokens],
        *,
        points: Optional[Iterable[str]] = (),
        layers: Optional[Iterable[int]] = None,
    ) -> npt.NDArray[np.float32]:
        """Runs tokens on and gives the logits after the last, `[V]`.

        The first call runs its tokens as a prefill, later ones each as a decode step. `points` says what to record in
        `trace`; None records everything.
        """
        ids = self._of._tokens([tokens] if isinstance(tokens, (int, np.integer)) else tokens)
        if len(ids) != 1:
            raise Error(f"tokens: expected one sequence, found {len(ids)}")
        chosen = None if layers is None else [int(layer) for layer in layers]
        logits, parts = self._decoder.feed(ids[0].tolist(), _checked_points(points), chosen)
        self.trace = Trace._of(parts)
        return logits

    def generate(self, tokens: Union[str, Tokens], count: int, *, stop: Iterable[int] = ()) -> list[int]:
        """Runs tokens on and continues greedily by at most `count` tokens, up to one of `stop`."""
        ids = self._of._tokens(tokens)
        if len(ids) != 1:
            raise Error(f"tokens: expected one sequence, found {len(ids)}")
        return self._decoder.generate(ids[0].tolist(), count, list(stop))

    def state(self, layer: int) -> State:
        """The state of a block."""
        return State(self._decoder.state(layer))

    def copy(self) -> "Decoder":
        """The same sequence in the same state, to be continued otherwise."""
        return Decoder(self._of, self._decoder.copy())
