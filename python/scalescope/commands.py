"""The commands as functions: the same options under the same names, the same JSON."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any, Optional, Union

import numpy as np

from . import _scalescope
from ._progress import Progress
from ._scalescope import Error
from .results import Result
from .rules import AnyMode, AnyProfile, Mode, Profile
from .trace import Path, Trace

AnyTrace = Union[Trace, Path]


class _Call:
    """The arguments of a command. What lies in memory goes into files that live as long as the call."""

    def __init__(self, command: str) -> None:
        self.command = command
        self.arguments = [command]
        self.folder = tempfile.TemporaryDirectory(prefix="scalescope-")
        self._files = 0

    def __del__(self) -> None:
        self.folder.cleanup()

    def file(self, name: str) -> str:
        """A path for a file; its folder is left out of results and errors."""
        self._files += 1
        folder = os.path.join(self.folder.name, str(self._files))
        os.mkdir(folder)
        return os.path.join(folder, name)

    def text_file(self, name: str, text: str) -> str:
        path = self.file(name)
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        return path

    def option(self, name: str, value: Any) -> None:
        """`--name value`; nothing for None and False, `--name` for True."""
        if value is None or value is False:
            return
        flag = "--" + name.replace("_", "-")
        self.arguments += [flag] if value is True else [flag, os.fspath(value) if isinstance(value, os.PathLike) else str(value)]

    def options(self, **values: Any) -> None:
        for name, value in values.items():
            self.option(name, value)

    def joined(self, name: str, values: Any) -> None:
        """`--name a,b`."""
        if values is not None:
            values = [values] if isinstance(values, (str, int)) else values
            self.option(name, ",".join(str(v) for v in values))

    def each(self, name: str, values: Any) -> None:
        """`--name a --name b`."""
        for value in [values] if isinstance(values, str) else values or ():
            self.option(name, value)

    def mode_name(self, mode: AnyMode) -> str:
        mode = Mode(mode)
        if mode.toml is not None:
            self.option("modes_file", self.text_file("modes.toml", mode.toml))
        return mode.name

    def mode(self, mode: Optional[AnyMode], name: str = "mode") -> None:
        if mode is not None:
            self.option(name, self.mode_name(mode))

    def profile_name(self, profile: AnyProfile) -> str:
        profile = Profile(profile)
        if profile.toml is None:
            return profile.name
        name = os.path.basename(profile.name)
        name = name if name.endswith(".toml") else f"{name}.toml"
        return self.text_file(name, profile.toml)

    def profile(self, profile: Optional[AnyProfile]) -> None:
        if profile is not None:
            self.option("profile", self.profile_name(profile))

    def trace(self, trace: AnyTrace) -> str:
        if not isinstance(trace, Trace):
            return os.fspath(trace)
        path = self.file("trace.npz")
        trace.save(path, compress=False)
        return path

    def source(self, text: Any, tokens: Any, file: Any, limit: Any = None, length: Any = None) -> None:
        """Where a command's tokens come from."""
        self.options(text=text, file=file, limit=limit, length=length)
        if tokens is not None:
            if isinstance(tokens, (str, os.PathLike)):
                self.option("tokens", tokens)
                return
            ids = np.asarray(tokens)
            if ids.dtype.kind not in "iu":
                raise Error(f"tokens: expected integers of shape [L] or [B, L], found {ids.dtype} {list(ids.shape)}")
            path = self.file("tokens.npy")
            np.save(path, np.ascontiguousarray(ids))
            self.option("tokens", path)

    def printed(self, model: Optional[_scalescope.Model] = None) -> tuple[bool, str]:
        """What the command prints."""
        try:
            with Progress() as progress:
                call = _scalescope.call if model is None else model.call
                equal, text = call(self.arguments, progress)
            # Only what was written in memory lies there.
            for known in (json.dumps(self.folder.name)[1:-1], self.folder.name):
                text = self._without(known, text)
            return equal, text
        except Error as e:
            line = self._without(self.folder.name, str(e))
            raise Error(line) from None
        finally:
            self.folder.cleanup()

    def _without(self, folder: str, text: str) -> str:
        for number in range(self._files, 0, -1):
            for separator in ("/", "\\", "\\\\"):
                text = text.replace(f"{folder}{separator}{number}{separator}", "")
        return text

    def result(self, model: Optional[_scalescope.Model] = None, name: Optional[str] = None) -> Result:
        """Runs the command with `--json`."""
        self.arguments.append("--json")
        equal, text = self.printed(model)
        return Result(name or self.command, text, equal)


