"""Where each name is documented."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from functools import cache

from generator import SOURCE
from limbeck import losses, methods

DESCRIBED = re.compile(r"^::: (\S+)$", re.MULTILINE)
"""A line of a page in whose place the description of this name comes."""


@cache
def places() -> Mapping[str, str]:
    """Return the page of each documented name, with its place on it, as from the root of the documentation."""
    pages = [(path, path.read_text()) for path in sorted((SOURCE / "api").glob("*.md"))]
    named = {name: f"/api/{path.name}#{name}" for path, text in pages for name in DESCRIBED.findall(text)}
    for method in methods.__all__:
        named |= {part: f"/methods/{method}.md#{part}" for part in parts(method)}
        named |= dict.fromkeys((method, f"limbeck.{method}"), f"/methods/{method}.md")
    return named


def parts(method: str) -> list[str]:
    """Return the losses and modules of a method's file, losses by their public names; none, if `home` is another method."""
    if home(method) != method:
        return []
    module = sys.modules[getattr(methods, method).__module__]
    public = {id(loss): f"limbeck.losses.{known}" for known, loss in vars(losses).items() if callable(loss)}
    paths = []
    for own, value in vars(module).items():
        ours = getattr(value, "__module__", None) == module.__name__ and own not in methods.__all__
        if ours and (id(value) in public or (own[0] != "_" and "\nArgs:" in (inspect.getdoc(value) or ""))):
            paths.append(public.get(id(value), f"{module.__name__}.{own}"))
    return list(dict.fromkeys(paths))


def home(method: str) -> str:
    """Return the method with which the parts of a method's file are described: the first in it."""
    file = getattr(methods, method).__module__
    return next(other for other in methods.__all__ if getattr(methods, other).__module__ == file)
