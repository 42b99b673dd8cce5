"""The page of one run: what was trained, how it went, and what came out; and that of several beside each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.files import write
from limbeck.report.examples import FILE, Examples, read_examples
from limbeck.report.figures import Line, Point, curves, panels, shares, tradeoff
from limbeck.report.history import Row, accuracy_columns, line, players, read_rows, stages, terms
from limbeck.report.mimic import compression_section, read_compression
from limbeck.report.page import Plot, Section, Table, render
from limbeck.report.palette import BASELINE, TEACHER, another
from limbeck.report.sections import confusion_section, example_sections
from limbeck.report.table import milliseconds, percent, quantity

UNPAIRED = (
    "Single runs beside each other show nothing about their methods: seeds alone make accuracies differ. limbeck compare "
    "trains methods and the plain student over the same seeds, and says what that shows."
)
LEAVING = (
    "Each sample leaves at the first exit whose largest probability exceeds a threshold; along the line it rises from 0, "
    "everybody leaves at the first exit, to 1, nobody before the last. limbeck eval --macs or --accuracy sets it, on the "
    "validation data."
)
NETWORK_HEADER = ("network", "params", "MACs", "size", "latency", "accuracy, val", "accuracy, test")
CAPTION = "MACs and latency are those of one sample; latency on one CPU thread. Accuracy in percent."
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
FILES = ("student.safetensors", "config.yaml", "metrics.csv", "train.log", "result.json")


def run_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write a run's page, of the files that are there: a run that is not finished has one too.

    Args:
        folder: The run's.
        path: The file to write; by default ``report.html`` in the folder.

    Returns:
        The page.
    """
    folder = Path(folder)
    result, rows = read_result(folder), read_rows(folder / "metrics.csv")
    compression = read_compression(folder)
    sections = [
        None if compression is None else compression_section(compression),
        _networks(result),
        *_exits(result),
        *_curves(rows),
        *_examples(read_examples(folder / FILE)),
        _files(folder),
        _config(folder),
    ]
    title = " · ".join(str(result[name]) for name in ("method", "data") if result.get(name)) or folder.name
    page = render(title, _sentences(result, rows), [section for section in sections if section is not None])
    return write(Path(path or folder / "report.html"), page)


def runs_report(runs: Mapping[str, Path], path: str | Path) -> Path:
    """Write a page that puts runs beside each other, whatever they are: it judges nothing, since they need not be paired.

    Args:
        runs: Their folders by the name that the page gives them.
        path: The file to write.

    Returns:
        ``path``.
    """
    results = {name: read_result(folder) for name, folder in runs.items()}
    histories = {name: read_rows(folder / "metrics.csv") for name, folder in runs.items()}
    header = ("run", *NETWORK_HEADER)
    rows = [(run, *cells) for run, result in results.items() for cells in _network_rows(result)]
    sections = [
        Section("What came out", table=Table(header, rows, CAPTION) if rows else None, plots=_runs_tradeoff(results)),
        Section("How it went", plots=_runs_curves(histories)),
        *(_config(folder, f"What was run as {name}") for name, folder in runs.items()),
    ]
    shown = [section for section in sections if section is not None]
    return write(Path(path), render(f"{len(runs)} runs", [UNPAIRED], shown))


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
    rows = _network_rows(result)
    if not rows:
        return None
    facts = {"Seed": str(result.get("seed")), "Time": f"{result['seconds']:.1f} s"} if "seconds" in result else {}
    versions = {name: str(version) for name, version in result.get("versions", {}).items()}
    return Section("What came out", table=Table(NETWORK_HEADER, rows, CAPTION), facts=facts | versions)


def _exits(result: Mapping[str, Any]) -> list[Section]:
    """Accuracy over compute of a network with exits, and each exit as a point of its own."""
    sections = []
    for name, exits in result.get("exits", {}).items():
        points = [(point["macs"], point["accuracy"]) for point in exits["curve"]]
        alone = list(zip(exits["exit_macs"], exits["accuracies"], strict=True))
        size, unit = next((scale for scale in SCALES if points[-1][0] >= scale[0]), SCALES[-1])
        lines = [
            Line(label, tuple(macs / size for macs, _ in way), tuple(100 * right for _, right in way))
            for label, way in (("leaving when sure", points), ("one exit for all", alone))
        ]
        words = "Accuracy on the test data over multiply-accumulates a sample"
        plot = Plot(curves(lines, words, y_label="%", x_label=f"MACs, {unit}".rstrip(", ")), words)
        sections.append(Section(f"What leaving early saves: {name}", [LEAVING], plots=[plot]))
    return sections


