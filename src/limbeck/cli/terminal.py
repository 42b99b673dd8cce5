"""What is said on a terminal by every command, also by those that import nothing heavy."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

STOPPED = 128 + signal.SIGINT
"""The exit code of a program that Ctrl-C ended."""


def complain(message: str) -> None:
    """Print an error in words."""
    _on_error(f"[red]limbeck: error:[/red] {plain(message)}")


def warn(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
    """Show a warning as a sentence, without the line of ours that it came from."""
    _on_error(f"[yellow]limbeck: warning:[/yellow] {plain(str(message))}")


def _on_error(line: str) -> None:
    from rich.console import Console

    Console(emoji=False, stderr=True, highlight=False, soft_wrap=True).print(line)


@contextmanager
def waiting(doing: str) -> Iterator[None]:
    """Say on a terminal what takes a moment, until it is done: ``limbeck: loading torch``; nothing into a file."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(emoji=False, stderr=True).status(f"limbeck: {doing}"):
        yield


def print_lines(header: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> int:
    """Print one line each: as wide as they are into a file, cut off at the edge of a terminal."""
    from rich.console import Console
    from rich.table import Table

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
