"""Methods with values of their options, and what is searched, as the command line writes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

import yaml

from limbeck.cli.help import kinds_of
from limbeck.cli.parser import Words
from limbeck.engine.assemble import GIVEN, parameters_of
from limbeck.verbs.compare import grid
from limbeck.verbs.runs import Entry
from limbeck.verbs.tune import Range

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER}):({NUMBER})(:log)?")


def entries_of(words: str) -> list[Entry]:
    """Read ``kd:temperature=1,4,20:alpha=0.5``: a method with the values of its options, every combination of them.

    ``kd:temperature=2+at`` is a sum, in which an option of a method bears its name: ``kd.temperature``.
    """
    parts = re.split(r"\+(?=[a-z]\w*(?:[:+]|$))", words)  # no number begins so, as in 1e+3
    values: dict[str, list[Any]] = {}
    for part in parts:
        method, _, rest = part.partition(":")
        for option in re.split(r":(?=[\w.-]+=)", rest) if rest else []:  # a layer's name may hold a colon
            name, _, listed = option.partition("=")
            if not listed:
                raise ValueError(f"{words}: expected METHOD:OPTION=VALUE,VALUE:..., got {option!r}")
            name = name.replace("-", "_")
            takes = parameters_of(method)
            own = len(parts) > 1 and name not in GIVEN and name in takes
            values[f"{method}.{name}" if own else name] = _values(listed, _named(takes.get(name)))
    return grid("+".join(part.partition(":")[0] for part in parts), **values)


def search_of(
    words: Iterable[str], takes: Mapping[str, inspect.Parameter] | None = None
) -> dict[str, Range | list[Any]]:
    """Read ``temperature=1:20:log``, a range, or ``layer=layer1,layer2``, choices; one each.

    Args:
        words: Each an option and what is tried.
        takes: What the method takes: in choices of names a number is a name.
    """
    search: dict[str, Range | list[Any]] = {}
    for word in words:
        name, _, text = word.partition("=")
        name = name.replace("-", "_")
        values = _range(word, text) or _values(text, _named((takes or {}).get(name)))
        if not text or (isinstance(values, list) and len(values) < 2):
            raise ValueError(f"{word}: expected OPTION=LOW:HIGH, OPTION=LOW:HIGH:log or OPTION=VALUE,VALUE,...")
        if search.setdefault(name, values) is not values:
            raise ValueError(f"{word}: {name} is searched already; one range or list of choices for each option")
    return search


def _range(word: str, text: str) -> Range | None:
    """Return the range that a text is, if it is one."""
    bounds = RANGE.fullmatch(text)
    if not bounds:
        return None
    low, high = _values(f"{bounds[1]},{bounds[2]}", named=False)
    try:
        return Range(low, high, log=bool(bounds[3]))
    except ValueError as error:
        raise ValueError(f"{word}: {error}") from error


def _values(text: str, named: bool) -> list[Any]:
    """Return what commas part; a value may be a list, ``[layer1,layer1]``; among names a number is one, ``[2,relu]``."""
    try:
        values = yaml.load(f"[{text}]", Words if named else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{text}: expected values that commas part, where a list is one in brackets") from error
    if named:
        return list(values)
    # YAML takes 1e-3 for a word
    return [float(each) if isinstance(each, str) and re.fullmatch(NUMBER, each) else each for each in values]


def _named(parameter: inspect.Parameter | None) -> bool:
    """Whether what a method takes are names, alone or in lists."""
    kinds = set() if parameter is None else _single(parameter.annotation)
    return str in kinds and not kinds & {int, float}


def _single(annotation: Any) -> set[Any]:
    """Return the types that a type is made of at last."""
    found: set[Any] = set()
    for kind in kinds_of(annotation):
        inner = get_args(kind)
        found |= set().union(*map(_single, inner)) if inner else {kind}
    return found