def _network_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            name,
            quantity(network["parameters"]),
            quantity(network["macs"]),
            _size(network["bytes"]),
            milliseconds(network["latency_ms"]),
            *(_percent(network.get(split, {}).get("accuracy")) for split in ("val", "test")),
        )
        for name, network in result.get("networks", {}).items()
    ]


def _curves(rows: Sequence[Row]) -> list[Section]:
    if not rows:
        return []
    marks, plots = stages(rows), []
    accuracies = [line(rows, column, name, scale=100) for name, column in accuracy_columns(rows).items()]
    if drawn := [each for each in accuracies if each.x]:
        plots.append(Plot(curves(drawn, "validation accuracy", y_label="%", marks=marks), "Accuracy on validation"))
    for player in players(rows):
        losses = [line(rows, f"train/{player}/{term}", term) for term in terms(rows, player)]
        if drawn := [each for each in losses if each.x]:
            plots.append(Plot(curves(drawn, f"losses of {player}", marks=marks), f"Each term of the {player}, raw"))
    sections = [Section("How it went", plots=plots)]
    if weighted := _shares(rows):
        sections.append(
            Section(
                "What trained it",
                ["Each term's share of the weighted loss: what is small here teaches little."],
                plots=weighted,
            )
        )
    return sections


def _shares(rows: Sequence[Row]) -> list[Plot]:
    """For each player and stage in which several terms ran, their shares."""
    plots = []
    for stage in dict.fromkeys(row["stage"] for row in rows):
        own = [row if row["stage"] == stage else {} for row in rows]
        for player in players(rows):
            lines = [line(own, f"train/{player}/{term}.weighted", term) for term in terms(rows, player)]
            longest = max((each.x for each in lines), key=len, default=())
            drawn = [
                Line(each.label, each.x, tuple(map(abs, each.y))) for each in lines if each.x == longest and any(each.y)
            ]
            if len(drawn) > 1:
                words = f"{player}, stage {stage}"
                plots.append(Plot(shares(drawn, f"shares of the loss: {words}"), words))
    return plots


def _examples(examples: Examples | None) -> list[Section]:
    if examples is None:
        return []
    looks = dict(zip(examples.networks, (TEACHER, BASELINE), strict=False))
    confusions = [] if examples.confusion is None else [confusion_section(examples.confusion, examples.classes)]
    return [*example_sections(examples, looks), *confusions]


def _runs_tradeoff(results: Mapping[str, Mapping[str, Any]]) -> list[Plot]:
    points = []
    for index, (run, result) in enumerate(results.items()):
        for name, network in list(result.get("networks", {}).items())[:1]:  # the one to ship
            accuracy = network.get("test", {}).get("accuracy")
            costs = {"parameters": network["parameters"], "latency, ms": network["latency_ms"]}
            if accuracy is not None and min(costs.values()) > 0:
                points.append(Point(run if name == "student" else f"{run}, {name}", costs, (accuracy,), another(index)))
    words = "Accuracy on the test data over parameters and over latency"
    return [Plot(tradeoff(points, words), words)] if points else []


def _runs_curves(histories: Mapping[str, Sequence[Row]]) -> list[Plot]:
    charts: dict[str, list[Line]] = {}
    accuracies = []
    for index, (run, rows) in enumerate(histories.items()):
        for column in list(accuracy_columns(rows).values())[:1]:
            accuracies.append(line(rows, column, run, another(index), scale=100))
        for player in players(rows)[:1]:
            for term in terms(rows, player):
                charts.setdefault(term, []).append(line(rows, f"train/{player}/{term}", run, another(index)))
    plots = []
    if drawn := [each for each in accuracies if each.x]:
        plots.append(Plot(curves(drawn, "validation accuracy", y_label="%"), "Accuracy on validation"))
    if charts:
        plots.append(Plot(panels(charts, "losses by term"), "Each term of the loss, raw"))
    return plots


def _files(folder: Path) -> Section:
    there = [name for name in FILES if (folder / name).exists()]
    return Section("Files", facts={name: _size((folder / name).stat().st_size) for name in there})


def _config(folder: Path, title: str = "What was run") -> Section | None:
    path = folder / "config.yaml"
    return Section(title, listing=path.read_text(encoding="utf-8")) if path.exists() else None


def read_result(folder: Path) -> dict[str, Any]:
    """Read a run's ``result.json``; empty where there is none."""
    path = folder / "result.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _size(count: int) -> str:
    return f"{quantity(count)}B" if count >= 1000 else f"{count} B"


def _percent(value: float | None) -> str:
    return "–" if value is None else percent(value)
