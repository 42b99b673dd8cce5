"""The page of one run: what was trained, how it went, and what came out; and that of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from limbeck.core.files import Damaged, read, write
from limbeck.core.task import Score
from limbeck.report.examples import FILE, read_exhibits
from limbeck.report.figures import Line, Point, curves, panels, shares, tradeoff
from limbeck.report.history import REMEDY, Row, check_sum, line, players, read_rows, score_columns, stages, terms
from limbeck.report.mimic import compression_section, read_compression
from limbeck.report.page import Plot, Section, Table, render
from limbeck.report.palette import BASELINE, TEACHER, Look, another
from limbeck.report.sections import exhibit_sections
from limbeck.report.table import UNSAID, at_start, milliseconds, quantity, told

UNPAIRED = (
    "Single runs beside each other show nothing about their methods: seeds alone make scores differ. limbeck compare "
    "trains methods and the plain student over the same seeds, and says what that shows."
)
LEAVING = (
    "Each sample leaves at the first exit whose largest probability exceeds a threshold; along the line it rises from 0, "
    "everybody leaves at the first exit, to 1, nobody before the last. limbeck eval --macs or --accuracy sets it, on the "
    "validation data."
)
CAPTION = "MACs and latency are those of one sample; latency on one CPU thread."
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
COSTS = ("parameters", "macs", "bytes", "latency_ms")
UNKNOWN = "–"
SETTINGS = "remove it, and the page goes without"
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
    score = read_score(result)
    compression = read_compression(folder)
    sections = [
        None if compression is None else compression_section(compression),
        _networks(result, score),
        *_exits(result),
        *_curves(rows, score),
        *exhibit_sections(read_exhibits(folder / FILE), _looks(result)),
        _files(folder),
        _config(folder),
    ]
    title = " · ".join(str(result[name]) for name in ("method", "data") if result.get(name)) or folder.name
    page = render(title, _sentences(result, score, rows), [section for section in sections if section is not None])
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
    scores = {name: read_score(result) for name, result in results.items()}
    sections = []
    for score in dict.fromkeys(scores.values()):  # what is judged otherwise cannot stand in one table
        own = {name: result for name, result in results.items() if scores[name] == score}
        by = "" if len(own) == len(runs) else f", by {score.name}"
        rows = [(run, *cells) for run, result in own.items() for cells in _network_rows(result, score)]
        table = Table(("run", *_network_header(score)), rows, _caption(score)) if rows else None
        curves_of = _runs_curves({name: histories[name] for name in own}, score)
        sections += [
            Section(f"What came out{by}", table=table, plots=_runs_tradeoff(own, score)),
            Section(f"How it went{by}", plots=curves_of),
        ]
    configs = [_config(folder, f"What was run as {name}") for name, folder in runs.items()]
    shown = [*sections, *(section for section in configs if section is not None)]
    return write(Path(path), render(f"{len(runs)} runs", [UNPAIRED], shown))


def _sentences(result: Mapping[str, Any], score: Score, rows: Sequence[Row]) -> list[str]:
    sentences = []
    for name, network in result.get("networks", {}).items():
        if score.name in network.get("test", {}):
            sentences.append(f"The {name} reaches {told(score, network['test'][score.name])} on the test data.")
    teacher = result.get("teacher") or {}
    if score.name in teacher:
        sentences.append(f"Its teacher has {told(score, teacher[score.name])} on the validation data.")
    sentences += [f"Without {what}: {reason}." for what, reason in result.get("missing", {}).items()]
    if result.get("missing"):
        sentences.append("The call that trained it tries what is missing again, with resume=True (--resume).")
    if not result.get("finished", False):
        sentences.append(f"The run is not finished: {len(rows)} epochs are done, and --resume goes on with it.")
    elif sentences:
        sentences.append("One run shows no gain: train the plain student beside it, over several seeds.")
    return sentences


def _networks(result: Mapping[str, Any], score: Score) -> Section | None:
    rows = _network_rows(result, score)
    if not rows:
        return None
    facts = {"Seed": str(result.get("seed")), "Time": f"{result['seconds']:.1f} s"} if "seconds" in result else {}
    versions = {name: str(version) for name, version in result.get("versions", {}).items()}
    return Section("What came out", table=Table(_network_header(score), rows, _caption(score)), facts=facts | versions)


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


def _network_header(score: Score) -> tuple[str, ...]:
    return ("network", "params", "MACs", "size", "latency", f"{score.name}, val", f"{score.name}, test")


def _caption(score: Score) -> str:
    unit = "percent" if score.unit == "%" else score.unit
    return f"{CAPTION} {at_start(score.name)} in {unit}." if unit else CAPTION


def _network_rows(result: Mapping[str, Any], score: Score) -> list[tuple[str, ...]]:
    return [
        (
            name,
            *(
                show(network[cost]) if cost in network else UNKNOWN
                for cost, show in zip(COSTS, (quantity, quantity, _size, milliseconds), strict=True)
            ),
            *(_number(score, network.get(split, {}).get(score.name)) for split in ("val", "test")),
        )
        for name, network in result.get("networks", {}).items()
    ]


def _curves(rows: Sequence[Row], score: Score) -> list[Section]:
    if not rows:
        return []
    marks, plots = stages(rows), []
    reached = [line(rows, column, name, scale=score.scale) for name, column in score_columns(rows, score).items()]
    if drawn := [each for each in reached if each.x]:
        plots.append(_validation(drawn, score, marks))
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


def _looks(result: Mapping[str, Any]) -> dict[str, Look]:
    shipped = list(result.get("networks", {}))[:1]
    return {"teacher": TEACHER, **dict.fromkeys(shipped, BASELINE)}


def _validation(lines: Sequence[Line], score: Score, marks: Mapping[str, float] | None = None) -> Plot:
    chart = curves(lines, f"validation {score.name}", y_label=score.unit or score.name, marks=marks)
    return Plot(chart, f"{at_start(score.name)} on validation")


def _runs_tradeoff(results: Mapping[str, Mapping[str, Any]], score: Score) -> list[Plot]:
    points = []
    for index, (run, result) in enumerate(results.items()):
        for name, network in list(result.get("networks", {}).items())[:1]:  # the one to ship
            reached = network.get("test", {}).get(score.name)
            costs = {"parameters": network.get("parameters", 0), "latency, ms": network.get("latency_ms", 0)}
            if reached is not None and min(costs.values()) > 0:
                points.append(Point(run if name == "student" else f"{run}, {name}", costs, (reached,), another(index)))
    words = f"{at_start(score.name)} on the test data over parameters and over latency"
    return [Plot(tradeoff(points, words, score), words)] if points else []


def _runs_curves(histories: Mapping[str, Sequence[Row]], score: Score) -> list[Plot]:
    charts: dict[str, list[Line]] = {}
    reached = []
    for index, (run, rows) in enumerate(histories.items()):
        for column in list(score_columns(rows, score).values())[:1]:
            reached.append(line(rows, column, run, another(index), scale=score.scale))
        for player in players(rows)[:1]:
            for term in terms(rows, player):
                charts.setdefault(term, []).append(line(rows, f"train/{player}/{term}", run, another(index)))
    plots = []
    if drawn := [each for each in reached if each.x]:
        plots.append(_validation(drawn, score))
    if charts:
        plots.append(Plot(panels(charts, "losses by term"), "Each term of the loss, raw"))
    return plots


def _files(folder: Path) -> Section:
    there = [name for name in FILES if (folder / name).exists()]
    return Section("Files", facts={name: _size((folder / name).stat().st_size) for name in there})


def _config(folder: Path, title: str = "What was run") -> Section | None:
    path = folder / "config.yaml"
    if not path.exists():
        return None
    read(path, SETTINGS)
    check_sum(path)
    return Section(title, listing=path.read_text(encoding="utf-8").partition("\n# sha256 ")[0])


def read_result(folder: Path) -> dict[str, Any]:
    """Read a run's ``result.json``; empty where there is none.

    Raises:
        Damaged: It is not what was written, or says nothing of networks.
    """
    path = folder / "result.json"
    if not path.exists():
        return {}
    result: dict[str, Any] = read(path, REMEDY)
    for name in ("networks", "score", "versions", "missing", "files", "exits"):
        if not isinstance(result.get(name, {}), dict):
            raise Damaged(f"{path} has {result[name]!r} under {name!r}, where a mapping was expected; {REMEDY}")
    if wrong := [name for name, network in result.get("networks", {}).items() if not isinstance(network, dict)]:
        raise Damaged(f"{path} says nothing of the network {wrong[0]!r}; {REMEDY}")
    return result


def read_score(result: Mapping[str, Any]) -> Score:
    """Return what judges in a ``result.json`` or ``results.json``."""
    if "score" not in result:
        return UNSAID
    try:
        return Score(**result["score"])
    except TypeError as error:
        raise Damaged(f"expected a score with name, unit and best, got {result['score']}: {REMEDY}") from error


def _size(count: int) -> str:
    return f"{quantity(count)}B" if count >= 1000 else f"{count} B"


def _number(score: Score, value: float | None) -> str:
    return UNKNOWN if value is None else score.number(value)
