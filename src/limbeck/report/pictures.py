"""Pictures of exhibits as SVG text: drawn on a canvas of 360 px, as wide as a phone, with y from the top down."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from limbeck.core.digits import digits
from limbeck.core.exhibits import Bars, Gallery, Scatter
from limbeck.report.figures import WIDTH, cut, short, style, svg, width_of
from limbeck.report.palette import INK, RULE, SERIES, SOFT, Look, another

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

PIXELS = 360
TEMPERATURES = (1, 4, 20)
MOST_BARS, MOST_ALONE = 10, 16
"""Labels of a sample for which there is room: in each of three columns, and in one alone."""
MOST_CELLS, FEW_CELLS = 20, 8
"""Classes of a table of confusions for which there is room, and for which there is with longer names."""
NAME = 62
"""Pixels for the name of a label."""
IMAGE, GAP, LINE, CELL = 58, 8, 13, 60
SMALL, BOLD = 7, 9
"""Sizes of letters: small ones, and those of which bold ones of the usual size are about as wide."""
MORE, FEWER, STRONGEST = SERIES[1], SERIES[0], 0.5
"""Colours of a table's cells, and the opacity of the strongest: the number in it stays readable."""


def bars(shown: Bars, looks: Mapping[str, Look], label: str) -> str:
    """Draw what each network says of each sample: the first one's values are bars, the others' are marks.

    Logits of classes are softened with T = 1, 4 and 20, a column each; logits of labels become probabilities. The bars of a
    column have one scale, named at its head.

    Args:
        shown: What is drawn.
        looks: Of each network.
        label: What the figure shows, for readers who cannot see it.
    """
    kept = [_kept(shown, index) for index in range(shown.values.shape[1])]
    names = [told_apart([shown.labels[column] for column in columns], NAME) for columns in kept]
    scales = list(_scales(shown, kept))
    left = IMAGE + 2 * GAP if shown.images else 0
    width = (PIXELS - left - (len(scales) - 1) * 1.5 * GAP) / len(scales)
    upright = any(width_of(name, SMALL) + 1.5 > width / len(row) for row in names for name in row)
    foot = (max(width_of(name, SMALL) for row in names for name in row) + 6) if upright else LINE
    beside = 3 if all(width_of(name) <= PIXELS / 3 - 18 for name in shown.networks) else 1
    head = 2.8 * LINE + LINE * ((len(shown.networks) - 1) // beside)
    top = head + 6
    row_height = LINE + 4 + IMAGE + foot + GAP
    drawn = [look_of(name, looks, index) for index, name in enumerate(shown.networks)]
    with style(label):
        figure, axes = _canvas(top + row_height * len(kept))
        _key(axes, shown.networks, drawn, beside)
        for column, scale in enumerate(scales):
            x = left + column * (width + 1.5 * GAP)
            axes.text(x, head - 3, scale.name, fontweight="bold")
            axes.text(x + width, head - 3, scale.ends, ha="right", color=SOFT, fontsize=SMALL)
            for row, labels in enumerate(kept):
                bottom = top + row * row_height + LINE + 4 + IMAGE
                floor = bottom - float(scale.heights(0.0 - scale.low))
                if scale.half:
                    axes.plot((x, x + width), 2 * (floor - float(scale.heights(0.5)),), color=SOFT, linewidth=0.4)
                _bars(axes, x, floor, width, scale.heights(scale.values[:, row][:, labels]), drawn)
                truths = None if shown.truths is None else shown.truths[row, labels]
                if truths is not None and not shown.scale:
                    _levels(axes, x, floor, width, scale.heights(truths))
                true = [bool(shown.scale) and truths is not None and truths[at] == 1 for at in range(len(labels))]
                _ticks(axes, x, bottom, width, names[row], true, upright)
        for row, caption in enumerate(shown.captions):
            axes.text(0, top + row * row_height + LINE - 2, cut(caption, PIXELS))
        for row, image in enumerate(shown.images):
            _image(axes, image, 0, top + row * row_height + LINE + 4, IMAGE)
        return svg(figure, label)


def gallery(shown: Gallery, label: str) -> str:
    """Draw rows of pictures; what is said of a row stands beside it where there is room, and above it where not.

    Args:
        shown: What is drawn.
        label: What the figure shows, for readers who cannot see it.
    """
    columns = len(shown.columns)
    side = min(84.0, (PIXELS - (columns - 1) * GAP) / columns)
    beside = PIXELS - columns * (side + GAP)
    above = bool(shown.captions) and beside < 120
    heads = [
        [cut(line, side, BOLD) for line in textwrap.wrap(name, int(side / 6.2), break_long_words=False)[:2]]
        for name in shown.columns
    ]
    top = LINE * max(map(len, heads)) + 2
    known = [picture for row in shown.rows for picture in row if picture is not None]
    tall = side * max((picture.shape[0] / max(picture.shape[:2]) for picture in known), default=1.0)
    room = max(tall, 3 * LINE) if shown.captions and not above else tall
    row_height = (LINE + 6) * above + room + LINE * bool(shown.labels) + 4
    with style(label):
        figure, axes = _canvas(top + row_height * len(shown.rows))
        for column, head in enumerate(heads):
            for line, words in enumerate(reversed(head)):
                axes.text(column * (side + GAP), top - 4 - line * LINE, words, fontweight="bold")
        for row, pictures in enumerate(shown.rows):
            y = top + row * row_height + (LINE + 6) * above
            if above:
                axes.text(0, y - 5, cut(shown.captions[row], PIXELS))
            elif shown.captions:
                for line, words in enumerate(_lines(shown.captions[row], beside)[: int(room / LINE)]):
                    axes.text(columns * (side + GAP), y + LINE * (line + 1) - 3, words)
            for column, picture in enumerate(pictures):
                if picture is not None:
                    _image(axes, picture, column * (side + GAP), y, side)
                if shown.labels:
                    words = cut(shown.labels[row][column], side, SMALL)
                    axes.text(column * (side + GAP), y + tall + 10, words, fontsize=SMALL, color=SOFT)
        return svg(figure, label)


def scatter(shown: Scatter, looks: Mapping[str, Look], label: str) -> str:
    """Draw each network's values over the true ones, a panel each; on the dashed line both are equal.

    Args:
        shown: What is drawn.
        looks: Of each network.
        label: What the figure shows, for readers who cannot see it.
    """
    from matplotlib.figure import Figure

    columns = min(2, len(shown.networks))
    rows = math.ceil(len(shown.networks) / columns)
    known = np.concatenate([shown.truths, shown.values.flatten()])
    known = known[np.isfinite(known)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    ends = low - 0.04 * ((high - low) or 1), high + 0.04 * ((high - low) or 1)
    with style(label):
        figure = Figure(figsize=(WIDTH, 0.3 + rows * (WIDTH / columns + 0.15)), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
        for index, (axes, name) in enumerate(zip(grid, shown.networks, strict=False)):
            own = look_of(name, looks, index)
            off = float(np.mean(np.abs(shown.values[index] - shown.truths)[np.isfinite(shown.truths)]))
            axes.plot(ends, ends, "--", color=SOFT, linewidth=0.8)
            axes.plot(shown.truths, shown.values[index], own.marker, **_mark(own), alpha=0.6)
            axes.set_title(f"{short(name, 24)}\noff by {digits(off)}", loc="left", fontsize=8)
            axes.set_xlim(ends)
            axes.set_ylim(ends)
            axes.set_aspect("equal")
        for axes in grid[len(shown.networks) :]:
            axes.set_axis_off()
        for axes in grid[max(0, len(shown.networks) - columns) : len(shown.networks)]:
            axes.tick_params(labelbottom=True)
        figure.supxlabel(f"true {shown.label}", fontsize=8, color=SOFT)
        figure.supylabel(f"predicted {shown.label}", fontsize=8, color=SOFT)
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
    names = told_apart([classes[index] for index in kept], 2 * NAME if len(kept) <= FEW_CELLS else 1.4 * NAME)
    longest = max(width_of(name, SMALL) for name in names)
    left = 20 + longest
    side = min(CELL, (PIXELS - left) / len(kept))
    upright = longest > side - 3
    below = 5 + (longest if upright else LINE) + 4
    strongest = max(float(np.abs(cells).max()), 1e-9)
    decimals = int(not np.array_equal(cells, cells.round()) and strongest < 100)
    with style(label):
        figure, axes = _canvas(side * len(kept) + below + LINE)
        for row, name in enumerate(names):
            middle = (row + 0.5) * side + 1
            axes.text(left - 4, middle, name, ha="right", va="center", fontsize=SMALL)
            _name_below(axes, left + (row + 0.5) * side, side * len(kept) + 5, name, upright)
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
        axes.text(sum(ends) / 2, side * len(kept) + below, "is taken for", ha="center", va="top", color=SOFT)
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


@dataclass(frozen=True)
class _Scale:
    """A column of bars: its name, the values (networks, samples, labels), and how high they are drawn.

    Args:
        name: Of the column.
        values: What is drawn.
        low: The value at the foot of the bars.
        high: The value at their top.
        ends: What both are, in words.
        half: Whether one half is marked.
    """

    name: str
    values: Floats
    low: float
    high: float
    ends: str
    half: bool = False

    def heights(self, values: Any) -> Floats:
        """Return values as lengths in pixels."""
        lengths: Floats = np.asarray(values, dtype=np.float64) / (self.high - self.low) * (IMAGE - 2)
        return lengths


def _scales(shown: Bars, kept: Sequence[Sequence[int]]) -> Iterator[_Scale]:
    """Yield the columns in which bars are drawn."""
    if shown.scale == "softmax":
        for temperature in TEMPERATURES:
            shares = softmax(shown.values / temperature)
            highest = max(float(shares[:, row][:, classes].max()) for row, classes in enumerate(kept))
            yield _Scale(f"T = {temperature}", shares, 0.0, highest, f"to {100 * highest:.0f} %")
    elif shown.scale == "sigmoid":
        yield _Scale("probability", sigmoid(shown.values), 0.0, 1.0, "to 100 %", half=True)
    else:
        truths = [] if shown.truths is None else [shown.truths.flatten()]
        known = np.concatenate([np.zeros(1), shown.values.flatten(), *truths])
        known = known[np.isfinite(known)]
        low, high = float(known.min()), float(known.max())
        high = high if high > low else low + 1
        yield _Scale("", shown.values.astype(np.float64), low, high, f"{digits(low)} to {digits(high)}")


def sigmoid(logits: NDArray[np.floating[Any]]) -> Floats:
    """Return probabilities."""
    shares: Floats = 0.5 * (1 + np.tanh(logits.astype(np.float64) / 2))
    return shares


def _kept(shown: Bars, index: int) -> list[int]:
    """The labels of a sample that are shown: those that are true, and those that the networks think of most."""
    values, most = shown.values[:, index].astype(np.float64), MOST_BARS
    if shown.scale == "softmax":
        weight = softmax(values / 4).max(0)
    elif shown.scale == "sigmoid":
        weight, most = sigmoid(values).max(0), MOST_ALONE
    else:
        weight, most = -np.arange(values.shape[1], dtype=np.float64), MOST_ALONE
    if shown.scale and shown.truths is not None:
        weight = weight + (shown.truths[index] == 1)
    return sorted(np.argsort(-weight, kind="stable")[:most].tolist())


def told_apart(names: Sequence[str], pixels: float) -> list[str]:
    """Return names cut to a width: at their ends, or in the middle where they would look alike."""
    shown = [cut(name, pixels, SMALL) for name in names]
    return [
        cut(name, pixels, SMALL, middle=True) if shown.count(word) > names.count(name) else word
        for name, word in zip(names, shown, strict=True)
    ]


def look_of(name: str, looks: Mapping[str, Look], index: int) -> Look:
    """Return the look of a network, or one of its own where the page has none for it."""
    return looks[name] if name in looks else another(index)


def _off_diagonal(table: Floats) -> Floats:
    cells: Floats = np.array(table, dtype=np.float64)
    np.fill_diagonal(cells, 0)
    return cells


def _lines(words: str, width: float) -> list[str]:
    """Break words into lines of a width in pixels, and after each semicolon."""
    return [line for piece in words.split("; ") for line in textwrap.wrap(piece, int(width / 5.6))]


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


def _key(axes: Axes, networks: Sequence[str], looks: Sequence[Look], beside: int) -> None:
    """Name the networks above a picture, so many a line: the first by its bar, the others by their marks."""
    for index, (name, look) in enumerate(zip(networks, looks, strict=True)):
        x, y = index % beside * PIXELS / beside, LINE - 5 + LINE * (index // beside)
        if index:
            axes.plot(x + 4, y, look.marker, **_mark(look))
        else:
            _box(axes, x, y - 4, 8, 8, look.colour, 0.45)
        axes.text(x + 13, y, cut(name, PIXELS / beside - 18), va="center")


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


def _levels(axes: Axes, x: float, floor: float, width: float, heights: Floats) -> None:
    """Draw a short line across each bar; none where the height is not known."""
    slot = width / len(heights)
    for index, height in enumerate(heights):
        if np.isfinite(height):
            ends = x + (index + 0.04) * slot, x + (index + 0.96) * slot
            axes.plot(ends, 2 * (floor - float(height),), color=INK, linewidth=1)


def _ticks(
    axes: Axes, x: float, floor: float, width: float, names: Sequence[str], true: Sequence[bool], upright: bool
) -> None:
    slot = width / len(names)
    size = min(SMALL, 0.7 * slot) if upright else SMALL  # a line of text is 4/3 as high as its letters' size, in pixels
    for index, name in enumerate(names):
        bold = {"color": INK, "fontweight": "bold"} if true[index] else {"color": SOFT}
        _name_below(axes, x + (index + 0.5) * slot, floor + 2.5, name, upright, fontsize=size, **bold)


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


def _enlarged(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Repeat the pixels of a small image, which a browser would blur."""
    times = max(1, 224 // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
