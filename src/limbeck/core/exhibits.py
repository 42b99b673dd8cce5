"""What a page shows of trained networks, as plain arrays and words: `limbeck.Task.exhibit` yields it, a report draws it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limbeck.core.task import Task


@dataclass(frozen=True, eq=False)
class Gallery:
    """Rows of pictures: a sample a row, a column each for the input, the truth, and what networks make of it.

    Args:
        title: The heading of the section; exhibits of one title that follow each other share it.
        columns: What is written over each column; may be empty texts.
        rows: Pictures, each uint8 (H, W, 1 or 3), or None where a cell is empty.
        captions: What is said of each row; one for each, or none.
        labels: What is written under each picture; a text for each cell, or none.
        figure: What this figure shows, where a section has several.
        words: What the reader should know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[NDArray[np.uint8] | None, ...], ...]
    captions: tuple[str, ...] = ()
    labels: tuple[tuple[str, ...], ...] = ()
    figure: str = ""
    words: str = ""

    def __post_init__(self) -> None:
        _are_words(self)
        _expect(bool(self.rows), "rows", "at least one row", self.rows)
        for row in (*self.rows, *self.labels):
            _expect(len(row) == len(self.columns), "rows", f"{len(self.columns)} cells, as there are columns", row)
        for picture in (cell for row in self.rows for cell in row if cell is not None):
            _is_picture("rows", picture)
        _expect(len(self.captions) in (0, len(self.rows)), "captions", f"{len(self.rows)} of them", self.captions)
        _expect(len(self.labels) in (0, len(self.rows)), "labels", f"{len(self.rows)} rows of them", self.labels)


@dataclass(frozen=True, eq=False)
class Matrix:
    """A table of counts: how many of a class (row) are taken for another (column).

    A comparison's page shows how those of its runs differ that have the same title and labels.

    Args:
        title: The heading of the section.
        labels: Names of rows and columns.
        counts: int64 (K, K).
        unit: What is counted: ``"images"``, ``"pixels"``.
        network: Whose answers are counted.
        words: What the reader should know.
    """

    title: str
    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    unit: str = "samples"
    network: str = ""
    words: str = ""

    def __post_init__(self) -> None:
        _are_words(self)
        _is_array("counts", self.counts, "int64", (len(self.labels), len(self.labels)))


@dataclass(frozen=True, eq=False)
class Bars:
    """Scores of several networks for the same samples: one chart a sample.

    Args:
        title: The heading of the section.
        networks: Whose they are; the first is drawn as bars, the others as marks.
        labels: What is scored: classes, or the outputs of a regression.
        values: float32 (networks, samples, labels).
        truths: float32 (samples, labels), NaN where unknown: 1 and 0 where something is or is not, or the true values;
            None where there are none.
        images: uint8 (H, W, 1 or 3) for each sample, or none.
        captions: Why each sample is shown; one for each, or none.
        scale: ``"softmax"``: values are logits of classes, drawn at several temperatures; ``"sigmoid"``: logits of labels
            that do not exclude each other; ``""``: values as they are.
        words: What the reader should know.
    """

    title: str
    networks: tuple[str, ...]
    labels: tuple[str, ...]
    values: NDArray[np.float32]
    truths: NDArray[np.float32] | None = None
    images: tuple[NDArray[np.uint8], ...] = ()
    captions: tuple[str, ...] = ()
    scale: Literal["softmax", "sigmoid", ""] = ""
    words: str = ""

    def __post_init__(self) -> None:
        _are_words(self)
        _expect(self.scale in ("softmax", "sigmoid", ""), "scale", "'softmax', 'sigmoid' or ''", self.scale)
        _is_array("values", self.values, "float32", (len(self.networks), -1, len(self.labels)))
        count = self.values.shape[1]
        _expect(bool(self.values.size), "values", "a network, a sample and a label at least", self.values.shape)
        if self.truths is not None:
            _is_array("truths", self.truths, "float32", (count, len(self.labels)))
        for picture in self.images:
            _is_picture("images", picture)
        _expect(len(self.images) in (0, count), "images", f"{count} of them, one a sample", len(self.images))
        _expect(len(self.captions) in (0, count), "captions", f"{count} of them, one a sample", self.captions)


@dataclass(frozen=True, eq=False)
class Scatter:
    """Values of several networks over the true ones: one panel a network, the diagonal is right.

    Args:
        title: The heading of the section; exhibits of one title that follow each other share it.
        networks: Whose they are, the teacher first.
        truths: float32 (samples), NaN where unknown.
        values: float32 (networks, samples).
        label: What the values are, with their unit.
        words: What the reader should know.
    """

    title: str
    networks: tuple[str, ...]
    truths: NDArray[np.float32]
    values: NDArray[np.float32]
    label: str = "value"
    words: str = ""

    def __post_init__(self) -> None:
        _are_words(self)
        _is_array("truths", self.truths, "float32", (-1,))
        _is_array("values", self.values, "float32", (len(self.networks), len(self.truths)))
        _expect(bool(self.values.size), "values", "a network and a sample at least", self.values.shape)


