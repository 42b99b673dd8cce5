from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from limbeck.measure import Cost, Paired, summary

if TYPE_CHECKING:
    from rich.table import Table

Role = Literal["teacher", "baseline", "distilled", "control"]

HEADER = ("network", "params", "MACs", "latency", "accuracy", "vs plain student")

LEGEND = (
    "Accuracy in percent, mean ± standard deviation over seeds. Difference to the plain student over the same seeds "
    "in percentage points, with its 95 % interval."
)


@dataclass(frozen=True)
class Candidate:
    """A network of a comparison, with what it costs and what it reached.

    Args:
        name: As the reader knows it.
        role: ``"teacher"``, ``"baseline"`` (the plain student), ``"distilled"`` or ``"control"``.
        cost: What it costs.
        accuracies: In [0, 1], one a seed.
        paired: Its difference to the baseline over the same seeds; None for the baseline itself and the teacher.
    """

    name: str
    role: Role
    cost: Cost
    accuracies: tuple[float, ...]
    paired: Paired | None = None


def console_table(candidates: Sequence[Candidate], title: str = "") -> Table:
    """Return the comparison as a table for `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, caption=LEGEND, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    for index, heading in enumerate(HEADER):
        table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for cells in rows(candidates):
        table.add_row(*map(Text, cells))  # Text: a name in [brackets] is no markup
    return table


def markdown_table(candidates: Sequence[Candidate]) -> str:
    """Return the comparison as a Markdown table."""
    lines = [HEADER, ("---", *["---:"] * (len(HEADER) - 1)), *rows(candidates)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def rows(candidates: Sequence[Candidate]) -> list[tuple[str, ...]]:
    """Return the cells of each candidate, in the order of `HEADER`."""
    return [
        (
            candidate.name,
            quantity(candidate.cost.parameters),
            quantity(candidate.cost.macs),
            milliseconds(candidate.cost.latency_ms),
            accuracy(candidate.accuracies),
            difference(candidate.paired),
        )
        for candidate in candidates
    ]


def quantity(number: float) -> str:
    """Return a count in three digits: 78.0 k, 1.24 M, 4.09 G."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * size:  # 999 950 is 1.00 M and not 1000 k
            return _three_digits(number / size) + unit
    return f"{number:.0f}"


def milliseconds(value: float) -> str:
    """Return a time in three digits: 0.43 ms, 12.5 ms."""
    return _three_digits(value) + " ms"


def _three_digits(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"


def accuracy(values: Sequence[float]) -> str:
    """Return accuracies over seeds in percent: "91.20 ± 0.35", of a single seed "91.20"; "–" where there is none."""
    if not values:
        return "–"
    of = summary(values)
    return f"{percent(of.mean)} ± {percent(of.sd)}" if of.n > 1 else percent(of.mean)


def difference(pair: Paired | None) -> str:
    """Return a difference in percentage points with its interval: "+1.20 [+0.40, +2.00]"; "–" where there is none."""
    if pair is None:
        return "–"
    interval = f"[{points(pair.low)}, {points(pair.high)}]" if pair.n > 1 else "(one seed: no interval)"
    return f"{points(pair.difference)} {interval}"


def percent(value: float) -> str:
    """Return a share of 1 in percent, without the sign: 0.912 is 91.20."""
    return f"{100 * value:.2f}"


def points(value: float) -> str:
    """Return a difference of shares in percentage points, signed: "+1.20", "−0.35"; a zero has no sign."""
    text = f"{100 * value:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "−")
