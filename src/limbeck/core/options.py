"""Ranges of options: a docstring says them, and the function is held to what it says."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_NUMBER = r"-?\d+(?:\.\d+)?"
_WORDS = re.compile(
    rf"\b(?P<bound>above|at least) (?P<low>{_NUMBER})(?!\S*\w)"
    rf"|in (?P<opens>[\[(])(?P<least>{_NUMBER}), (?P<most>{_NUMBER})(?P<closes>[\])])"
)


@dataclass(frozen=True)
class Range:
    """The numbers that an option may have, in words and as a test."""

    words: str
    low: float
    high: float
    above: bool
    below: bool

    def __contains__(self, value: float) -> bool:
        over = value > self.low if self.above else value >= self.low
        under = value < self.high if self.below else value <= self.high
        return over and under  # neither is NaN


def range_in(words: str) -> Range | None:
    """Return the first range that is said: "above 0", "at least 1", "in [0, 1]", "in (0, 1]"; None where there is none."""
    found = _WORDS.search(words)
    if found is None:
        return None
    if found["bound"]:
        above = found["bound"] == "above"
        return Range(found[0], float(found["low"]), math.inf, above, below=True)
    return Range(found[0], float(found["least"]), float(found["most"]), found["opens"] == "(", found["closes"] == ")")


def ranges_of(function: Callable[..., Any]) -> dict[str, Range]:
    """Return the range of each argument whose line under ``Args`` says one, before its first semicolon."""
    doc, found = inspect.getdoc(function) or "", {}
    for name in inspect.signature(function).parameters:
        line = re.search(rf"^ +{name}: (.*(?:\n {{8,}}.*)*)", doc, re.MULTILINE)
        if line is not None and (said := range_in(" ".join(line[1].split()).partition(";")[0])) is not None:
            found[name] = said
    return found


def ranged(function: Callable[P, R]) -> Callable[P, R]:
    """Hold each argument that a function is given to the range that its docstring says.

    Numbers are looked at, and those of tuples and lists; None and functions of the progress pass.

    Raises:
        ValueError: When it is called with a number out of range; the message names the argument, its range, and what came.
    """
    ranges = ranges_of(function)

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in kwargs.items():
            if name in ranges:
                refuse_outside(name, value, ranges[name])
        return function(*args, **kwargs)

    return held


def refuse_outside(name: str, value: Any, allowed: Range) -> None:
    """Raise a ValueError unless a number, or each of several, lies in a range."""
    for one in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(one, (int, float)) and not isinstance(one, bool) and one not in allowed:
            raise ValueError(f"{name} must be {allowed.words}, got {value}")


def refuse_all_zero(**weights: float) -> None:
    """Raise a ValueError if all weights of a method's own terms are 0."""
    if not any(weights.values()):
        *first, last = weights
        raise ValueError(
            f"{', '.join(first)} and {last} are all 0: give one of them another weight, or nothing of the method is left"
        )