class Commands:
    """The commands that run on a model."""

    _model: _scalescope.Model

    def check(
        self,
        golden: AnyTrace,
        *,
        mode: Optional[AnyMode] = None,
        profile: Optional[AnyProfile] = None,
        faults: Union[str, Iterable[str]] = (),
        cumulative: bool = False,
        atol: Union[str, Iterable[str]] = (),
        explain: bool = False,
        map: Optional[Path] = None,
    ) -> Result:
        """Compares a run with a recorded trace, element by element (`scalescope check`)."""
        call = _Call("check")
        call.option("golden", call.trace(golden))
        call.mode(mode)
        call.profile(profile)
        call.each("fault", faults)
        call.each("atol", atol)
        call.options(cumulative=cumulative, explain=explain, map=map)
        return call.result(self._model)

    def attribute(
        self,
        trace: Optional[AnyTrace] = None,
        *,
        mode: AnyMode = "0",
        against: Optional[AnyMode] = None,
        profile: Optional[AnyProfile] = None,
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        faults: Union[str, Iterable[str]] = (),
        shapley: Optional[int] = None,
        stride: Optional[int] = None,
        seed: Optional[int] = None,
        map: Optional[Path] = None,
    ) -> Result:
        """Says what is wrong with a dump, or what each site of a mode costs (`scalescope attribute`)."""
        call = _Call("attribute")
        if trace is not None:
            call.option("trace", call.trace(trace))
        call.mode(mode)
        call.mode(against, "against")
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        call.each("fault", faults)
        call.options(shapley=shapley, stride=stride, seed=seed, map=map)
        return call.result(self._model)

    def equiv(
        self,
        a: AnyMode,
        b: AnyMode,
        *,
        profile: Union[AnyProfile, tuple[AnyProfile, AnyProfile]] = "exact",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        faults: Union[str, Iterable[str]] = (),
        decode: Optional[int] = None,
    ) -> Result:
        """Are two modes one computation? (`scalescope equiv`) Two profiles give `a` and `b` one each."""
        call = _Call("equiv")
        names = [call.mode_name(a), call.mode_name(b)]
        each = profile if isinstance(profile, tuple) else (profile,)
        call.option("profile", ",".join(call.profile_name(p) for p in each))
        call.source(text, tokens, file, limit, length)
        call.each("fault", faults)
        call.options(decode=decode)
        call.arguments += ["--json", "--", *names]
        equal, printed = call.printed(self._model)
        return Result("equiv", printed, equal)

    def propagate(
        self,
        *,
        mode: AnyMode = "0",
        against: Optional[AnyMode] = None,
        profile: AnyProfile = "exact",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        faults: Union[str, Iterable[str]] = (),
        time: bool = False,
    ) -> Result:
        """Where error is made and what becomes of it (`scalescope propagate`)."""
        call = _Call("propagate")
        call.mode(mode)
        call.mode(against, "against")
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        call.each("fault", faults)
        call.options(time=time)
        return call.result(self._model)

    def lineage(
        self,
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "exact",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        faults: Union[str, Iterable[str]] = (),
        layers: Optional[Iterable[int]] = None,
    ) -> Result:
        """Every scale from its quantizer to its readers, and what it meets (`scalescope lineage`)."""
        call = _Call("lineage")
        call.mode(mode)
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        call.each("fault", faults)
        call.joined("layers", layers)
        return call.result(self._model)

    def headroom(
        self,
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "asic-int8",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
    ) -> Result:
        """How wide accumulators, tables and values need to be (`scalescope headroom`)."""
        call = _Call("headroom")
        call.mode(mode)
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        return call.result(self._model)

    def sweep(
        self,
        vary: Union[None, str, Iterable[str], Mapping[str, Any]] = None,
        *,
        mode: AnyMode = "0",
        profile: AnyProfile = "asic-int8",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        choices: bool = False,
        budget: Optional[int] = None,
        output: Optional[Path] = None,
        html: Optional[Path] = None,
    ) -> Result:
        """A grid of hardware designs: what each loses and costs (`scalescope sweep`).

        `vary`: `"requant.multiplier_bits=8..16"`, several of them, or a dict of keys and values.
        """
        call = _Call("sweep")
        call.mode(mode)
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        if isinstance(vary, Mapping):
            lists = {k: v if isinstance(v, (list, tuple, range)) else [v] for k, v in vary.items()}
            vary = [f"{k}={','.join(str(x) for x in v)}" for k, v in lists.items()]
        call.each("vary", vary)
        call.options(choices=choices, budget=budget, output=output, html=html)
        return call.result(self._model)

    def recommend(
        self,
        *,
        mode: AnyMode = "0",
        against: Optional[AnyMode] = None,
        profile: AnyProfile = "exact",
        text: Optional[str] = None,
        tokens: Any = None,
        file: Optional[Path] = None,
        limit: Optional[int] = None,
        length: Optional[int] = None,
        stride: Optional[int] = None,
        bits: bool = False,
    ) -> Result:
        """Which small changes of a mode help most, measured (`scalescope recommend`)."""
        call = _Call("recommend")
        call.mode(mode)
        call.mode(against, "against")
        call.profile(profile)
        call.source(text, tokens, file, limit, length)
        call.options(stride=stride, bits=bits)
        return call.result(self._model)

    def evaluate(
        self,
        data: Union[Path, Iterable[str]],
        *,
        task: str = "last-word",
        modes: Union[str, Iterable[AnyMode]] = "all",
        reference: Optional[AnyMode] = None,
        profile: AnyProfile = "exact",
        faults: Union[str, Iterable[str]] = (),
        limit: Optional[int] = None,
        max_length: Optional[int] = None,
        protocol: Optional[str] = None,
        window: Optional[int] = None,
        stride: Optional[int] = None,
        samples: Optional[Path] = None,
        resume: bool = False,
        shard: Optional[str] = None,
        seed: Optional[int] = None,
    ) -> Result:
        """Accuracy and perplexity with intervals, tests and ties (`scalescope eval`).

        `data`: a file, or texts.
        """
        call = _Call("eval")
        if not isinstance(data, (str, os.PathLike)):
            lines = (json.dumps({"text": text}) + "\n" for text in data)
            data = call.text_file("data.jsonl", "".join(lines))
        if not isinstance(modes, str):
            modes = ",".join(call.mode_name(mode) for mode in modes)
        if reference is not None:
            reference = reference if reference == "none" else call.mode_name(reference)
        call.options(data=data, task=task, modes=modes, reference=reference)
        call.profile(profile)
        call.each("fault", faults)
        call.options(limit=limit, max_length=max_length, protocol=protocol, window=window, stride=stride)
        call.options(samples=samples, resume=resume, shard=shard, seed=seed, json="-")
        equal, text = call.printed(self._model)
        return Result("evaluate", text, equal)

    def calibrate(
        self,
        texts: Union[None, Path, Iterable[str]] = None,
        *,
        tokens: Any = None,
        samples: Optional[int] = None,
        length: Optional[int] = None,
        alpha: float = 0.9995,
        seed: Optional[int] = None,
    ) -> Result:
        """Activation scales of the float model on texts, token ids `[B, L]`, or text that it writes itself.

        The result is the JSON that `scales=` and `--scales` take; `alpha` is the percentile of x_proj_input and
        ssm_state.
        """
        sequences, file = None, None
        if tokens is not None:
            sequences = np.asarray(tokens).tolist()
        elif texts is not None and not isinstance(texts, (str, os.PathLike)):
            sequences = self._model.encode(list(texts))
        elif texts is not None:
            file = os.fspath(texts)
        with Progress() as progress:
            text = self._model.calibrate(sequences, file, samples, length, alpha, seed, progress)
        return Result("calibrate", text, True)


