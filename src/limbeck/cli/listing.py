from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck import data as datasets
from limbeck import methods, zoo
from limbeck.cli.console import print_lines
from limbeck.cli.parser import Commands, first_line
from limbeck.engine.assemble import paper_of


def add(commands: Commands) -> None:
    """Add ``limbeck list`` and ``limbeck cite``."""
    commands.add_family("list", "list methods, networks or data sets", "List what has a name.")
    for what, does in (("methods", _list_methods), ("networks", _list_networks), ("data", _list_data)):
        commands.add(f"list {what}", does, first_line(does))
    cited = commands.add("cite", _cite, first_line(_cite))
    cited.add_argument("method", type=str, help="a method of `limbeck list methods`")


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


def _cite(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Print a method's BibTeX entry."""
    print(paper_of(leaf.method).bibtex())
    return 0
