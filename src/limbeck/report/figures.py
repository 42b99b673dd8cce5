"""Figures as SVG text to put inside a page: drawn for 360 px, in the colours and the font of the page around them."""

from __future__ import annotations

import io
import itertools
import math
import re
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from limbeck.core.digits import SMALLEST, digits
from limbeck.core.task import Score
from limbeck.report.palette import BASELINE, CSS, GROUND, INK, RULE, SOFT, Look, looks, series
from limbeck.report.table import Candidate, quantity

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.ticker import Formatter

WIDTH = 3.75
"""Inches: 360 px of the page, so that text keeps its size on a phone."""

MANY = 10_000
"""From here on numbers on an axis are 12.3 k and 4.56 M, where that tells them apart."""

MISSING = r"Glyph .* missing from"
"""What matplotlib says of letters that its own font has not, as of a class's name in Chinese: the page's font has them."""

MARGIN = 1.8
"""By how much a logarithmic axis goes on beyond its outermost points."""

SETTINGS: Mapping[str, object] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and takes the page's font
    "text.parse_math": False,  # a name may hold a dollar
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "image.composite_image": False,  # each image keeps its pixels
}


@dataclass(frozen=True)
class Line:
    """A named line of a figure.

    Args:
        label: Its name.
        x: Where its points are.
        y: Their heights.
        spread: Half the height of a band around each point; none if empty.
        look: How it is drawn; by default by its place among the lines of the figure.
    """

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    spread: tuple[float, ...] = ()
    look: Look | None = None


@dataclass(frozen=True)
class Point:
    """A network in figures of a score over cost.

    Args:
        name: Its name.
        costs: By the name of each cost, as ``{"parameters": 2410, "latency, ms": 0.03}``; above 0.
        values: Its score, one a seed.
        look: How it is drawn.
    """

    name: str
    costs: Mapping[str, float]
    values: tuple[float, ...]
    look: Look


def curves(
    lines: Sequence[Line],
    label: str,
    *,
    y_label: str = "",
    x_label: str = "epoch",
    marks: Mapping[str, float] | None = None,
) -> str:
    """Draw lines over epochs.

    Args:
        lines: What is drawn.
        label: What the figure shows, for readers who cannot see it.
        y_label: Of the vertical axis.
        x_label: Of the horizontal axis.
        marks: Where on the horizontal axis something begins, by its name.
    """
    with style(label):
        figure, axes = _lines_figure([line.label for line in lines])
        _whole(axes)
        for index, line in enumerate(lines):
            _draw(axes, line, line.look or series(index))
        axes.margins(y=0.2 if marks else 0.05)  # room for their names
        for name, x in (marks or {}).items():
            axes.axvline(x, color=INK, linewidth=0.6, linestyle=":")
            axes.annotate(
                short(name, 20), (x, 1), (3, -8), xycoords=("data", "axes fraction"), textcoords="offset points"
            )
        _finish(figure, axes, x_label, y_label)
        return svg(figure, label)


def shares(lines: Sequence[Line], label: str, *, x_label: str = "epoch") -> str:
    """Draw how much of a total each line is, over epochs: all lines have the x of the first, and values of at least 0."""
    with style(label):
        figure, axes = _lines_figure([line.label for line in lines])
        _whole(axes)
        x, *heights = [lines[0].x, *_percentages(lines)]
        if len(x) == 1:  # a single epoch has no width
            x, heights = (x[0] - 0.5, x[0] + 0.5), [2 * height for height in heights]
        axes.stackplot(
            x,
            *heights,
            colors=[series(index).colour for index in range(len(lines))],
            labels=[short(line.label) for line in lines],
            alpha=0.75,
        )
        axes.set_ylim(0, 100)
        axes.margins(x=0)
        _finish(figure, axes, x_label, "share, %")
        return svg(figure, label)