def _model(model: Any) -> Any:
    from .model import Model, load

    return model if isinstance(model, Model) else load(model)


def compare(
    a: AnyTrace,
    b: AnyTrace,
    *,
    atol: Union[str, Iterable[str]] = (),
    common: bool = False,
    map: Optional[Path] = None,
) -> Result:
    """Compares two traces, tensor by tensor, by every metric (`scalescope compare`).

    >>> import scalescope
    >>> model = scalescope.load()
    >>> a = model.run([5, 6, 7], mode="0")
    >>> b = model.run([5, 6, 7], mode="0", faults="stale-scale@layer=3,site=x_proj_input,factor=1.7")
    >>> scalescope.compare(a, b).equal
    False
    """
    call = _Call("compare")
    paths = [call.trace(a), call.trace(b)]
    call.each("atol", atol)
    call.options(common=common, map=map)
    call.arguments += ["--json", "--", *paths]
    equal, text = call.printed()
    return Result("compare", text, equal)


def quantize(
    checkpoint: Path,
    output: Path,
    *,
    format: Optional[str] = None,
    recipe: Optional[str] = None,
    ends: Optional[str] = None,
    head_scale: Optional[float] = None,
    scales: Optional[Path] = None,
    calibrate: Optional[Path] = None,
    tokenizer: Optional[Path] = None,
    samples: Optional[int] = None,
    length: Optional[int] = None,
    alpha: Optional[float] = None,
    weights: Optional[str] = None,
    seed: Optional[int] = None,
) -> Result:
    """Folds, calibrates and quantizes a float checkpoint (`scalescope quantize`); the JSON is that of `info`."""
    call = _Call("quantize")
    call.options(output=output, format=format, recipe=recipe, ends=ends, head_scale=head_scale)
    call.options(scales=scales, calibrate=calibrate, tokenizer=tokenizer, limit=samples)
    call.options(length=length, alpha=alpha, weights=weights, seed=seed)
    call.arguments += ["--", os.fspath(checkpoint)]
    call.printed()
    done = info(output)
    return Result("quantize", done.json, True)


