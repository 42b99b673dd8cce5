from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.parser import Commands, first_line
from limbeck.cli.terminal import print_lines
from limbeck.methods._papers import papers


def add(commands: Commands) -> None:
    """Add ``limbeck list``."""
    listed = {"methods": _list_methods, "networks": _list_networks, "data": _list_data, "tasks": _list_tasks}
    commands.add_family("list", COMMANDS["list"], COMMANDS["list"], title="what", metavar="|".join(listed))
    for what, does in listed.items():
        commands.add(f"list {what}", does, first_line(does))


def _list_methods(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the methods: name, paper, year, what is matched, who teaches."""
    lines = [(name, of.title, str(of.year), of.matches, of.teacher) for name, of in papers().items()]
    return print_lines(("method", "paper", "year", "matches", "who teaches"), lines)


def _list_networks(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the networks that have a name."""
    from limbeck import zoo

    return print_lines(("network", "what it is"), zoo.describe())


def _list_data(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the data sets that have a name."""
    from limbeck import data

    return print_lines(("data", "what it is"), data.describe())


def _list_tasks(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """List the tasks that have a name."""
    from limbeck.cli import tasks

    return print_lines(("task", "what it is"), tasks.describe())
