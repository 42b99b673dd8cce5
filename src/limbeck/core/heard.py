"""What is warned of while something runs: terminals scroll away, and a page is to say it too."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Warned:
    """A warning: its category's name, and what it says."""

    kind: str
    message: str


_listeners: list[list[Warned]] = []
"""What each has heard who listens now, the last to begin at the end."""


@contextmanager
def listening() -> Iterator[None]:
    """Hear what is warned of while the block runs, so that a run which begins in it knows what was said before."""
    mine: list[Warned] = []
    with hearing(mine.append):
        _listeners.append(mine)
        try:
            yield
        finally:
            _listeners.remove(mine)


def heard_before() -> list[Warned]:
    """Return what those have heard who listen now."""
    return [one for each in _listeners for one in each]


@contextmanager
def hearing(tell: Callable[[Warned], object]) -> Iterator[None]:
    """Pass on what is warned of while the block runs; it is shown as ever. Who hears within the block hears alone."""
    outer = warnings.showwarning
    show = getattr(outer, "show", outer)

    def note(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
        tell(Warned(category.__name__, str(message)))
        show(message, category, *place, **line)

    note.show = show  # type: ignore[attr-defined]
    warnings.showwarning = note
    try:
        yield
    finally:
        warnings.showwarning = outer
