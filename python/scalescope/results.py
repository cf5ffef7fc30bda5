"""What commands answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Optional

#: The table that `rows()` gives, by command.
_TABLES = {
    "compare": ("points",),
    "check": ("points",),
    "attribute": ("sites", "findings"),
    "propagate": ("sites",),
    "lineage": ("quantizers",),
    "headroom": ("accumulators",),
    "sweep": ("designs",),
    "evaluate": ("modes",),
    "info": ("entries",),
    "quantize": ("entries",),
    "recommend": ("helpful", "weights"),
    "calibrate": ("layers",),
    "report": ("modes",),
    "faults": ("faults",),
}


def _flat(row: Mapping[str, Any], head: str = "") -> dict[str, Any]:
    """A row without tables in it: `{"a": {"b": 1}}` is `{"a.b": 1}`."""
    out: dict[str, Any] = {}
    for key, value in row.items():
        if isinstance(value, Mapping):
            out.update(_flat(value, f"{head}{key}."))
        elif isinstance(value, list):
            out[f"{head}{key}"] = json.dumps(value)
        else:
            out[f"{head}{key}"] = value
    return out


def table(rows: list[dict[str, Any]], most: int = 60) -> str:
    """Rows as an HTML table."""
    flat = [_flat(row) for row in rows[:most]]
    header = list(dict.fromkeys(key for row in flat for key in row))

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return escape(f"{value:.6g}" if isinstance(value, float) else str(value))

    lines = ["<table><thead><tr>", *(f"<th>{escape(h)}</th>" for h in header), "</tr></thead><tbody>"]
    for row in flat:
        lines += ["<tr>", *(f"<td>{cell(row.get(h))}</td>" for h in header), "</tr>"]
    lines.append("</tbody></table>")
    if len(rows) > most:
        lines.append(f"<p>and {len(rows) - most} more rows</p>")
    return "".join(lines)


class Result(Mapping[str, Any]):
    """The JSON of a command, as a mapping, as rows and as a table.

    >>> import scalescope
    >>> found = scalescope.equiv("2-1", "0")
    >>> found.equal, found["a"]
    (True, '2-1')
    """

    def __init__(self, command: str, text: str, equal: bool) -> None:
        self.command = command
        #: The JSON text that the command prints.
        self.json = text
        #: Whether everything compared was equal and nothing was found wrong: exit code 0 of the command.
        self.equal = equal
        parsed = json.loads(text)
        self._fields: dict[str, Any] = parsed if isinstance(parsed, dict) else {command: parsed}

    def __getitem__(self, key: str) -> Any:
        return self._fields[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def tables(self) -> list[str]:
        """The keys that hold rows."""
        return [
            key
            for key, value in self._fields.items()
            if isinstance(value, list) and all(isinstance(row, dict) for row in value)
        ]

    def rows(self, table: Optional[str] = None) -> list[dict[str, Any]]:
        """The rows of a table, the command's main one by default; of a command that has none, its answer as one row."""
        if table is None:
            named = [name for name in _TABLES.get(self.command, ()) if name in self._fields]
            if not named:
                return [{k: v for k, v in self._fields.items() if not isinstance(v, list)}]
            table = named[0]
        elif table not in self.tables():
            raise KeyError(f"{table}: expected one of {', '.join(self.tables())}")
        return list(self._fields[table])

    def to_pandas(self, table: Optional[str] = None) -> Any:
        """The rows as a pandas.DataFrame; nested fields get names with dots."""
        import pandas

        return pandas.DataFrame([_flat(row) for row in self.rows(table)])

    def to_polars(self, table: Optional[str] = None) -> Any:
        """The rows as a polars.DataFrame; nested fields get names with dots."""
        import polars

        return polars.DataFrame([_flat(row) for row in self.rows(table)], infer_schema_length=None)

    def _repr_html_(self) -> str:
        facts = {k: v for k, v in self._fields.items() if not isinstance(v, (list, dict))}
        head = ", ".join(f"{escape(k)} {escape(str(v))}" for k, v in facts.items())
        return f"<p><b>{escape(self.command)}</b> {head}</p>{table(self.rows())}"

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(self._fields[t])} {t}" for t in self.tables())
        return f"<{self.command}: {'equal' if self.equal else 'not equal'}{', ' + counts if counts else ''}>"
