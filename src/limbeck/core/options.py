"""Types and ranges of arguments: signature and docstring say them, and the function is held to what they say."""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from torch import Tensor, nn

from limbeck.core.sound import no_network

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
    """Hold each argument that a function is given to its signature's type, and to the range that its docstring says.

    Of types, networks, numbers, strings, truth values, paths, choices and lists of these are looked at, and classes of
    ours. Of ranges, those of numbers, and of tuples and lists of numbers; functions of the progress pass for a number.

    Raises:
        TypeError: When it is called with another type; the message names the argument, what was expected, and what came.
        ValueError: When it is called with a number out of range, or with none of several choices; likewise.
    """
    ranges = ranges_of(function)
    types = functools.cache(lambda: inspect.signature(function, eval_str=True).parameters)  # once all is imported

    @functools.wraps(function)
    def held(*args: P.args, **kwargs: P.kwargs) -> R:
        parameters = types()
        for name, value in {**dict(zip(parameters, args, strict=False)), **kwargs}.items():
            if name in parameters and parameters[name].kind not in _COLLECTING:
                refuse_type(name, value, parameters[name].annotation, _order(function, parameters))
            if name in ranges:
                refuse_outside(name, value, ranges[name])
        return function(*args, **kwargs)

    return held


_COLLECTING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _order(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> str:
    """How a function is called, without its options."""
    first = [name for name, one in parameters.items() if one.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    return f"limbeck.{function.__name__}({', '.join(first)}, ...)"


def refuse_type(name: str, value: Any, wanted: Any, call: str) -> None:
    """Raise a TypeError unless a value is of the type that an annotation says; of several choices, a ValueError.

    Args:
        name: Of the argument.
        value: What came.
        wanted: The annotation.
        call: How the function is called: arguments in the wrong order are told.
    """
    if _fits(value, wanted):
        return
    kinds = get_args(wanted) if _is_union(wanted) else (wanted,)
    several = next((kind for kind in kinds if get_origin(kind) is Sequence), None)
    if several is not None and isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        for at, one in enumerate(value):
            refuse_type(f"{name}[{at}]", one, get_args(several)[0], call)
    if nn.Module in kinds:
        raise TypeError(no_network(name, value, call))
    expected = f"{name} must be {' or '.join(_words(kind) for kind in kinds if kind is not type(None))}"
    if any(get_origin(kind) is Literal for kind in kinds):
        raise ValueError(f"{expected}, got {value!r}")
    remedy = f": call it, {value.__name__}(...)" if isinstance(value, type) else ""
    raise TypeError(f"{expected}, got {shown(value)}{remedy}")


def refuse_call(name: str, function: Any, like: str, *args: Any) -> None:
    """Raise a TypeError unless a function may be called with these arguments.

    Args:
        name: What it was given as.
        function: What came.
        like: How it should look.
        args: What it will be called with.
    """
    if not callable(function) or isinstance(function, nn.Module):
        raise TypeError(f"{name} must be a function, {like}, got {shown(function)}")
    try:
        inspect.signature(function).bind(*args)
    except TypeError as error:
        raise TypeError(f"{name} is called with {len(args)} argument{'s'[: len(args) > 1]}, {like}: {error}") from error
    except ValueError:  # no signature to be had
        return


def shown(value: Any) -> str:
    """Return a value in a message: itself where it is short, and else its type."""
    if isinstance(value, (str, int, float)) or value is None:
        return f"the string {value!r}" if isinstance(value, str) else repr(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__}"


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is of a type, as far as one can see: what is in tuples and mappings is not looked at."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if _is_union(wanted):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if wanted is float:
        changes = callable(value) and not isinstance(value, (type, nn.Module))  # as the training goes on
        return changes or isinstance(value, Tensor) or _is(value, Real)
    if wanted is int:
        return _is(value, Integral)
    if origin in (Sequence, list, tuple):
        several = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
        return several and (origin is tuple or all(_fits(one, inner[0]) for one in value))
    if wanted is Tensor or origin in (Callable, Iterable):  # who calls or goes through it has words of its own
        return True
    kind = origin or wanted
    return kind in (Any, inspect.Parameter.empty) or not isinstance(kind, type) or isinstance(value, kind)


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, UnionType)


def _words(wanted: Any) -> str:
    """What a type is called in a message."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin in (Sequence, list, tuple):
        return f"a list, each of it {_words(inner[0])}" if origin is not tuple and inner else "a tuple"
    kind = origin or wanted
    if kind in _NAMED:
        return _NAMED[kind]
    name, package = getattr(kind, "__name__", str(kind)), getattr(kind, "__module__", "").partition(".")[0]
    return f"a limbeck.{name}" if package == "limbeck" else f"a {name} of {package}" if package else f"a {name}"


_NAMED = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a string",
    os.PathLike: "a path",
    Mapping: "a dict",
    nn.Module: "a network",
}


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
