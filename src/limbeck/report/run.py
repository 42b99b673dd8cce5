"""The page of one run: what was trained, how it went, and what came out."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.files import write
from limbeck.report.figures import Line, curves, shares
from limbeck.report.page import Plot, Section, Table, render
from limbeck.report.table import milliseconds, percent, quantity

Row = Mapping[str, str]
"""A line of ``metrics.csv``; empty where the stage does not have the column."""

FILES = ("student.safetensors", "config.yaml", "metrics.csv", "train.log", "result.json")


def run_report(folder: str | Path) -> Path:
    """Write a run's ``report.html``, of what is there: a run that is not finished has one too.

    Args:
        folder: The run's.

    Returns:
        The page.
    """
    folder = Path(folder)
    result = _result(folder / "result.json")
    rows = _rows(folder / "metrics.csv")
    sections = [_networks(result), *_curves(rows), _files(folder), _config(folder / "config.yaml")]
    title = " · ".join(str(result[name]) for name in ("method", "data") if result.get(name)) or folder.name
    page = render(title, _sentences(result, rows), [section for section in sections if section is not None])
    return write(folder / "report.html", page)


def _sentences(result: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    sentences = []
    for name, network in result.get("networks", {}).items():
        if "accuracy" in network.get("test", {}):
            sentences.append(f"The {name} reaches {percent(network['test']['accuracy'])} % on the test data.")
    if teacher := result.get("teacher"):
        sentences.append(f"Its teacher has {percent(teacher['accuracy'])} % on the validation data.")
    if not result.get("finished", False):
        sentences.append(f"The run is not finished: {len(rows)} epochs are done, and --resume goes on with it.")
    elif sentences:
        sentences.append("One run shows no gain: train the plain student beside it, over several seeds.")
    return sentences


def _networks(result: Mapping[str, Any]) -> Section | None:
    networks = result.get("networks", {})
    if not networks:
        return None
    rows = [
        (
            name,
            quantity(network["parameters"]),
            quantity(network["macs"]),
            _size(network["bytes"]),
            milliseconds(network["latency_ms"]),
            *(_percent(network.get(split, {}).get("accuracy")) for split in ("val", "test")),
        )
        for name, network in networks.items()
    ]
    header = ("network", "params", "MACs", "size", "latency", "accuracy, val", "accuracy, test")
    facts = {"Seed": str(result.get("seed")), "Time": f"{result['seconds']:.1f} s"} if "seconds" in result else {}
    versions = {name: str(version) for name, version in result.get("versions", {}).items()}
    caption = "MACs and latency are those of one sample; latency on one CPU thread. Accuracy in percent."
    return Section("What came out", table=Table(header, rows, caption), facts=facts | versions)


def _curves(rows: Sequence[Row]) -> list[Section]:
    if not rows:
        return []
    columns = list(rows[0])
    marks = _stages(rows)
    accuracy = [_line(rows, column, column.split("/")[1]) for column in columns if column.endswith("/accuracy")]
    plots = []
    if drawn := [line for line in accuracy if line.x]:
        percentages = [Line(line.label, line.x, tuple(100 * y for y in line.y)) for line in drawn]
        plots.append(
            Plot(curves(percentages, "validation accuracy", y_label="%", marks=marks), "Accuracy on validation")
        )
    for player in _players(columns):
        terms = [_line(rows, f"train/{player}/{term}", term) for term in _terms(columns, player)]
        if drawn := [line for line in terms if line.x]:
            plots.append(Plot(curves(drawn, f"losses of {player}", marks=marks), f"Each term of the {player}, raw"))
    sections = [Section("How it went", plots=plots)]
    if weighted := _shares(rows, columns):
        sections.append(
            Section(
                "What trained it",
                ["Each term's share of the weighted loss: what is small here teaches little."],
                plots=weighted,
            )
        )
    return sections


def _shares(rows: Sequence[Row], columns: Sequence[str]) -> list[Plot]:
    """For each player and stage in which several terms ran, their shares."""
    plots = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row if row["stage"] == stage else {} for row in rows]
        for player in _players(columns):
            lines = [_line(own, f"train/{player}/{term}.weighted", term) for term in _terms(columns, player)]
            longest = max((line.x for line in lines), key=len, default=())
            drawn = [
                Line(line.label, line.x, tuple(map(abs, line.y))) for line in lines if line.x == longest and any(line.y)
            ]
            if len(drawn) > 1:
                words = f"{player}, stage {stage}"
                plots.append(Plot(shares(drawn, f"shares of the loss: {words}"), words))
    return plots


def _files(folder: Path) -> Section:
    there = [name for name in FILES if (folder / name).exists()]
    return Section("Files", facts={name: _size((folder / name).stat().st_size) for name in there})


def _config(path: Path) -> Section | None:
    return Section("What was run", listing=path.read_text(encoding="utf-8")) if path.exists() else None


def _result(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _players(columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(column.split("/")[1] for column in columns if column.startswith("train/")))


def _terms(columns: Sequence[str], player: str) -> list[str]:
    """The raw terms of a player; their sum is none."""
    start = f"train/{player}/"
    names = [column.removeprefix(start) for column in columns if column.startswith(start)]
    return [name for name in names if name != "loss" and not name.endswith(".weighted")]


def _stages(rows: Sequence[Row]) -> dict[str, float]:
    """Where each stage begins; nothing where there is but one."""
    starts: dict[str, float] = {}
    for index, row in enumerate(rows, 1):
        starts.setdefault(row["stage"], float(index))
    return starts if len(starts) > 1 else {}


def _line(rows: Sequence[Row], column: str, label: str) -> Line:
    points = [(float(index), _number(row, column)) for index, row in enumerate(rows, 1)]
    known = [(x, y) for x, y in points if math.isfinite(y)]
    return Line(label, tuple(x for x, _ in known), tuple(y for _, y in known))


def _number(row: Row, column: str) -> float:
    return float(row.get(column) or math.nan)


def _size(count: int) -> str:
    return f"{quantity(count)}B" if count >= 1000 else f"{count} B"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
