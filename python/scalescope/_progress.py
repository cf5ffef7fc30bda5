"""Progress of long work in tqdm, if it is installed and somebody can see it."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Optional


def _seen() -> bool:
    try:
        return sys.stderr.isatty() or "ipykernel" in sys.modules
    except (AttributeError, ValueError):
        return False


class Progress:
    """A bar that appears after a second."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._bar: Any = None
        self._what: Optional[str] = None

    def __call__(self, done: int, of: int, what: str) -> None:
        if time.monotonic() - self._start < 1 or not _seen():
            return
        if self._bar is None or self._what != what:
            try:
                from tqdm.auto import tqdm
            except ImportError:
                return
            self._close()
            self._bar, self._what = tqdm(total=of, desc=what), what
        self._bar.update(done - self._bar.n)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._close()
