"""The page of one run: what was trained, how it went, and what came out; and that of several beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck.core.exhibits import Bars, Exhibit, Gallery, Matrix, Scatter
from limbeck.core.exhibits import Table as ExhibitedTable
from limbeck.core.files import Damaged, read, unsealed, write
from limbeck.core.task import Score
from limbeck.report.examples import FILE, read_exhibits
from limbeck.report.figures import Line, Point, curves, panels, shares, tradeoff
from limbeck.report.history import REMEDY, Row, check_sum, line, players, read_rows, score_columns, stages, terms
from limbeck.report.mimic import compression_section, read_compression
from limbeck.report.notebook import Told
from limbeck.report.page import Plot, Section, Table, linked, render
from limbeck.report.palette import BASELINE, TEACHER, Look, another
from limbeck.report.sections import exhibit_sections
from limbeck.report.table import UNSAID, at_start, milliseconds, quantity, size, told
from limbeck.report.warned import as_sentence, read_warned, warned_section

if TYPE_CHECKING:
    from rich.table import Table as RichTable

UNPAIRED = (
    "Single runs beside each other show nothing about their methods: seeds alone make scores differ. limbeck compare "
    "trains methods and the plain student over the same seeds, and says what that shows."
)
LEAVING = (
    "Each sample leaves at the first exit whose largest probability exceeds a threshold; along the line it rises from 0, "
    "everybody leaves at the first exit, to 1, nobody before the last. limbeck eval --macs or --accuracy sets it, on the "
    "validation data."
)
CAPTION = "MACs (multiply-accumulates) and latency are those of one sample; latency on one CPU thread."
SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))
COSTS = ("parameters", "macs", "bytes", "latency_ms")
UNKNOWN = "–"
SETTINGS = "remove it, and the page goes without"
FILES = {
    "result.json": "all that was measured",
    "metrics.csv": "one row an epoch",
    "config.yaml": "what was run",
    "inputs.json": "what it depends on",
    "train.log": "its log",
    "warnings.json": "what was warned of",
    "mimic.json": "the compression's numbers",
    "examples.npz": "the pictures' data",
}
"""The files of a run, beside weights and checkpoints, and what they are."""
PARTS = "The parts of the {who}'s loss, each before it is multiplied by its weight"
DOUBT = "ChanceWarning"
"""The kind of warnings that say a result is worth nothing."""
PLAIN = "plain"
"""The method of a network that learns from labels alone, and so is nobody's student."""


