"""The table of FitNets: what students save beside their teacher, the first of the networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from limbeck.measure.accounts import Account
from limbeck.report.table import milliseconds, quantity

if TYPE_CHECKING:
    from rich.table import Table

NARROW = 8
"""How many columns of the table a terminal of 80 has room for."""
LEGEND = (
    "Parameters and multiplications of convolutions and linear layers alone; layers are those on the longest way through "
    "the network. Ratios are the teacher's over the network's: of latency (one sample, one CPU thread, timed in turn), of "
    "multiplications, of parameters."
)


def header(accounts: Sequence[Account]) -> tuple[str, ...]:
    """Return the names of the columns."""
    reached = accounts[0].score.name
    return ("network", "layers", "parameters", "mults", reached, "speed-up", "fewer mults", "compression", "latency")


def legend(accounts: Sequence[Account]) -> str:
    """Say what the columns mean."""
    score = accounts[0].score
    unit = "percent" if score.unit == "%" else score.unit
    return f"{LEGEND} Test {score.name}{unit and f' in {unit}'}."


def records(accounts: Sequence[Account]) -> list[dict[str, Any]]:
    """Return the numbers of each network by name, with the first one's over its own."""
    return [asdict(account) | _ratios(accounts[0], account) for account in accounts]


def rows(accounts: Sequence[Account]) -> list[tuple[str, ...]]:
    """Return the cells of each network, in the order of `header`."""
    return [
        (
            of.name,
            str(of.layers),
            quantity(of.parameters),
            quantity(of.multiplications),
            of.score.number(of.value),
            *(f"{ratio:.2f}×" for ratio in _ratios(accounts[0], of).values()),
            milliseconds(of.latency_ms),
        )
        for of in accounts
    ]


def console_table(accounts: Sequence[Account], title: str = "") -> Table:
    """Return the table for `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for index, heading in enumerate(header(accounts)[:NARROW]):
        words = heading.replace(" ", "\n")
        table.add_column(words, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for cells in rows(accounts):
        table.add_row(*map(Text, cells[:NARROW]))  # Text: a name in [brackets] is no markup
    return table


def markdown_table(accounts: Sequence[Account]) -> str:
    """Return the table as Markdown, with its legend."""
    head = header(accounts)
    lines = [head, ("---", *["---:"] * (len(head) - 1)), *rows(accounts)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines) + (
        f"\n{legend(accounts)}\n"
    )


def _ratios(first: Account, own: Account) -> dict[str, float]:
    return {
        "speed_up": first.latency_ms / own.latency_ms,
        "fewer_multiplications": first.multiplications / own.multiplications,
        "compression": first.parameters / own.parameters,
    }