def panels(charts: Mapping[str, Sequence[Line]], label: str, *, x_label: str = "epoch") -> str:
    """Draw a small chart for each name, two a row, whose lines share looks and one legend.

    Args:
        charts: Lines by the name of their chart; each has a look, and equal labels have equal looks.
        label: What the figure shows, for readers who cannot see it.
        x_label: Of the horizontal axes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    entries = {line.label: line.look for lines in charts.values() for line in lines if line.look}
    rows = math.ceil(len(charts) / 2)
    with style(label):
        figure = Figure(figsize=(WIDTH, 0.25 + 1.1 * rows + 0.16 * _legend_rows(list(entries))), layout="constrained")
        grid = figure.subplots(rows, 2, squeeze=False).flatten()
        for axes, (name, lines) in zip(grid, charts.items(), strict=False):
            for line in lines:
                _draw(axes, line, line.look or series(0))
            axes.set_title(cut(name, 145), loc="left", fontsize=8)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=3))
        for axes in grid[len(charts) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(charts) - 2) : len(charts)]:
            axes.set_xlabel(x_label)
        _legend(figure, entries)
        return svg(figure, label)


def tradeoff(points: Sequence[Point], label: str, score: Score) -> str:
    """Draw a score over each cost: a network is a point at its mean, with a bar of one standard deviation over seeds.

    Points of equal cost stand a little apart; what is written on the axis is the cost itself.

    Args:
        points: Networks that have the same costs, each with a value at least.
        label: What the figure shows, for readers who cannot see it.
        score: What the values are.
    """
    from matplotlib.figure import Figure

    with style(label):
        entries = {point.name: point.look for point in points}
        figure = Figure(figsize=(WIDTH, 1.9 + 0.16 * _legend_rows(list(entries))), layout="constrained")
        charts = figure.subplots(1, len(points[0].costs), sharey=True, squeeze=False)[0]
        for axes, cost in zip(charts, points[0].costs, strict=True):
            _over_cost(axes, points, cost, score.scale)
        charts[0].set_ylabel(score.label)
        _legend(figure, entries, lines=False)
        return svg(figure, label)


def strip(candidates: Sequence[Candidate], label: str) -> str:
    """Draw every seed's score as a point, a row a network, beside its difference to the baseline with the interval.

    Args:
        candidates: Of one condition, each with at least one value.
        label: What the figure shows, for readers who cannot see it.
    """
    from matplotlib.figure import Figure

    compared = any(candidate.paired for candidate in candidates)
    with style(label):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.42 * len(candidates)), layout="constrained")
        panels = figure.subplots(
            1, 2 if compared else 1, sharey=True, squeeze=False, width_ratios=(3, 2) if compared else (1,)
        )[0]
        drawn = looks({candidate.name: candidate.role for candidate in candidates})
        _values(panels[0], candidates, drawn)
        if compared:
            _differences(panels[1], candidates, drawn)
        panels[0].set_ylim(len(candidates) - 0.6, -0.75)
        panels[0].set_yticks([])
        for panel in panels:
            panel.spines["left"].set_visible(False)
        return svg(figure, label)


def over_sizes(line: Line, levels: Mapping[str, tuple[float, Look]], label: str, *, x_label: str, y_label: str) -> str:
    """Draw what changes with a size, on a logarithmic axis, beside the levels of what does not.

    Args:
        line: What changes: sizes above 0, from the smallest up; with a look.
        levels: Heights by their names.
        label: What the figure shows, for readers who cannot see it.
        x_label: Of the horizontal axis.
        y_label: Of the vertical axis.
    """
    look = line.look or series(0)
    with style(label):
        figure, axes = _lines_figure([line.label, *levels])
        axes.plot(line.x, line.y, look.line, marker=look.marker, color=look.colour, label=short(line.label))
        for name, (height, other) in levels.items():
            axes.axhline(height, linestyle=other.line, color=other.colour, linewidth=1, label=short(name))
        _logarithmic(axes, line.x)
        _finish(figure, axes, x_label, y_label)
        return svg(figure, label)


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Draw in a page's style while the block runs; equal figures have equal text."""
    from matplotlib import rc_context

    settings: Any = {**SETTINGS, "svg.hashsalt": salt}  # else matplotlib names its clip paths at random
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING)
        yield


