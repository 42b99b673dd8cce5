"""What a page shows of trained networks, as plain arrays and words: `limbeck.Task.exhibit` yields it, a report draws it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from limbeck.task import Task


@dataclass(frozen=True)
class Gallery:
    """Rows of pictures: a sample a row, a column each for the input, the truth, and what networks make of it.

    Args:
        title: The heading of the section.
        columns: Their headings.
        rows: Pictures, each uint8 (H, W, 1 or 3), or None where a cell is empty.
        captions: What is said under each row; one for each.
        words: What the reader should know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[NDArray[np.uint8] | None, ...], ...]
    captions: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True)
class Matrix:
    """A table of counts: how many of a class (row) are taken for another (column).

    Args:
        title: The heading of the section.
        labels: Names of rows and columns.
        counts: int64 (K, K).
        words: What the reader should know.
        network: Whose answers are counted.
    """

    title: str
    labels: tuple[str, ...]
    counts: NDArray[np.int64]
    words: str = ""
    network: str = ""


@dataclass(frozen=True)
class Bars:
    """Scores of several networks for the same samples: soft labels, one chart a sample.

    Args:
        title: The heading of the section.
        networks: Whose they are, the teacher first.
        labels: What is scored: classes, or the outputs of a regression.
        values: float32 (networks, samples, labels).
        truths: float32 (samples, labels), NaN where unknown; None where there is none.
        images: uint8 (H, W, 1 or 3) for each sample, or None.
        captions: Why each sample is shown; one for each.
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
    scale: str = ""
    words: str = ""


@dataclass(frozen=True)
class Scatter:
    """Values of several networks over the true ones: one panel a network, the diagonal is right.

    Args:
        title: The heading of the section.
        networks: Whose they are, the teacher first.
        truths: float32 (samples).
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


@dataclass(frozen=True)
class Texts:
    """Sentences with what networks answer.

    Args:
        title: The heading of the section.
        columns: Their headings: the text, the truth, a column for each network.
        rows: A sample a row.
        words: What the reader should know.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: str = ""


@dataclass(frozen=True)
class Note:
    """What is not shown, and why."""

    words: str


Exhibit = Gallery | Matrix | Bars | Scatter | Texts | Note


class Shown(Protocol):
    """What a task may show: trained networks and held-out data, as `limbeck.Task.exhibit` sees them."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks by name, frozen: ``"teacher"`` first where somebody teaches, then those that were trained."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the outputs, where the data have them."""

    @property
    def samples(self) -> tuple[Any, Any] | None:
        """Inputs and targets of some samples spread over the held-out data, on the CPU; None where they do not stack."""

    def answers(self, net: nn.Module) -> Any:
        """Return what a network answers to ``samples``, on the CPU."""

    def pictures(self, inputs: Any) -> NDArray[np.uint8] | None:
        """Return inputs as they would look on a screen, uint8 (n, H, W, 1 or 3); None where they are no images."""

    def batches(self) -> Iterable[Any]:
        """Yield all held-out batches; among several processes, this one's share."""
