"""What is warned of while something runs: terminals scroll away, and a page is to say it too."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

NUMBER = re.compile(r"(?<![\w.'/:-])-?\d[\d.,]*(?:e[+-]?\d+)?")
"""A number in a sentence, and none in a name: ``resnet8``, ``layers.2``."""


@dataclass(frozen=True)
class Warned:
    """A warning: its category's name, and what it says."""

    kind: str
    message: str


_listeners: list[list[Warned]] = []
"""What each has heard who listens now, the last to begin at the end."""


@contextmanager
def listening() -> Iterator[None]:
    """Hear what is warned of while the block runs, so that a run which begins in it knows what was said before.

    Each warning is shown once, see `shown_once`.
    """
    mine: list[Warned] = []
    with hearing(mine.append), shown_once():
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
    with _instead(lambda shower: replace(shower, tell=tell)):
        yield


@contextmanager
def shown_once() -> Iterator[None]:
    """Show each warning of a kind once while the block runs, whatever its numbers and place; who hears, hears all.

    A block within the block shows nothing that was shown before it.
    """
    with _instead(lambda shower: shower if shower.shown is not None else replace(shower, shown=set())):
        yield


@contextmanager
def placed(place: str) -> Iterator[None]:
    """Say before each warning that is shown while the block runs where it comes from; who hears is not told."""
    with _instead(lambda shower: replace(shower, place=place)):
        yield


@dataclass(frozen=True)
class _Shower:
    """What stands in for `warnings.showwarning`.

    Args:
        show: What it stands in for.
        tell: Hears what is warned of.
        place: Where it comes from, if that is to be said.
        shown: What was shown already; None where everything is shown.
    """

    show: Callable[..., object]
    tell: Callable[[Warned], object] = lambda warned: None
    place: str = ""
    shown: set[tuple[str, str]] | None = None

    def __call__(self, message: Warning | str, category: type[Warning], *source: Any, **line: Any) -> None:
        text = str(message)
        self.tell(Warned(category.__name__, text))
        if self.shown is not None:
            kind = category.__name__, NUMBER.sub("#", text)
            if kind in self.shown:
                return
            self.shown.add(kind)
        self.show(f"{self.place}: {text}" if self.place else message, category, *source, **line)


@contextmanager
def _instead(change: Callable[[_Shower], _Shower]) -> Iterator[None]:
    """Let another shower stand in while the block runs."""
    outer = warnings.showwarning
    warnings.showwarning = change(outer if isinstance(outer, _Shower) else _Shower(outer))
    try:
        yield
    finally:
        warnings.showwarning = outer