def info(path: Path) -> Result:
    """What a folder or a file holds: kind, shapes, scales, what is missing (`scalescope info`)."""
    call = _Call("info")
    call.arguments += ["--json", "--", os.fspath(path)]
    equal, text = call.printed()
    return Result("info", text, equal)


def suggest_map(path: Path) -> str:
    """A mapping file to start from for a dump of another program (`scalescope map`)."""
    call = _Call("map")
    call.arguments += ["--", os.fspath(path)]
    return call.printed()[1]


def faults() -> Result:
    """The fault models that `faults=` takes (`scalescope faults`)."""
    return _Call("faults").result()


def check(golden: AnyTrace, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.check` of a model or of a path."""
    return _model(model).check(golden, **options)


def attribute(trace: Optional[AnyTrace] = None, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.attribute` of a model or of a path."""
    return _model(model).attribute(trace, **options)


def equiv(a: AnyMode, b: AnyMode, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.equiv` of a model or of a path."""
    return _model(model).equiv(a, b, **options)


def propagate(*, model: Any = "sample", **options: Any) -> Result:
    """`Model.propagate` of a model or of a path."""
    return _model(model).propagate(**options)


def lineage(*, model: Any = "sample", **options: Any) -> Result:
    """`Model.lineage` of a model or of a path."""
    return _model(model).lineage(**options)


def headroom(*, model: Any = "sample", **options: Any) -> Result:
    """`Model.headroom` of a model or of a path."""
    return _model(model).headroom(**options)


def sweep(vary: Any = None, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.sweep` of a model or of a path."""
    return _model(model).sweep(vary, **options)


def recommend(*, model: Any = "sample", **options: Any) -> Result:
    """`Model.recommend` of a model or of a path."""
    return _model(model).recommend(**options)


def evaluate(data: Any, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.evaluate` of a model or of a path."""
    return _model(model).evaluate(data, **options)


def calibrate(texts: Any = None, *, model: Any = "sample", **options: Any) -> Result:
    """`Model.calibrate` of a model or of a path."""
    return _model(model).calibrate(texts, **options)
