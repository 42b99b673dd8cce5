from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from limbeck.cli.console import plain
from limbeck.cli.parser import Commands, first_line
from limbeck.report.redraw import redraw


def add(commands: Commands) -> None:
    """Add ``limbeck report``."""
    parser = commands.add("report", _report, first_line(_report))
    parser.add_argument(
        "folders", type=str, nargs="+", help="a run's, a comparison's, a search's, or those of several runs"
    )
    parser.add_argument("--to", type=str | None, help="the page to write; by default report.html in the folder")


def _report(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Draw the page of a run, a comparison or a search anew, or put several runs beside each other."""
    Console(emoji=False, highlight=False, soft_wrap=True).print(plain(str(redraw(leaf.folders, leaf.to))))
    return 0
