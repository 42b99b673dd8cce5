"""Figures as SVG text to put inside a page: drawn for 360 px, in the colours and the font of the page around them."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from limbeck.report.table import Candidate, Role

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.75
"""Inches: 360 px of the page, so that text keeps its size on a phone."""

INK, RULE = "#1c1f24", "#d3d7dd"
SERIES = ("#2563b0", "#c2570c", "#1a7f53", "#8b46b5", "#b3261e", "#6b7280")
STYLES = ("-", "--", "-.", ":")  # so that colour is not all that tells the lines apart
ROLES: Mapping[Role, str] = {"teacher": SERIES[5], "baseline": SERIES[0], "distilled": SERIES[1], "control": SERIES[3]}

CSS = {INK: "currentColor", RULE: f"var(--rule, {RULE})"} | {
    colour: f"var(--series-{index}, {colour})" for index, colour in enumerate(SERIES)
}
"""What each colour becomes in the page, which has one set of them for light and one for dark."""

SETTINGS: Mapping[str, object] = {
    "svg.fonttype": "none",  # text stays text: it can be searched, read aloud, and takes the page's font
    "text.parse_math": False,  # a name may hold a dollar
    "font.size": 8,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": RULE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.5,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Line:
    """A named line of a figure."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]


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
    with _style(label):
        figure, axes = _lines_figure([line.label for line in lines])
        for index, line in enumerate(lines):
            marker = "o" if len(line.x) < 3 else ""  # a single epoch has a point but no line
            axes.plot(
                line.x,
                line.y,
                STYLES[index % len(STYLES)],
                color=_colour(index),
                marker=marker,
                label=_short(line.label),
            )
        axes.margins(y=0.2 if marks else 0.05)  # room for their names
        for name, x in (marks or {}).items():
            axes.axvline(x, color=INK, linewidth=0.6, linestyle=":")
            axes.annotate(
                _short(name, 20), (x, 1), (3, -8), xycoords=("data", "axes fraction"), textcoords="offset points"
            )
        _finish(figure, axes, x_label, y_label)
        return _svg(figure, label)


def shares(lines: Sequence[Line], label: str, *, x_label: str = "epoch") -> str:
    """Draw how much of a total each line is, over epochs: all lines have the x of the first, and values of at least 0."""
    with _style(label):
        figure, axes = _lines_figure([line.label for line in lines])
        x, *heights = [lines[0].x, *_percentages(lines)]
        if len(x) == 1:  # a single epoch has no width
            x, heights = (x[0] - 0.5, x[0] + 0.5), [2 * height for height in heights]
        axes.stackplot(
            x,
            *heights,
            colors=[_colour(index) for index in range(len(lines))],
            labels=[_short(line.label) for line in lines],
            alpha=0.75,
        )
        axes.set_ylim(0, 100)
        axes.margins(x=0)
        _finish(figure, axes, x_label, "share, %")
        return _svg(figure, label)


def strip(candidates: Sequence[Candidate], label: str) -> str:
    """Draw every seed's accuracy as a point, a row a network, beside its difference to the baseline with the interval.

    Args:
        candidates: Of one condition, each with at least one accuracy.
        label: What the figure shows, for readers who cannot see it.
    """
    from matplotlib.figure import Figure

    compared = any(candidate.paired for candidate in candidates)
    with _style(label):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.42 * len(candidates)), layout="constrained")
        panels = figure.subplots(
            1, 2 if compared else 1, sharey=True, squeeze=False, width_ratios=(3, 2) if compared else (1,)
        )[0]
        _accuracies(panels[0], candidates)
        if compared:
            _differences(panels[1], candidates)
        panels[0].set_ylim(len(candidates) - 0.6, -0.75)
        panels[0].set_yticks([])
        for panel in panels:
            panel.spines["left"].set_visible(False)
        return _svg(figure, label)


@contextmanager
def _style(salt: str) -> Iterator[None]:
    from matplotlib import rc_context

    settings: Any = {**SETTINGS, "svg.hashsalt": salt}  # else matplotlib names its clip paths at random
    with rc_context(settings):
        yield


def _accuracies(axes: Axes, candidates: Sequence[Candidate]) -> None:
    for row, candidate in enumerate(candidates):
        values, colour = [100 * accuracy for accuracy in candidate.accuracies], ROLES[candidate.role]
        mean = sum(values) / len(values)
        axes.plot(values, [row] * len(values), "o", color=colour, alpha=0.6, markeredgewidth=0)
        axes.plot([mean, mean], [row - 0.2, row + 0.2], color=colour, linewidth=2)
        if candidate.role == "baseline":
            axes.axvline(mean, color=colour, linewidth=0.8, linestyle="--")
        axes.annotate(
            _short(candidate.name, 44),
            (0, row - 0.42),
            xycoords=("axes fraction", "data"),
            va="center",
            annotation_clip=False,
        )
    axes.set_xlabel("accuracy, %")


def _differences(axes: Axes, candidates: Sequence[Candidate]) -> None:
    axes.axvline(0, color=ROLES["baseline"], linewidth=0.8, linestyle="--")
    for row, candidate in enumerate(candidates):
        if pair := candidate.paired:
            colour = ROLES[candidate.role]
            axes.plot(100 * pair.difference, row, "D", color=colour)
            if pair.n > 1:
                axes.plot([100 * pair.low, 100 * pair.high], [row, row], color=colour)
    axes.set_xlabel("difference, points")


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
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside upper left", ncols=_legend_columns(labels))


def _svg(figure: Figure, label: str) -> str:
    """Return the figure as an SVG element: nothing in it tells when or by which version it was made."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # "axes_1" is in every figure; what is referred to has a hash for a name
    svg = re.sub(r'font-family: [^;"]*', "font-family: inherit", svg)
    svg = re.sub("|".join(CSS), lambda found: CSS[found.group()], svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _colour(index: int) -> str:
    return SERIES[index % len(SERIES)]


def _short(name: str, length: int = 40) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"
