"""Sections that show exhibits: each is drawn by its kind, whatever task it is of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.core import exhibits
from limbeck.core.exhibits import Bars, Exhibit, Gallery, Matrix, Note, Scatter
from limbeck.report.page import Plot, Section, Table
from limbeck.report.palette import Look
from limbeck.report.pictures import bars, gallery, scatter, table_of_confusions

LARGEST = 5
"""Confusions that are told in words."""

BARS = {
    "softmax": (
        "Bold: the label. Logits are divided by the temperature T before the softmax; the bars of a column share one "
        "scale, whose top is named. At T = 1 there is little but the label; at 4 one sees which wrong classes the teacher "
        "finds likely, which no label says; at 20 all are almost alike."
    ),
    "sigmoid": (
        "Bold: what is true. A label's height is its probability; the thin line is at one half. Of many labels the true "
        "and the likeliest are shown."
    ),
    "": "All bars share one scale, whose ends are named.",
}
"""How bars of each scale are read."""
LABELS = {"softmax": "soft labels", "sigmoid": "probabilities of labels", "": "values"}
SCATTER = (
    "A point is a held-out sample: to the right its true value, upwards what the network says; on the dashed line both are "
    "equal. Off by: the mean distance."
)
CHANGES = (
    "A row is the class that is shown, a column the class it is taken for; a number says in how many more held-out {unit} "
    "than of the plain student. Orange: more often; blue: more rarely. No test stands behind these numbers."
)
CONFUSIONS = (
    "A row is the class that is shown, a column the class it is taken for; a number says in how many held-out {unit}."
)


def exhibit_sections(shown: Iterable[Exhibit], looks: Mapping[str, Look]) -> list[Section]:
    """Return the sections that show exhibits: those of one title that follow each other share one.

    Args:
        shown: The exhibits.
        looks: Of the networks in them, by name.
    """
    sections: list[Section] = []
    for exhibit in shown:
        section = _section(exhibit, looks)
        last = sections[-1] if sections else None
        if last is not None and last.title == section.title and None in (last.table, section.table):
            sections[-1] = Section(
                last.title,
                list(dict.fromkeys([*last.sentences, *section.sentences])),
                last.table or section.table,
                plots=[*last.plots, *section.plots],
            )
        else:
            sections.append(section)
    return sections


def _section(exhibit: Exhibit, looks: Mapping[str, Look]) -> Section:
    if isinstance(exhibit, Matrix):
        return confusion_section(exhibit)
    sentences = [exhibit.words] if exhibit.words else []
    if isinstance(exhibit, Note):
        return Section(exhibit.title, sentences)
    if isinstance(exhibit, exhibits.Table):
        return Section(exhibit.title, sentences, Table(exhibit.columns, exhibit.rows))
    if isinstance(exhibit, Scatter):
        sentences.append(SCATTER)
    return Section(exhibit.title, sentences, plots=[_plot(exhibit, looks)])


def _plot(exhibit: Bars | Gallery | Scatter, looks: Mapping[str, Look]) -> Plot:
    if isinstance(exhibit, Gallery):
        shown = exhibit.figure or ", ".join(filter(None, exhibit.columns))
        return Plot(gallery(exhibit, f"{exhibit.title}: {shown}; {'; '.join(exhibit.captions)}"), exhibit.figure)
    among = ", ".join(exhibit.networks)
    if isinstance(exhibit, Scatter):
        label = f"{exhibit.title}: {exhibit.label} by {among}, over the true one of {len(exhibit.truths)} samples"
        return Plot(scatter(exhibit, looks, label), exhibit.label)
    first = "the teacher" if exhibit.networks[0] == "teacher" else exhibit.networks[0]
    marks = " Marks: the students." if len(exhibit.networks) > 1 else ""
    true = "" if exhibit.scale or exhibit.truths is None else " Lines across: what is true."
    label = f"{exhibit.title}: {LABELS[exhibit.scale]} by {among}, of {exhibit.values.shape[1]} samples"
    return Plot(bars(exhibit, looks, label), f"Bars: {first}.{marks}{true} {BARS[exhibit.scale]}")


def confusion_section(matrix: Matrix) -> Section:
    """Return the section on what one network confuses."""
    table, classes, of_all = matrix.counts, matrix.labels, f"held-out {matrix.unit}"
    counts = table.astype(np.float64)
    cells = _largest(counts)
    told = [
        f"{classes[row]} is taken for {classes[column]} in {table[row, column]} of {table[row].sum()} {of_all}."
        for row, column in cells
    ]
    words = [matrix.words] if matrix.words else []
    if not cells:
        return Section(matrix.title, [*words, f"Nothing: all {of_all} are given their class."])
    label = f"confusions of {matrix.network or 'the network'}"
    picture = table_of_confusions(counts, classes, label, changes=False)
    return Section(matrix.title, [*words, *told], plots=[Plot(picture, CONFUSIONS.format(unit=matrix.unit))])


def changes_section(
    plain: NDArray[np.float64],
    others: Mapping[str, NDArray[np.float64]],
    classes: Sequence[str],
    seeds: int,
    unit: str = "samples",
) -> Section | None:
    """Return the section on which confusions became rarer, and which more frequent; None where there is none.

    Args:
        plain: Of the plain student: mean held-out samples by class (row) and answer (column), (K, K).
        others: Of the others, by name.
        classes: Names.
        seeds: Over how many the means are.
        unit: What is counted.
    """
    told, plots = [], []
    over = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    for name, table in others.items():
        cells = _largest(table - plain)
        told += [_told(name, plain[cell], table[cell], plain[cell[0]].sum(), classes, cell) for cell in cells]
        if cells:
            picture = table_of_confusions(table - plain, classes, f"confusions of {name} minus plain", changes=True)
            plots.append(Plot(picture, f"{name} minus plain, mean over {over}"))
    sentences = [CHANGES.format(unit=unit), *told]
    return Section("What is confused now, and what no longer", sentences, plots=plots) if plots else None


def _told(name: str, before: float, after: float, shown: float, classes: Sequence[str], cell: tuple[int, int]) -> str:
    often = "more rarely" if after < before else "more often"
    of, taken = classes[cell[0]], classes[cell[1]]
    return f"{name} takes {of} for {taken} {often}: {after:.1f} times instead of {before:.1f}, of {shown:.0f}."


def _largest(table: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return the cells off the diagonal that hold most, by their size."""
    size = np.abs(table)
    np.fill_diagonal(size, 0)
    flat = np.argsort(-size, axis=None, kind="stable")[:LARGEST]
    rows, columns = np.unravel_index(flat, size.shape)
    return [(int(row), int(column)) for row, column in zip(rows, columns, strict=True) if size[row, column] > 0]
