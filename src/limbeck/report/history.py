"""What ``metrics.csv`` tells: one row an epoch, of one run or of several over seeds."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.files import Damaged, read, sha256_of
from limbeck.core.task import Score
from limbeck.report.figures import Line
from limbeck.report.palette import Look

REMEDY = "remove it and let the run go on (--resume), which writes it again, or train again with another run_dir"
Row = Mapping[str, str]
"""A line of ``metrics.csv``; empty where the stage does not have the column."""


def read_rows(path: Path) -> list[Row]:
    """Read ``metrics.csv``; there are no rows where there is no such file.

    Raises:
        Damaged: It is not what a finished run wrote, by the checksum in its ``result.json``, or no such table at all.
    """
    if not path.exists():
        return []
    check_sum(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows: list[Row] = [*csv.DictReader(file, strict=True)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Damaged(f"{path} cannot be read as a table ({error}); {REMEDY}") from error
    for place, row in enumerate(rows, 2):
        if "stage" not in row or _wrong_in(row):
            raise Damaged(
                f"{path}, line {place}: expected a stage and numbers, got {_wrong_in(row) or [*row][:4]}; {REMEDY}"
            )
    return rows


def check_sum(path: Path) -> None:
    """See that a file is what a finished run wrote; of a run under way nobody knows.

    Raises:
        Damaged: It is not, by the checksum in ``result.json`` beside it.
    """
    result = path.with_name("result.json")
    sums = read(result, REMEDY).get("files") if result.exists() else None
    if isinstance(sums, dict) and path.name in sums and sums[path.name] != sha256_of(path):
        raise Damaged(f"{path} is damaged: it is not what the run wrote, by the checksum in {result.name}; {REMEDY}")


def _wrong_in(row: Mapping[Any, Any]) -> str | None:
    """Return a column of a row, with its entry, that is no number though it should be; None where all are."""
    for name, value in row.items():
        if name is None or value is None:
            return f"a line of another length, {value!r}"
        if name != "stage" and value:
            try:
                float(value)
            except ValueError:
                return f"{value!r} as {name}"
    return None


def line(rows: Sequence[Row], column: str, label: str, look: Look | None = None, scale: float = 1.0) -> Line:
    """Return a column over epochs, without those that do not have it."""
    known = [
        (float(index), scale * value) for index, value in enumerate(_numbers(rows, column), 1) if math.isfinite(value)
    ]
    return Line(label, tuple(x for x, _ in known), tuple(y for _, y in known), look=look)


def over_seeds(runs: Sequence[Sequence[Row]], column: str, label: str, look: Look, scale: float = 1.0) -> Line:
    """Return a column's mean over runs, epoch by epoch, with a band of one standard deviation (n − 1)."""
    epochs = zip(*(_numbers(rows, column) for rows in runs if rows), strict=False)  # as far as all have come
    known = [(float(index), values) for index, values in enumerate(epochs, 1) if all(map(math.isfinite, values))]
    return Line(
        label,
        tuple(x for x, _ in known),
        tuple(scale * statistics.fmean(values) for _, values in known),
        tuple(scale * statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in known),
        look,
    )


def score_columns(rows: Sequence[Row], score: Score) -> dict[str, str]:
    """Return the columns of the score on validation data by their network."""
    measured = [column.split("/", 2) for column in (rows[0] if rows else {}) if column.startswith("val/")]
    return {network: f"val/{network}/{metric}" for _, network, metric in measured if metric == score.name}


def players(rows: Sequence[Row]) -> list[str]:
    """Return who was trained."""
    columns = rows[0] if rows else {}
    return list(dict.fromkeys(column.split("/")[1] for column in columns if column.startswith("train/")))


def terms(rows: Sequence[Row], player: str) -> list[str]:
    """Return the raw terms of a player; their sum is none."""
    start = f"train/{player}/"
    names = [column.removeprefix(start) for column in (rows[0] if rows else {}) if column.startswith(start)]
    return [name for name in names if name != "loss" and not name.endswith(".weighted")]


def stages(rows: Sequence[Row]) -> dict[str, float]:
    """Return where each stage begins; nothing where there is but one."""
    starts: dict[str, float] = {}
    for index, row in enumerate(rows, 1):
        starts.setdefault(row["stage"], float(index))
    return starts if len(starts) > 1 else {}


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    return [float(row.get(column) or math.nan) for row in rows]