def run_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write a run's page, of the files that are there: a run that is not finished has one too.

    Args:
        folder: The run's.
        path: The file to write; by default ``report.html`` in the folder.

    Returns:
        The page.
    """
    folder = Path(folder)
    path = Path(path or folder / "report.html")
    result, rows = read_result(folder), read_rows(folder / "metrics.csv")
    score = read_score(result)
    compression = read_compression(folder)
    doubts, others = _warned(folder)
    sections = [
        warned_section(dict.fromkeys(others, "")),
        None if compression is None else compression_section(compression),
        _networks(result, score),
        *_exits(result),
        *_curves(rows, score, result),
        *exhibit_sections([_renamed(each, result) for each in read_exhibits(folder / FILE)], _looks(result)),
        _files(folder, path, result),
        _config(folder),
    ]
    title = " · ".join(str(result[name]) for name in ("method", "data") if result.get(name)) or folder.name
    said = [*doubts, *_sentences(result, score, rows)]
    return write(path, render(title, said, [section for section in sections if section is not None]))


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
        table = Table(("run", *_network_header(score)), rows, CAPTION) if rows else None
        curves_of = _runs_curves({name: histories[name] for name in own}, score)
        sections += [
            Section(f"What came out{by}", table=table, plots=_runs_tradeoff(own, score)),
            Section(f"How it went{by}", plots=curves_of),
        ]
    configs = [_config(folder, f"What was run as {name}") for name, folder in runs.items()]
    shown = [*sections, *(section for section in configs if section is not None)]
    return write(Path(path), render(f"{len(runs)} runs", [UNPAIRED], shown))


def called(result: Mapping[str, Any], name: str) -> str:
    """Return what a page calls a network: who learns from labels alone is no student, whatever its file is called."""
    alone = result.get("method") == PLAIN or (not result.get("method") and not result.get("teacher"))
    return "network" if alone and name == "student" else name


def _warned(folder: Path) -> tuple[list[str], list[str]]:
    """Return what makes a run worth nothing, and what else was warned of."""
    warned = read_warned(folder)
    doubts = [one.message for one in warned if one.kind == DOUBT]
    return [as_sentence(doubt) for doubt in doubts], [one.message for one in warned if one.kind != DOUBT]


def _sentences(result: Mapping[str, Any], score: Score, rows: Sequence[Row]) -> list[str]:
    sentences = []
    for name, network in result.get("networks", {}).items():
        for split, data in (("test", "test"), ("val", "validation")):
            if score.name in network.get(split, {}):
                reached = told(score, network[split][score.name])
                sentences.append(f"The {called(result, name)} reaches {reached} on the {data} data.")
                break
    for split, data in (("test", "test"), ("val", "validation")):
        taught = [of[split][score.name] for of in _teachers(result).values() if score.name in of.get(split, {})]
        if taught:
            sentences.append(f"Its teacher has {told(score, taught[0])} on the {data} data.")
            break
    sentences += [f"Without {what}: {reason}." for what, reason in result.get("missing", {}).items()]
    if result.get("missing"):
        sentences.append("The call that trained it tries what is missing again, with resume=True (--resume).")
    if not result.get("finished", False):
        sentences.append(f"The run is not finished: {_epochs(len(rows))} done, and --resume goes on with it.")
    elif sentences and "network" not in {called(result, name) for name in result.get("networks", {})}:
        sentences.append(
            "One run shows no gain: limbeck compare trains the plain student beside it, over several seeds."
        )
    return sentences


def _epochs(count: int) -> str:
    return "1 epoch is" if count == 1 else f"{count} epochs are"


def _networks(result: Mapping[str, Any], score: Score) -> Section | None:
    rows = _network_rows(result, score, others := _other_metrics(result, score))
    if not rows:
        return None
    facts = {"Seed": str(result.get("seed")), "Time": f"{result['seconds']:.1f} s"} if "seconds" in result else {}
    versions = {name: str(version) for name, version in result.get("versions", {}).items()}
    table = Table(_network_header(score, others), rows, CAPTION)
    return Section("What came out", table=table, facts=facts | versions)


def _exits(result: Mapping[str, Any]) -> list[Section]:
    """Accuracy over compute of a network with exits, and each exit as a point of its own."""
    sections = []
    for name, exits in result.get("exits", {}).items():
        points = [(point["macs"], point["accuracy"]) for point in exits["curve"]]
        alone = list(zip(exits["exit_macs"], exits["accuracies"], strict=True))
        scale, unit = next((scale for scale in SCALES if points[-1][0] >= scale[0]), SCALES[-1])
        lines = [
            Line(label, tuple(macs / scale for macs, _ in way), tuple(100 * right for _, right in way))
            for label, way in (("leaving when sure", points), ("one exit for all", alone))
        ]
        words = "Accuracy on the test data over multiply-accumulates a sample"
        plot = Plot(curves(lines, words, y_label="%", x_label=f"MACs, {unit}".rstrip(", ")), words)
        sections.append(Section(f"What leaving early saves: {name}", [LEAVING], plots=[plot]))
    return sections


def _network_header(score: Score, others: Sequence[str] = ()) -> tuple[str, ...]:
    """Name the columns of networks; ``others`` are metrics of the test data beside the score."""
    beside = (f"{name}, test" for name in others)
    return ("network", f"{score.name}, test", f"{score.name}, val", *beside, "parameters", "MACs", "size", "latency")


def _other_metrics(result: Mapping[str, Any], score: Score) -> list[str]:
    """Return what the task measures of the test data beside its score and the loss."""
    measured = [network.get("test", {}) for network in result.get("networks", {}).values()]
    return [name for name in dict.fromkeys(name for of in measured for name in of) if name not in (score.name, "loss")]


def _network_rows(result: Mapping[str, Any], score: Score, others: Sequence[str] = ()) -> list[tuple[str, ...]]:
    networks = {called(result, name): network for name, network in result.get("networks", {}).items()}
    return [
        (
            name,
            *(_number(score, network.get(split, {}).get(score.name)) for split in ("test", "val")),
            *(f"{network['test'][name]:.4f}" if name in network.get("test", {}) else UNKNOWN for name in others),
            *(
                show(network[cost]) if cost in network else UNKNOWN
                for cost, show in zip(COSTS, (quantity, quantity, size, milliseconds), strict=True)
            ),
        )
        for name, network in (*networks.items(), *_teachers(result).items())
    ]


def _teachers(result: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return who taught, beside what was measured; before the costs of teachers were kept there was one, and its score."""
    alone = {"teacher": {"val": result["teacher"]}} if result.get("teacher") else {}
    return dict(result.get("teachers") or alone) if result.get("networks") else {}


