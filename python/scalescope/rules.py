"""Modes and profiles: what is INT8, and by which arithmetic."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any, Optional, Union

from . import _scalescope
from ._scalescope import Error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`below` with the fields of `above`, table by table."""
    out = dict(below)
    for key, value in above.items():
        inner = out.get(key)
        both = isinstance(value, Mapping) and isinstance(inner, Mapping)
        out[key] = _merged(inner, value) if both else value  # type: ignore[arg-type]
    return out


def _tables(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Keys with dots as tables in tables: `{"scan.state": "f16"}` is `{"scan": {"state": "f16"}}`."""
    out: dict[str, Any] = {}
    for key, value in fields.items():
        for part in reversed(key.split(".")):
            value = {part: value}
        out = _merged(out, value)
    return out


class Mode:
    """A mode: which tensors are INT8, which lie on the INT8 grid, which are true FP32.

    From the name of a built-in mode, or a dict with a `base` and the fields that differ:

    >>> Mode("2-4").fields["u"]
    'float'
    >>> Mode({"name": "2-4d", "base": "2-4", "scan": "cuda"}).fields["scan"]
    'cuda'
    >>> Mode("2-4").replace(scan="cuda", name="2-4d")
    Mode('2-4d')
    """

    name: str
    #: The text that states it; None for a name alone.
    toml: Optional[str]
    _row: dict[str, Any]

    def __init__(self, mode: Union[str, "Mode", Mapping[str, Any]]) -> None:
        if isinstance(mode, Mode):
            self.name, self.toml, self._row = mode.name, mode.toml, mode._row
        elif isinstance(mode, str):
            self.name, self.toml, self._row = mode, None, {"base": mode}
        elif isinstance(mode, Mapping):
            row = dict(mode)
            if "base" not in row:
                raise Error('mode: expected a dict with a "base", the name of a mode, found none')
            self.name = str(row.pop("name", f"{row['base']}*"))
            self.toml = _scalescope.to_toml(json.dumps({"mode": {self.name: row}}))
            self._row = row
        else:
            raise TypeError(f"mode: expected a name, a dict or a Mode, found {type(mode).__name__}")
        # A name that only a model's own modes file knows is looked up when the model runs.
        if self.toml is not None:
            _scalescope.mode(self.name, self.toml)

    @classmethod
    def from_toml(cls, text: str, name: Optional[str] = None) -> "Mode":
        """The mode of a modes file's text (docs/modes.md); `name` says which where there are several."""
        rows = json.loads(_scalescope.from_toml(text)).get("mode", {})
        if name is None:
            if len(rows) != 1:
                raise Error(f"modes: expected a name, one of {', '.join(rows)}, found none")
            (name,) = rows
        _scalescope.mode(name, text)
        mode = cls(name)
        mode.toml, mode._row = text, {"base": name}
        return mode

    @property
    def fields(self) -> dict[str, Any]:
        """Every field of the mode; docs/modes.md explains them."""
        return json.loads(_scalescope.mode(self.name, self.toml))

    def replace(self, *, name: Optional[str] = None, **fields: Any) -> "Mode":
        """The mode with other values of some fields."""
        row = {**self._row, **fields, "name": name or f"{self._row['base']}*"}
        if self.toml is not None and self._row.get("base") == self.name:
            # From a text: the row is added to it.
            new = {"base": self.name, **fields}
            more = _scalescope.to_toml(json.dumps({"mode": {row["name"]: new}}))
            return Mode.from_toml(f"{self.toml}\n{more}", row["name"])
        return Mode(row)

    def _repr_html_(self) -> str:
        from .results import table

        return table([{"field": k, "value": v} for k, v in self.fields.items()])

    def __repr__(self) -> str:
        return f"Mode({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mode) and self.fields == other.fields

    def __hash__(self) -> int:
        return hash(self.name)


class Profile:
    """A profile: the rules of every rounding, scale and order of operations.

    From the name of a built-in profile, the path of a .toml file, or a dict of the keys of docs/asic.md:

    >>> Profile("deployed").rules["cuda"]["prefill"]["hadamard"]["overflow"]
    'wrap'
    >>> wide = Profile("asic-int8").replace({"requant.multiplier_bits": 24}, name="wide")
    >>> wide.hash == Profile("asic-int8").hash
    False
    """

    name: str
    #: The text that states it; None for a name or a file.
    toml: Optional[str]
    #: sha256 of the rules; two profiles with one hash are one computation.
    hash: str

    def __init__(self, profile: Union[str, "Profile", Mapping[str, Any], "os.PathLike[str]"]) -> None:
        self.toml = None
        if isinstance(profile, Profile):
            self.name, self.toml = profile.name, profile.toml
        elif isinstance(profile, Mapping):
            keys = _tables(profile)
            self.name = str(keys.pop("name", "profile.toml"))
            self.toml = _scalescope.to_toml(json.dumps({"version": 1, **keys}))
        elif isinstance(profile, (str, os.PathLike)):
            self.name = os.fspath(profile)
        else:
            found = type(profile).__name__
            raise TypeError(f"profile: expected a name, a path, a dict or a Profile, found {found}")
        self._text, self._json, self.hash = _scalescope.profile(self.name, self.toml)

    @classmethod
    def from_toml(cls, text: str, name: str = "profile.toml") -> "Profile":
        """The profile of a profile file's text (docs/asic.md)."""
        keys = json.loads(_scalescope.from_toml(text))
        profile = cls({**keys, "name": name})
        return profile

    @property
    def rules(self) -> dict[str, Any]:
        """Every rule, as the commands' JSON names them."""
        return json.loads(self._json)

    @property
    def text(self) -> str:
        """The text of a profile file that states this profile."""
        return self._text

    def replace(
        self, keys: Optional[Mapping[str, Any]] = None, *, name: Optional[str] = None, **tables: Any
    ) -> "Profile":
        """The profile with other values of some keys, as `{"scan.state": "f16"}` or `scan={"state": "f16"}`."""
        base = json.loads(_scalescope.from_toml(self._text))
        over = _merged(_tables(keys or {}), tables)
        merged = _merged(base, over)
        merged["name"] = name or (self.name if self.name.endswith(".toml") else f"{self.name}.toml")
        return Profile(merged)

    def _repr_html_(self) -> str:
        from html import escape

        return f"<b>{escape(self.name)}</b><pre>{escape(self.text)}</pre>"

    def __repr__(self) -> str:
        return f"Profile({self.name!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Profile) and self.hash == other.hash

    def __hash__(self) -> int:
        return hash(self.hash)


AnyMode = Union[str, Mode, Mapping[str, Any]]
AnyProfile = Union[str, Profile, Mapping[str, Any], "os.PathLike[str]"]


def modes() -> list[Mode]:
    """Every built-in mode."""
    return [Mode(row["name"]) for row in json.loads(_scalescope.modes())]


def profiles() -> list[Profile]:
    """Every built-in profile."""
    return [Profile(name) for name in _scalescope.profiles()]
