"""Pictures of examples as SVG text: drawn on a canvas of 360 px, as wide as a phone, with y from the top down."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.report.examples import Examples
from limbeck.report.figures import WIDTH, short, style, svg
from limbeck.report.palette import INK, RULE, SERIES, SOFT, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

PIXELS = 360
TEMPERATURES = (1, 4, 20)
MOST_BARS = 10
"""Classes of an example for which there is room."""
MOST_CELLS = 20
"""Classes of a table of confusions for which there is room."""
IMAGE, GAP, LINE = 58, 8, 13
SMALL = 7
MORE, FEWER, STRONGEST = SERIES[1], SERIES[0], 0.5
"""Colours of a table's cells, and the opacity of the strongest: the number in it stays readable."""


def soft_labels(examples: Examples, looks: Mapping[str, Look], label: str) -> str:
    """Draw what each network answers to each example, its logits softened with T = 1, 4 and 20.

    The teacher's probabilities are bars, the students' are marks; a column's bars have one scale, named at its head.

    Args:
        examples: At least one, with two networks or more.
        looks: Of each network.
        label: What the figure shows, for readers who cannot see it.
    """
    shown = [_classes(examples, index) for index in range(len(examples.targets))]
    names = [[short(examples.classes[column], 12) for column in columns] for columns in shown]
    upright = max(len(name) for row in names for name in row) > 1
    foot = (max(len(name) for row in names for name in row) * 4.6 + 4) if upright else LINE
    left, head = IMAGE + 2 * GAP, 2.8 * LINE + LINE * ((len(examples.networks) - 1) // 3)
    top = head + 6
    row_height = LINE + 4 + IMAGE + foot + GAP
    width = (PIXELS - left - (len(TEMPERATURES) - 1) * 1.5 * GAP) / len(TEMPERATURES)
    softened = [softmax(examples.logits / temperature) for temperature in TEMPERATURES]
    with style(label):
        figure, axes = _canvas(top + row_height * len(shown))
        _key(axes, examples.networks, looks)
        for column, (temperature, shares) in enumerate(zip(TEMPERATURES, softened, strict=True)):
            x = left + column * (width + 1.5 * GAP)
            highest = max(float(shares[:, row][:, classes].max()) for row, classes in enumerate(shown))
            axes.text(x, head - 3, f"T = {temperature}", fontweight="bold")
            axes.text(x + width, head - 3, f"to {100 * highest:.0f} %", ha="right", color=SOFT, fontsize=SMALL)
            for row, classes in enumerate(shown):
                floor = top + row * row_height + LINE + 4 + IMAGE
                bars = shares[:, row][:, classes] / highest * (IMAGE - 2)
                _bars(axes, x, floor, width, bars, [looks[name] for name in examples.networks])
                _ticks(axes, x, floor, width, names[row], classes.index(int(examples.targets[row])), upright)
        for row, reason in enumerate(examples.reasons):
            y = top + row * row_height
            axes.text(0, y + LINE - 2, short(reason, 70))
            _image(axes, examples.images[row], 0, y + LINE + 4, IMAGE)
        return svg(figure, label)


def attention(examples: Examples, index: int, label: str) -> str:
    """Draw where the networks look at one example: a row for each pair of layers, a column for each network.

    Args:
        examples: With maps.
        index: Which of them.
        label: What the figure shows, for readers who cannot see it.
    """
    columns = 1 + len(examples.networks)
    side = min(84.0, (PIXELS - (columns - 1) * GAP) / columns)
    heads = [textwrap.wrap(name, int(side / 6.2))[:2] for name in examples.networks]
    row_height, top = side + LINE + 4, LINE * max(map(len, heads)) + 2
    with style(label):
        figure, axes = _canvas(top + row_height * len(examples.maps))
        _image(axes, examples.images[index], 0, top, side)
        for column, head in enumerate(heads, 1):
            x = column * (side + GAP)
            for line, words in enumerate(reversed(head)):
                axes.text(x, top - 4 - line * LINE, words, fontweight="bold")
            for row, (maps, (teacher, student)) in enumerate(zip(examples.maps, examples.layers, strict=True)):
                y = top + row * row_height
                _map(axes, maps[column - 1, index], x, y, side)
                layer = short(teacher if column == 1 else student, int(side / 5))
                axes.text(x, y + side + 10, layer, fontsize=SMALL, color=SOFT)
        return svg(figure, label)


def table_of_confusions(table: Floats, classes: Sequence[str], label: str, *, changes: bool) -> str:
    """Draw which class (row) is taken for which other (column), or how that changed; the diagonal is left out.

    Of more than 20 classes those are shown in whose rows and columns most happens. A cell is the stronger the
    more it holds, and empty where there is nothing: it shows on a dark ground as on a light one.

    Args:
        table: Counts or their changes, (K, K).
        classes: Names.
        label: What the figure shows, for readers who cannot see it.
        changes: Whether the numbers are signed.
    """
    kept = busiest(table)
    cells = _off_diagonal(table)[np.ix_(kept, kept)]
    names = [short(classes[index], 14) for index in kept]
    longest = max(map(len, names))
    left = 16 + longest * 4.8
    foot = LINE + (longest * 4.8 if longest > 2 else LINE)
    side = (PIXELS - left) / len(kept)
    strongest = max(float(np.abs(cells).max()), 1e-9)
    decimals = int(not np.array_equal(cells, cells.round()) and strongest < 100)
    with style(label):
        figure, axes = _canvas(side * len(kept) + foot + 4)
        for row, name in enumerate(names):
            middle = (row + 0.5) * side + 1
            axes.text(left - 4, middle, name, ha="right", va="center", fontsize=SMALL)
            _name_below(axes, left + (row + 0.5) * side, side * len(kept) + 5, name, longest > 2)
            _box(axes, left + row * side, row * side + 1, side, side, RULE, 1.0)
        for row, column in zip(*np.nonzero(cells), strict=True):
            value = float(cells[row, column])
            x, y = left + column * side, row * side + 1
            _box(axes, x, y, side, side, MORE if value > 0 else FEWER, STRONGEST * abs(value) / strongest)
            if side >= 22 and abs(value) >= 0.05 * strongest:
                axes.text(
                    x + side / 2,
                    y + side / 2,
                    _number(value, changes, decimals),
                    ha="center",
                    va="center",
                    fontsize=6.5,
                )
        ends = left, left + side * len(kept)
        for edge in (1, side * len(kept) + 1):
            axes.plot(ends, (edge, edge), color=RULE, linewidth=0.75)
            axes.plot((left + edge - 1, left + edge - 1), (1, side * len(kept) + 1), color=RULE, linewidth=0.75)
        axes.text(5, side * len(kept) / 2, "is", rotation=90, ha="center", va="center", color=SOFT)
        axes.text(sum(ends) / 2, side * len(kept) + foot + 1, "is taken for", ha="center", va="bottom", color=SOFT)
        return svg(figure, label)


def busiest(table: Floats) -> list[int]:
    """Return the classes in whose rows and columns of a table of confusions most happens, in their order."""
    size = np.abs(_off_diagonal(table))
    return sorted(np.argsort(-(size.sum(0) + size.sum(1)), kind="stable")[:MOST_CELLS].tolist())


def softmax(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return probabilities over the last axis."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    shares: Floats = powers / powers.sum(-1, keepdims=True)
    return shares


def _classes(examples: Examples, index: int) -> list[int]:
    """The classes of an example that are shown: its own, and those that the networks think of most."""
    own, shares = int(examples.targets[index]), softmax(examples.logits[:, index] / 4).max(0)
    others = [column for column in np.argsort(-shares, kind="stable").tolist() if column != own]
    return sorted([own, *others[: MOST_BARS - 1]])


def _off_diagonal(table: Floats) -> Floats:
    cells: Floats = np.array(table, dtype=np.float64)
    np.fill_diagonal(cells, 0)
    return cells


def _number(value: float, signed: bool, decimals: int) -> str:
    return f"{value:{'+' if signed else ''}.{decimals}f}".replace("-", "−")


def _canvas(height: float) -> tuple[Figure, Axes]:
    """Return axes that cover a figure, in pixels from the upper left corner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH * height / PIXELS))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_xlim(0, PIXELS)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    return figure, axes


def _key(axes: Axes, networks: Sequence[str], looks: Mapping[str, Look]) -> None:
    """Name the networks above a picture, three a line: the first by its bar, the others by their marks."""
    for index, name in enumerate(networks):
        x, y, look = index % 3 * PIXELS / 3, LINE - 5 + LINE * (index // 3), looks[name]
        if index:
            axes.plot(x + 4, y, look.marker, **_mark(look))
        else:
            _box(axes, x, y - 4, 8, 8, look.colour, 0.45)
        axes.text(x + 13, y, short(name, 22), va="center")


def _bars(axes: Axes, x: float, floor: float, width: float, heights: Floats, looks: Sequence[Look]) -> None:
    """Draw one network's probabilities as bars and the others' as marks, side by side over each class."""
    slot = width / heights.shape[1]
    centres = x + (np.arange(heights.shape[1]) + 0.5) * slot
    axes.bar(centres, -heights[0], 0.84 * slot, floor, color=looks[0].colour, alpha=0.45, linewidth=0)
    for index, look in enumerate(looks[1:]):
        aside = (index - (len(looks) - 2) / 2) * 0.3 * slot
        axes.plot(centres + aside, floor - heights[index + 1], look.marker, linestyle="", **_mark(look))
    axes.plot((x, x + width), (floor, floor), color=SOFT, linewidth=0.6)


def _mark(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "markersize": 3, "markeredgewidth": 0}


def _ticks(axes: Axes, x: float, floor: float, width: float, names: Sequence[str], own: int, upright: bool) -> None:
    slot = width / len(names)
    for index, name in enumerate(names):
        bold = {"color": INK, "fontweight": "bold"} if index == own else {"color": SOFT}
        _name_below(axes, x + (index + 0.5) * slot, floor + 2.5, name, upright, **bold)


def _name_below(axes: Axes, x: float, y: float, name: str, upright: bool, **how: Any) -> None:
    axes.text(x, y, name, rotation=90 if upright else 0, ha="center", va="top", **{"fontsize": SMALL, **how})


def _box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, alpha: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, alpha=alpha, linewidth=0))


def _image(axes: Axes, pixels: NDArray[np.uint8], x: float, y: float, side: float) -> None:
    """Draw an image into a square, in its own proportions; grey ones have one channel."""
    height, width = (length * side / max(pixels.shape[:2]) for length in pixels.shape[:2])
    rgb = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
    axes.imshow(_enlarged(rgb), extent=(x, x + width, y + height, y), interpolation="none", aspect="auto")


def _map(axes: Axes, values: NDArray[np.uint8], x: float, y: float, side: float) -> None:
    height, width = (length * side / max(values.shape) for length in values.shape)
    drawn = _enlarged(values[:, :, None])[:, :, 0]
    extent = (x, x + width, y + height, y)
    axes.imshow(drawn, extent=extent, interpolation="none", aspect="auto", cmap="inferno", vmin=0, vmax=255)


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the pixels of a small image, which a browser would blur."""
    times = max(1, 224 // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