@dataclass(frozen=True, eq=False)
class Table:
    """Words in rows: sentences beside what networks answer, or what became of each label.

    Args:
        title: The heading of the section.
        columns: Their headings; the first column names the row.
        rows: A cell for each column.
        words: What the reader should know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: str = ""

    def __post_init__(self) -> None:
        _are_words(self)
        for row in self.rows:
            _expect(len(row) == len(self.columns), "rows", f"{len(self.columns)} cells, as there are columns", row)


@dataclass(frozen=True, eq=False)
class Note:
    """What is not shown, and why.

    Args:
        title: The heading of the section.
        words: The reason.
    """

    title: str
    words: str

    def __post_init__(self) -> None:
        _are_words(self)


Exhibit = Gallery | Matrix | Bars | Scatter | Table | Note


def names(classes: tuple[str, ...], count: int) -> tuple[str, ...]:
    """Return the names of ``count`` outputs: those of the classes if there are as many, else their numbers."""
    return classes if len(classes) == count else tuple(map(str, range(count)))


class Shown(Protocol):
    """What a task may show: trained networks and held-out data, as `limbeck.Task.exhibit` sees them.

    Networks run in eval mode, and nothing has gradients. Among several processes all must go through the same batches.
    """

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name, frozen: ``"teacher"`` first where somebody teaches, then those that were trained."""

    @property
    def counted(self) -> Mapping[str, nn.Module]:
        """Those whose answers to all held-out data may be counted.

        Of a run the network to ship; of a comparison none, as each of its runs has counted for itself.
        """

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs, where the data have them."""

    @property
    def samples(self) -> tuple[Any, Any]:
        """Inputs and targets of up to 256 samples spread over the held-out data, fewer if they are large, on the CPU."""

    @property
    def answers(self) -> Mapping[str, Any]:
        """What each of ``networks`` answers to ``samples``, on the CPU in float32."""

    def asked(self, inputs: Any) -> Mapping[str, Any]:
        """Return what each of ``networks`` answers to some of the inputs: where the answers to all are too large to keep.

        Args:
            inputs: As ``samples`` has them, or some of them.
        """

    def pictures(self, inputs: Any, side: int = 96) -> tuple[NDArray[np.uint8], ...] | None:
        """Return inputs as they would look on a screen, uint8 (H, W, 1 or 3) each; None where they are no images.

        Args:
            inputs: As ``samples`` has them, or some of them.
            side: The most pixels a side; larger ones are made smaller.
        """

    def attention(self, rows: Sequence[int], captions: Sequence[str]) -> Iterator[Exhibit]:
        """Yield where the paired layers of the networks look; nothing where inputs are no images, or nobody teaches.

        Args:
            rows: Which of ``samples``; of more than three, three of them.
            captions: What is said of each.
        """

    def batches(self) -> Iterable[Any]:
        """Yield all held-out batches where the networks are; among several processes, this one's share."""


def _expect(true: bool, name: str, what: str, came: Any) -> None:
    if not true:
        raise ValueError(f"{name}: expected {what}, got {came!r}")


def _are_words(exhibit: Exhibit) -> None:
    """Refuse what is neither text nor an array, nor a tuple of these: a file could not hold it."""
    import numpy as np

    for field in fields(exhibit):
        values = [getattr(exhibit, field.name)]
        while values:
            value = values.pop()
            if isinstance(value, (tuple, list)):
                values += value
            elif not isinstance(value, (str, np.ndarray, type(None))):
                raise TypeError(f"{field.name}: expected texts and NumPy arrays, got {type(value).__name__} {value!r}")


def _is_array(name: str, value: Any, kind: str, shape: tuple[int, ...]) -> None:
    """Refuse what is no array of a kind and shape; -1 is any length."""
    import numpy as np

    fits = isinstance(value, np.ndarray) and str(value.dtype) == kind and len(value.shape) == len(shape)
    if not fits or any(given not in (-1, has) for has, given in zip(value.shape, shape, strict=True)):
        came = f"{type(value).__name__} {getattr(value, 'dtype', '')} {tuple(getattr(value, 'shape', ()))}"
        raise ValueError(f"{name}: expected a NumPy array, {kind} {shape} (-1: any), got {came}")


def _is_picture(name: str, value: Any) -> None:
    _is_array(name, value, "uint8", (-1, -1, -1))
    _expect(value.shape[2] in (1, 3) and value.size > 0, name, "pictures (H, W, 1 or 3)", value.shape)
