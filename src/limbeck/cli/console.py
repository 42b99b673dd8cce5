from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from limbeck.core.task import Score

STOPPED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended."""


def complain(message: str) -> None:
    """Print an error in words."""
    Console(emoji=False, stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]limbeck: error:[/red] {plain(message)}"
    )


def warn(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
    """Show a warning as a sentence, without the line of ours that it came from."""
    console = Console(emoji=False, stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[yellow]limbeck: warning:[/yellow] {plain(str(message))}")


def show_metric(score: Score, name: str, value: float) -> str:
    """Return a metric as a table has it: the score in its unit."""
    return score.show(value) if name == score.name else f"{value:.4f}"


def print_lines(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> int:
    """Print one line each: as wide as they are into a file, cut off at the edge of a terminal."""
    table = Table(*header, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap, column.overflow = True, "ellipsis"
    for line in lines:
        table.add_row(*map(plain, line))
    Console(emoji=False, width=None if sys.stdout.isatty() else 1000).print(table)
    return 0


def plain(text: str) -> str:
    """Escape what rich would take for markup."""
    return text.replace("[", r"\[")
