"""Sections that show examples: what the teacher's answers hold beyond the label, where layers look, what is confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from limbeck.report.examples import Examples
from limbeck.report.page import Plot, Section
from limbeck.report.palette import Look
from limbeck.report.pictures import attention, soft_labels, table_of_confusions

LARGEST = 5
"""Confusions that are told in words."""
LOOKS = 3
"""Examples whose attention is drawn."""

SOFT_LABELS = (
    "Bars: the teacher. Marks: the students. Bold: the label. Logits are divided by the temperature T before the softmax; "
    "the bars of a column share one scale, whose top is named. At T = 1 there is little but the label; at 4 one sees which "
    "wrong classes the teacher finds likely, which no label says; at 20 all are almost alike."
)
ATTENTION = (
    "Where a layer is most active: the mean of its squared channels (Zagoruyko & Komodakis 2017), each map up to its own "
    "maximum. A row is a pair of layers."
)
CHANGES = (
    "A row is the class that is shown, a column the class it is taken for; a number says in how many more held-out images "
    "than of the plain student. Orange: more often; blue: more rarely. No test stands behind these numbers."
)
CONFUSIONS = (
    "A row is the class that is shown, a column the class it is taken for; a number says in how many held-out images."
)


def example_sections(examples: Examples | None, looks: Mapping[str, Look]) -> list[Section]:
    """Return the sections on soft labels and attention maps, or in words why there are none."""
    if examples is None:
        return []
    known = Section("What the teacher knows beyond the label", examples.notes if not len(examples.targets) else ())
    if not len(examples.targets):
        return [known] if examples.notes else []
    among = ", ".join(examples.networks[1:])
    picture = soft_labels(
        examples, looks, f"soft labels of the teacher and of {among} for {len(examples.targets)} images"
    )
    known = Section(known.title, plots=[Plot(picture, SOFT_LABELS)])
    maps = [
        Plot(attention(examples, index, f"attention maps, {examples.reasons[index]}"), examples.reasons[index])
        for index in (_spread(len(examples.targets), LOOKS) if examples.maps else ())
    ]
    return [known, Section("Where they look", [ATTENTION] if maps else examples.notes, plots=maps)]


def confusion_section(table: NDArray[np.int64], classes: Sequence[str]) -> Section:
    """Return the section on what one network confuses.

    Args:
        table: Test images by class (row) and answer (column), (K, K).
        classes: Names.
    """
    counts = table.astype(np.float64)
    cells = _largest(counts)
    told = [
        f"{classes[row]} is taken for {classes[column]} in {table[row, column]} of {table[row].sum()} held-out images."
        for row, column in cells
    ]
    if not cells:
        return Section("What it confuses", ["Nothing: every held-out image is given its class."])
    picture = table_of_confusions(counts, classes, "confusions of the student", changes=False)
    return Section("What it confuses", told, plots=[Plot(picture, CONFUSIONS)])


def changes_section(
    plain: NDArray[np.float64], others: Mapping[str, NDArray[np.float64]], classes: Sequence[str], seeds: int
) -> Section | None:
    """Return the section on which confusions became rarer, and which more frequent; None where there is none.

    Args:
        plain: Of the plain student: mean held-out images by class (row) and answer (column), (K, K).
        others: Of the others, by name.
        classes: Names.
        seeds: Over how many the means are.
    """
    told, plots = [], []
    over = f"{seeds} {'seed' if seeds == 1 else 'seeds'}"
    for name, table in others.items():
        cells = _largest(table - plain)
        told += [_told(name, plain[cell], table[cell], plain[cell[0]].sum(), classes, cell) for cell in cells]
        if cells:
            picture = table_of_confusions(table - plain, classes, f"confusions of {name} minus plain", changes=True)
            plots.append(Plot(picture, f"{name} minus plain, mean over {over}"))
    return Section("What is confused now, and what no longer", [CHANGES, *told], plots=plots) if plots else None


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


def _spread(count: int, most: int) -> list[int]:
    return sorted({round(index) for index in np.linspace(0, count - 1, min(most, count))})
