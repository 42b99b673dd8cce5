from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.parser import Commands
from limbeck.methods._papers import paper_of


def add(commands: Commands) -> None:
    """Add ``limbeck cite``."""
    parser = commands.add("cite", _cite, COMMANDS["cite"])
    parser.add_argument("method", type=str, help="a method of `limbeck list methods`, or several, kd+at")


def _cite(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Print the entry of each method in a sum, and of a paper once."""
    found = [paper_of(part) for part in leaf.method.split("+")]
    print("\n".join(dict.fromkeys(paper.bibtex() for paper in found)))
    return 0
