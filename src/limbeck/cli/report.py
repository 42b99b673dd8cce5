from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import plain, waiting


def add(commands: Commands) -> None:
    """Add ``limbeck report``."""
    parser = commands.add("report", _report, COMMANDS["report"])
    parser.add_argument(
        "folders", type=str, nargs="+", help="a run's, a comparison's, a search's, or those of several runs"
    )
    parser.add_argument("--to", type=str | None, help="the page to write; by default report.html in the folder")


def _report(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Draw a page, and say where it is."""
    from rich.console import Console

    with waiting("drawing the page"):
        from limbeck.report.redraw import redraw

        page = redraw(leaf.folders, leaf.to)
    Console(emoji=False, highlight=False, soft_wrap=True).print(plain(str(page)))
    return 0
