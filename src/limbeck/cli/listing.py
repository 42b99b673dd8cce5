from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck import data as datasets
from limbeck import methods, zoo
from limbeck.cli import tasks
from limbeck.cli.console import print_lines
from limbeck.cli.parser import Commands, first_line
from limbeck.engine.assemble import paper_of, parts_of


def add(commands: Commands) -> None:
    """Add ``limbeck list`` and ``limbeck cite``."""
    commands.add_family("list", "list methods, networks, data sets or tasks", "List what has a name.")
    listed = {"methods": _list_methods, "networks": _list_networks, "data": _list_data, "tasks": _list_tasks}
    for what, does in listed.items():
        commands.add(f"list {what}", does, first_line(does))
    cited = commands.add("cite", _cite, first_line(_cite))
    cited.add_argument("method", type=str, help="a method of `limbeck list methods`, or several, kd+at")


def _list_methods(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the methods: name, paper, year, what is matched, who teaches."""
    papers = {name: paper_of(name) for name in methods.__all__}
    lines = [(name, of.title, str(of.year), of.matches, of.teacher) for name, of in papers.items()]
    return print_lines(("method", "paper", "year", "matches", "who teaches"), lines)


def _list_networks(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the networks that have a name."""
    return print_lines(("network", "what it is"), zoo.describe())


def _list_data(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the data sets that have a name."""
    return print_lines(("data", "what it is"), datasets.describe())


def _list_tasks(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the tasks that have a name."""
    return print_lines(("task", "what it is"), tasks.describe())


def _cite(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Print a method's BibTeX entry."""
    papers = [paper_of(part) for part in parts_of(leaf.method)]
    print("\n".join(dict.fromkeys(paper.bibtex() for paper in papers)))
    return 0
