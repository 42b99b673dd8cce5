"""Where the methods come from, read in their files as text: to import all of them takes seconds."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

from limbeck import methods
from limbeck.core.paper import Paper


@cache
def papers() -> Mapping[str, Paper]:
    """Return the reference of each method: its file's PAPER, with what PAPER_OF says of a method of several in a file."""
    found: dict[str, Paper] = {}
    for path in Path(__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        said = {ast.unparse(node.targets[0]): node.value for node in tree.body if isinstance(node, ast.Assign)}
        if isinstance(call := said.get("PAPER"), ast.Call):
            paper = Paper(**{each.arg: ast.literal_eval(each.value) for each in call.keywords if each.arg})
            otherwise = ast.literal_eval(said["PAPER_OF"]) if "PAPER_OF" in said else {}
            names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
            found |= {name: replace(paper, **otherwise.get(name, {})) for name in names}
    return {name: found[name] for name in methods.__all__}


def paper_of(name: str) -> Paper:
    """Return a method's reference.

    Raises:
        ValueError: There is no such method; with the closest.
    """
    if name not in papers():
        close = difflib.get_close_matches(name, papers(), n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else "`limbeck list methods` shows them"
        raise ValueError(f"unknown method {name!r}: {meant}")
    return papers()[name]