def run_told(result: Mapping[str, Any], rows: int, folder: Path | None = None) -> Told:
    """Return what is told of a training: what came out in a sentence, and the table.

    Args:
        result: What ``result.json`` holds, of a run without a folder too.
        rows: How many epochs are done.
        folder: The run's, whose page says more.
    """
    score = read_score(result)
    title = " · ".join(str(result[name]) for name in ("method", "data") if result.get(name)) or "Training"
    foot = f"More: {folder / 'report.html'}" if folder else ""
    said = _sentences(result, score, [{}] * rows)
    others = _other_metrics(result, score)
    return Told(title, said, _network_header(score, others), _network_rows(result, score, others), foot)


def console_table(result: Mapping[str, Any], title: str = "") -> RichTable:
    """Return what came out of a run as a table for `rich.print`: that of its page.

    Args:
        result: Of its ``result.json``.
        title: Of the table.
    """
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    table = RichTable(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    others = _other_metrics(result, score := read_score(result))
    for index, heading in enumerate(_network_header(score, others)):
        table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for cells in _network_rows(result, score, others):
        table.add_row(*map(Text, cells))
    return table


def _curves(rows: Sequence[Row], score: Score, result: Mapping[str, Any]) -> list[Section]:
    if not rows:
        return []
    marks, plots = stages(rows), []
    columns = score_columns(rows, score).items()
    reached = [line(rows, column, called(result, name), scale=score.scale) for name, column in columns]
    if drawn := [each for each in reached if each.x]:
        plots.append(_validation(drawn, score, marks))
    for player in players(rows):
        losses = [line(rows, f"train/{player}/{term}", term) for term in terms(rows, player)]
        if drawn := [each for each in losses if each.x]:
            who = called(result, player)
            plots.append(Plot(curves(drawn, f"losses of {who}", marks=marks), PARTS.format(who=who)))
    sections = [Section("How it went", plots=plots)]
    if weighted := _shares(rows, result):
        sections.append(
            Section(
                "What trained it",
                ["Each part's share of the loss, with its weight: what is small here teaches little."],
                plots=weighted,
            )
        )
    return sections


def _shares(rows: Sequence[Row], result: Mapping[str, Any]) -> list[Plot]:
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
                words = f"{called(result, player)}, stage {stage}"
                plots.append(Plot(shares(drawn, f"shares of the loss: {words}"), words))
    return plots


def _looks(result: Mapping[str, Any]) -> dict[str, Look]:
    shipped = list(result.get("networks", {}))[:1]
    return {"teacher": TEACHER, **{called(result, name): BASELINE for name in shipped}}


def _renamed(exhibit: Exhibit, result: Mapping[str, Any]) -> Exhibit:
    """Return an exhibit with what the page calls its networks."""
    if isinstance(exhibit, (Bars, Scatter)):
        return replace(exhibit, networks=tuple(called(result, name) for name in exhibit.networks))
    if isinstance(exhibit, (Gallery, ExhibitedTable)):
        return replace(exhibit, columns=tuple(called(result, name) for name in exhibit.columns))
    return replace(exhibit, network=called(result, exhibit.network)) if isinstance(exhibit, Matrix) else exhibit


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
        plots.append(Plot(panels(charts, "losses by term"), PARTS.format(who="network")))
    return plots


def _files(folder: Path, page: Path, result: Mapping[str, Any]) -> Section | None:
    """Return the links to all that a run left."""
    weights = {
        path.name: f"weights of the {called(result, path.stem)}" for path in sorted(folder.glob("*.safetensors"))
    }
    there = {name: what for name, what in (weights | FILES).items() if (folder / name).exists()}
    links = [
        linked(folder / name, page, f"{what}, {size((folder / name).stat().st_size)}") for name, what in there.items()
    ]
    if (folder / "checkpoints").is_dir():
        links.append(linked(folder / "checkpoints", page, "to go on from", "checkpoints/"))
    return Section("Files", files=links) if links else None


def _config(folder: Path, title: str = "What was run") -> Section | None:
    path = folder / "config.yaml"
    if not path.exists():
        return None
    read(path, SETTINGS)
    check_sum(path)
    return Section(title, listing=unsealed(path.read_text(encoding="utf-8")))


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


def _number(score: Score, value: float | None) -> str:
    return UNKNOWN if value is None else score.show(value)