def _values(axes: Axes, candidates: Sequence[Candidate], drawn: Mapping[str, Look]) -> None:
    for row, candidate in enumerate(candidates):
        values, look = [candidate.score.scale * value for value in candidate.values], drawn[candidate.name]
        mean = sum(values) / len(values)
        axes.plot(values, [row] * len(values), "o", color=look.colour, alpha=0.6, **_marker(look, "none"))
        axes.plot([mean, mean], [row - 0.2, row + 0.2], color=look.colour, linewidth=2)
        if candidate.role == "baseline":
            axes.axvline(mean, color=look.colour, linewidth=0.8, linestyle="--")
        axes.annotate(
            short(candidate.name, 44),
            (0, row - 0.42),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
            bbox={"facecolor": GROUND, "edgecolor": "none", "pad": 0.5},  # lines across stop before the name
        )
    axes.set_xlabel(candidates[0].score.label)


def _differences(axes: Axes, candidates: Sequence[Candidate], drawn: Mapping[str, Look]) -> None:
    axes.axvline(0, color=BASELINE.colour, linewidth=0.8, linestyle="--")
    for row, candidate in enumerate(candidates):
        if pair := candidate.paired:
            look, scale = drawn[candidate.name], candidate.score.scale
            if pair.n > 1:
                axes.plot([scale * pair.low, scale * pair.high], [row, row], color=look.colour)
            axes.plot(scale * pair.difference, row, "D", color=look.colour, **_marker(look))
    axes.set_xlabel(f"difference, {candidates[0].score.points}".removesuffix(", "))


def _draw(axes: Axes, line: Line, look: Look) -> None:
    if any(line.spread):
        low, high = zip(*((y - half, y + half) for y, half in zip(line.y, line.spread, strict=True)), strict=True)
        axes.fill_between(line.x, low, high, color=look.colour, alpha=0.16, linewidth=0)
    marker = "o" if len(line.x) < 3 else ""  # a single epoch has a point but no line
    axes.plot(line.x, line.y, look.line, color=look.colour, marker=marker, label=short(line.label))


def _over_cost(axes: Axes, points: Sequence[Point], cost: str, scale: float) -> None:
    for point, x in zip(points, _apart([point.costs[cost] for point in points]), strict=True):
        values = [scale * value for value in point.values]
        mean = statistics.fmean(values)
        half = statistics.stdev(values) if len(values) > 1 else 0.0
        axes.plot([x, x], [mean - half, mean + half], color=point.look.colour, linewidth=1)
        axes.plot(x, mean, point.look.marker, color=point.look.colour, **_marker(point.look))
    _logarithmic(axes, [point.costs[cost] for point in points])
    axes.set_xlabel(cost)


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """Let the horizontal axis name the values themselves."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    ticks = _distinct(sorted(set(values)))
    axes.set_xlim(ticks[0] / MARGIN, max(values) * MARGIN)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: quantity(value) if value >= 10 else digits(value, 2)))


def _apart(costs: Sequence[float]) -> list[float]:
    """Move equal costs apart by a few percent each, around where they are."""
    moved = []
    for index, cost in enumerate(costs):
        equal, before = costs.count(cost), costs[:index].count(cost)
        moved.append(cost * 1.09 ** (before - (equal - 1) / 2))
    return moved


def _distinct(costs: Sequence[float]) -> list[float]:
    """Those that a logarithmic axis has room to name, from the smallest up."""
    kept, room = [costs[0]], (MARGIN**2 * costs[-1] / costs[0]) ** 0.25
    for cost in costs[1:]:
        if cost > room * kept[-1]:
            kept.append(cost)
    return kept


def _marker(look: Look, edge: str | None = None) -> dict[str, Any]:
    if not look.filled:
        return {"markerfacecolor": "none", "markeredgecolor": look.colour}
    return {"markeredgecolor": edge or look.colour}


def _percentages(lines: Sequence[Line]) -> list[tuple[float, ...]]:
    totals = [sum(values) or 1.0 for values in zip(*(line.y for line in lines), strict=True)]
    return [tuple(100 * y / total for y, total in zip(line.y, totals, strict=True)) for line in lines]


def _lines_figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    return (
        figure := Figure(figsize=(WIDTH, 2.0 + 0.16 * _legend_rows(labels)), layout="constrained")
    ), figure.subplots()


def _legend_rows(labels: Sequence[str]) -> int:
    return math.ceil(len(labels) / _legend_columns(labels))


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if all(len(label) <= 20 for label in labels) else 1


def _finish(figure: Figure, axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=_legend_columns(labels))


def _whole(axes: Axes) -> None:
    """Let the horizontal axis name whole numbers alone."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))


