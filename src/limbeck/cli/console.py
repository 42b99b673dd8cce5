from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from torch import nn

from limbeck.core.task import Score
from limbeck.measure.cost import cost
from limbeck.report.table import milliseconds, quantity

if TYPE_CHECKING:
    from limbeck.cli.case import Case

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


def show_networks(title: str, measured: Mapping[str, tuple[nn.Module, Mapping[str, float]]], case: Case) -> None:
    """Print what networks cost, and how good they are."""
    score = case.task.score
    names = {name: None for _, metrics in measured.values() for name in (score.name, *metrics)}
    table = Table("network", "params", "MACs", "latency", *names, title=title)
    for name, (net, metrics) in measured.items():
        try:
            price = cost(net, case.example, case.task)
            cells = quantity(price.parameters), quantity(price.macs), milliseconds(price.latency_ms)
        except Exception as error:  # noqa: BLE001  # a network of the user's own may not run on one sample alone
            warnings.warn(f"the cost of {name} could not be measured: {type(error).__name__}: {error}", stacklevel=2)
            cells = ("–",) * 3
        shown = (show_metric(score, metric, metrics[metric]) if metric in metrics else "–" for metric in names)
        table.add_row(plain(name), *cells, *shown)
    Console(emoji=False).print(table)


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
