"""What a model of a table was compressed into: what each costs and reaches, and what more rows from the teacher bring."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.digits import digits
from limbeck.core.files import Damaged, keep, read
from limbeck.report.figures import Line, over_sizes
from limbeck.report.page import Plot, Section
from limbeck.report.page import Table as PageTable
from limbeck.report.palette import looks
from limbeck.report.table import Role, milliseconds, percent, size

if TYPE_CHECKING:
    from rich.table import Table

RESULTS = "mimic.json"

MANY = 1000
"""Rows in the batch that is timed beside a single row."""

HEADER = ("model", "rows", "epochs", "size", "1 row", f"{MANY:,} rows", "RMSE", "accuracy")
CAPTION = (
    "Rows: that had labels, or that the teacher answered. Epochs: of the training; the one with the least validation loss, "
    "for all networks. In brackets: which part of the teacher's. Times are medians on "
    "one CPU thread. RMSE on the test rows: of probabilities against labels as 0 and 1; of a regression, of its values."
)
CURVE = (
    "RMSE on the test rows over how many made-up rows the teacher answered; lines across: models that saw none of them. "
    "One run of each, which shows no small difference."
)


@dataclass(frozen=True)
class Measured:
    """What a model of a table costs and how good it is on the test rows.

    Args:
        bytes: Of a network's weights, or of a scikit-learn model as pickled.
        row_ms: Median time of one row on one CPU thread, in milliseconds.
        many_ms: Of 1,000 rows.
        rmse: Root-mean-square error of the probabilities against labels as 0 and 1, over rows and classes (of two
            classes that of the one probability); of a regression, of the values.
        accuracy: In [0, 1]; None of a regression.
    """

    bytes: int
    row_ms: float
    many_ms: float
    rmse: float
    accuracy: float | None


@dataclass(frozen=True)
class Model:
    """A model of a table.

    Args:
        name: As the reader knows it.
        role: The teacher; as baseline the student that learned from labels alone, as control the one that learned from the
            teacher's answers to the labelled rows; as distilled the others.
        rows: How many it learned from.
        measured: What it costs and reaches.
        epochs: After how many its training was stopped; None of what was not trained in epochs.
    """

    name: str
    role: Role
    rows: int
    measured: Measured
    epochs: int | None = None


@dataclass(frozen=True)
class Compression:
    """A teacher, and students in place of it.

    Args:
        data: The table's name.
        teacher: The teacher's.
        student: The network's.
        tests: How many test rows there are.
        models: The teacher first, of the distilled ones the one to ship last.
        labels: How many rows had labels to learn from.
        stopping: And how many more labels said after which epoch to stop.
    """

    data: str
    teacher: str
    student: str
    tests: int
    models: tuple[Model, ...]
    labels: int = 0
    stopping: int = 0


def write_compression(compression: Compression, folder: str | Path) -> None:
    """Write what was measured into a run's folder, for its page."""
    keep(Path(folder) / RESULTS, asdict(compression))


def read_compression(folder: str | Path) -> Compression | None:
    """Read what was measured; None of a run that compresses no model of a table.

    Raises:
        Damaged: The file is not what was written.
    """
    path = Path(folder) / RESULTS
    if not path.exists():
        return None
    remedy = "the same `limbeck mimic` with --resume writes it again"
    found = read(path, remedy)
    try:
        models = (Model(**{**model, "measured": Measured(**model["measured"])}) for model in found.pop("models"))
        return Compression(**found, models=tuple(models))
    except (KeyError, TypeError) as error:
        raise Damaged(f"{path} is not what limbeck mimic writes ({error}): {remedy}") from error


def used_labels(compression: Compression) -> str:
    """Return how many labels were used, in a sentence; nothing where that was not kept."""
    if not compression.labels:
        return ""
    return (
        f"{compression.labels + compression.stopping:,} labels in all: {compression.labels:,} to learn from, "
        f"{compression.stopping:,} to say after which epoch to stop."
    )


def compression_section(compression: Compression) -> Section:
    """Return the section of a run's page: the table, and the curve if there are several sizes."""
    first, last = compression.models[0].measured, compression.models[-1].measured
    said = (
        f"{compression.student} in place of {compression.teacher}: {size(last.bytes)} instead of {size(first.bytes)}, "
        f"{milliseconds(last.row_ms)} a row instead of {milliseconds(first.row_ms)}, RMSE {last.rmse:.4f} instead of "
        f"{first.rmse:.4f} on {compression.tests:,} test rows."
    )
    curve = [model for model in compression.models if model.role == "distilled"]
    plots = [_curve(compression, curve)] if len(curve) > 1 else []
    caption = f"{used_labels(compression)} {CAPTION}".strip()
    table = PageTable(HEADER, _rows(compression), caption)
    return Section("What it was compressed into", [said], table, plots=plots)


def console_table(compression: Compression) -> Table:
    """Return the table for `rich.print`."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    title = f"{compression.teacher} into {compression.student}: {compression.data}, {compression.tests:,} test rows"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.caption, table.caption_justify = Text(used_labels(compression)), "left"
    for heading in HEADER:
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for cells in _rows(compression):
        table.add_row(*map(Text, cells))
    return table


def _rows(compression: Compression) -> list[tuple[str, ...]]:
    """Return what each costs and reaches, beside which part of the teacher's cost it has."""
    first = compression.models[0].measured
    return [
        (
            model.name,
            f"{model.rows:,}",
            "–" if model.epochs is None else str(model.epochs),
            _beside(first.bytes, of.bytes, size),
            _beside(first.row_ms, of.row_ms, milliseconds),
            _beside(first.many_ms, of.many_ms, milliseconds),
            f"{of.rmse:.4f}",
            "–" if of.accuracy is None else f"{percent(of.accuracy)} %",
        )
        for model in compression.models
        for of in (model.measured,)
    ]


def _beside(first: Any, own: Any, say: Callable[[Any], str]) -> str:
    ratio = first / own
    return say(own) if own == first else f"{say(own)} (1/{digits(ratio)})"


def _curve(compression: Compression, curve: Sequence[Model]) -> Plot:
    drawn = looks({model.name: model.role for model in compression.models})
    levels = {
        model.name: (model.measured.rmse, drawn[model.name])
        for model in compression.models
        if model.role != "distilled"
    }
    points = Line(
        "student",
        tuple(float(model.rows) for model in curve),
        tuple(model.measured.rmse for model in curve),
        look=drawn[curve[-1].name],
    )
    label = f"RMSE over rows answered: {', '.join(f'{model.rows:,}: {model.measured.rmse:.4f}' for model in curve)}"
    return Plot(over_sizes(points, levels, label, x_label="rows answered", y_label="RMSE"), CURVE)