def _legend(figure: Figure, entries: Mapping[str, Look], *, lines: bool = True) -> None:
    """Name what looks how, above a figure of several charts: by lines, or by markers alone."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle=look.line, color=look.colour)
        if lines
        else Line2D([], [], linestyle="", marker=look.marker, color=look.colour, **_marker(look))
        for look in entries.values()
    ]
    names = [short(name) for name in entries]
    figure.legend(handles, names, loc="outside upper left", ncols=_legend_columns(names))


def plain_ticks(axis: Axis) -> Formatter:
    """Return what writes numbers on an axis without exponents: as many decimals as tell ticks apart, 2.6 M where large."""
    from matplotlib.ticker import FuncFormatter

    def written(value: float, _: int | None) -> str:
        ticks = [float(tick) for tick in axis.get_majorticklocs()] or [value]
        largest = max(map(abs, ticks))
        if largest < SMALLEST:
            return digits(value)
        if largest >= MANY and len({_signed(tick) for tick in ticks}) == len(ticks):
            return _signed(value)
        text = f"{value:,.{_decimals(ticks)}f}".replace("-", "−")
        return text if text.strip("−0.,") else "0"

    return FuncFormatter(written)


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else ''}{quantity(abs(value))}"


def _decimals(ticks: Sequence[float]) -> int:
    """Return how many decimals tell ticks apart as they are."""
    step = min((abs(after - before) for before, after in itertools.pairwise(ticks)), default=1.0)
    exact = (count for count in range(9) if all(abs(tick - round(tick, count)) <= step / 1000 for tick in ticks))
    return next(exact, 9)


def svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element: nothing in it tells when or by which version it was made."""
    from matplotlib.ticker import ScalarFormatter

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(axis.get_major_formatter(), ScalarFormatter):  # no other has a power above the axes
                axis.set_major_formatter(plain_ticks(axis))
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # "axes_1" is in every figure; what is referred to has a hash for a name
    svg = re.sub(r'font-family: [^;"]*', "font-family: inherit", svg)
    svg = re.sub("|".join(CSS), lambda found: CSS[found.group()], svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def width_of(text: str, size: float = 8) -> float:
    """Return how wide a text is, in pixels of the page: by a font that is wider than most."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=MISSING)
        width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width) * 96 / 72


def cut(name: str, pixels: float, size: float = 8, *, middle: bool = False) -> str:
    """Return a name cut to a width, at its end or in its middle."""
    if not name:
        return ""
    for length in range(len(name), 0, -1):
        ends = (length // 2, length - length // 2) if middle else (length, 0)
        shown = name if length == len(name) else f"{name[: ends[0]].rstrip()}…{name[len(name) - ends[1] :].lstrip()}"
        if width_of(shown, size) <= pixels:
            return shown
    return "…"


def short(name: str, length: int = 40) -> str:
    """Return a name cut to a length."""
    return name if len(name) <= length else name[: length - 1] + "…"
