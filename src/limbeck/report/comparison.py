from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from limbeck.files import write
from limbeck.measure import Cost, Judgement, paired
from limbeck.report.examples import FILE, Examples, read_examples
from limbeck.report.figures import Line, Point, curves, panels, strip, tradeoff
from limbeck.report.history import Row, accuracy_columns, over_seeds, players, read_rows, terms
from limbeck.report.page import Plot, Section, Table, render
from limbeck.report.palette import Look, looks
from limbeck.report.run import read_result
from limbeck.report.sections import changes_section, example_sections
from limbeck.report.table import (
    HEADER,
    LEGEND,
    Candidate,
    accuracy,
    csv_table,
    judgements,
    latex_table,
    markdown_table,
    points,
    records,
    rows,
)

TITLE = "Did distillation help?"
PICTURED = 2
"""Students whose answers are shown beside the plain one's: those that are best by their mean."""
RESULTS = "results.json"
CAPTION = (
    "Left: a point is one seed, a bar the mean, the dashed line the plain student's mean. Right: mean difference to the "
    "plain student over the same seeds with its 95 % interval; an interval across the dashed line shows nothing."
)
COSTS = (
    "Accuracy on the test data over parameters and over latency (one sample, one CPU thread), mean and standard deviation "
    "over seeds. Networks of one size stand a little apart."
)
CURVES = "Accuracy on the validation data, mean over seeds; the band is one standard deviation."
TERMS = "Each term of the loss, raw, mean over seeds; the band is one standard deviation."


@dataclass(frozen=True)
class Comparison:
    """Networks compared under one condition.

    Args:
        title: The condition, as "100 labels, all images".
        note: What the reader has to know about it; may be empty.
        candidates: In the order they are shown.
    """

    title: str
    note: str
    candidates: tuple[Candidate, ...]


def comparison_report(
    comparisons: Sequence[Comparison],
    path: str | Path,
    *,
    title: str = TITLE,
    sentences: Sequence[str] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write a page with a section for each condition: the verdict in words, the table, every seed.

    Args:
        comparisons: The conditions.
        path: The file to write.
        title: Of the page.
        sentences: What it says first.
        facts: What was run: command, seeds, time, versions.

    Returns:
        ``path``.
    """
    sections = [_section(comparison) for comparison in comparisons]
    if facts:
        sections.append(Section("What was run", facts=facts))
    return write(Path(path), render(title, sentences, sections))


def write_comparison(
    comparison: Comparison, folder: str | Path, *, facts: Mapping[str, str] | None = None, details: Mapping[str, Any]
) -> None:
    """Write a comparison as ``results.json``, ``table.csv``, ``table.md``, ``table.tex`` and ``report.html``.

    Args:
        comparison: What to write.
        folder: Where.
        facts: What the page says was run.
        details: What ``results.json`` holds beside the rows; the page reads ``epochs``, ``seconds`` (of each run) and
            ``folders`` of them, each by the name of its candidate.
    """
    folder, candidates = Path(folder), comparison.candidates
    costs = [{"cost": asdict(candidate.cost)} for candidate in candidates]
    results = {
        "title": comparison.title,
        "note": comparison.note,
        "facts": dict(facts or {}),
        "rows": [record | cost for record, cost in zip(records(candidates), costs, strict=True)],
        **details,
    }
    write(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write(folder / "table.csv", csv_table(candidates).encode())
    write(folder / "table.md", markdown_table(candidates))
    write(folder / "table.tex", latex_table(candidates))
    redraw_comparison(folder)


def redraw_comparison(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a comparison, of the files in its folder.

    Args:
        folder: The comparison's, with ``results.json``.
        path: The file to write; by default ``report.html`` in the folder.

    Returns:
        The page.
    """
    folder = Path(folder)
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    comparison = _comparison(results)
    runs = _Runs.find(folder, comparison.candidates, results.get("folders", {}))
    sections = [
        _section(comparison),
        _learning(runs),
        *example_sections(runs.examples, runs.looks),
        _confusions(runs),
        _what_was_run(runs, results),
    ]
    page = render(TITLE, [], [section for section in sections if section is not None])
    return write(Path(path or folder / "report.html"), page)


def pictured(candidates: Sequence[Candidate]) -> list[str]:
    """Return whose answers a page shows beside the teacher's: the plain student, and the two best others by their mean.

    Controls are among them only where nothing else is compared.
    """
    baseline = [candidate.name for candidate in candidates if candidate.role == "baseline"]
    compared = [candidate for candidate in candidates if candidate.paired and candidate.accuracies]
    distilled = [candidate for candidate in compared if candidate.role == "distilled"] or compared
    best = sorted(distilled, key=lambda candidate: -statistics.fmean(candidate.accuracies))[:PICTURED]
    return [*baseline, *(candidate.name for candidate in candidates if candidate in best)]


def findings(comparison: Comparison) -> list[str]:
    """Say in plain words what each compared network shows, good or bad, and what the teacher costs beside the student."""
    judged = zip(comparison.candidates, judgements(comparison.candidates), strict=True)
    found = [_finding(candidate.name, judgement) for candidate, judgement in judged if judgement]
    by_role = {candidate.role: candidate for candidate in reversed(comparison.candidates)}
    teacher, student = by_role.get("teacher"), by_role.get("baseline")
    return [*found, _sizes(teacher, student)] if teacher and student else found


@dataclass(frozen=True)
class _Runs:
    """The files of a comparison: each candidate's runs by seed, and how it is drawn."""

    candidates: tuple[Candidate, ...]
    folders: Mapping[str, Sequence[Path]]
    looks: Mapping[str, Look]
    examples: Examples | None

    @classmethod
    def find(cls, folder: Path, candidates: Sequence[Candidate], folders: Mapping[str, str]) -> _Runs:
        found = {
            candidate.name: [
                folder / folders[candidate.name] / f"seed-{seed}" for seed in range(len(candidate.accuracies))
            ]
            for candidate in candidates
            if candidate.name in folders
        }
        drawn = looks({candidate.name: candidate.role for candidate in candidates})
        return cls(tuple(candidates), found, drawn, read_examples(folder / FILE))

    def histories(self) -> dict[str, list[list[Row]]]:
        return {name: [read_rows(run / "metrics.csv") for run in of] for name, of in self.folders.items()}


def _comparison(results: Mapping[str, Any]) -> Comparison:
    rows = results["rows"]
    baseline = next((tuple(row["accuracies"]) for row in rows if row["role"] == "baseline"), ())
    candidates = [
        Candidate(
            row["name"],
            row["role"],
            Cost(**{field.name: row["cost"][field.name] for field in fields(Cost)}),
            tuple(row["accuracies"]),
            paired(row["accuracies"], baseline) if row["role"] in ("distilled", "control") else None,
        )
        for row in rows
    ]
    return Comparison(results["title"], results["note"], tuple(candidates))


def _section(comparison: Comparison) -> Section:
    trained = [candidate for candidate in comparison.candidates if candidate.accuracies]
    plots = []
    if trained:
        plots.append(Plot(strip(trained, f"Accuracy by seed: {comparison.title}"), CAPTION))
    if costly := [each for each in trained if each.cost.parameters and each.cost.latency_ms]:
        plots.append(Plot(_tradeoff(costly, f"Accuracy over cost: {comparison.title}"), COSTS))
    return Section(
        comparison.title,
        [comparison.note] * bool(comparison.note) + findings(comparison),
        Table(HEADER, rows(comparison.candidates), LEGEND),
        plots,
    )


def _tradeoff(candidates: Sequence[Candidate], label: str) -> str:
    drawn = looks({candidate.name: candidate.role for candidate in candidates})
    return tradeoff(
        [
            Point(
                each.name,
                {"parameters": each.cost.parameters, "latency, ms": each.cost.latency_ms},
                each.accuracies,
                drawn[each.name],
            )
            for each in candidates
        ],
        label,
    )


def _learning(runs: _Runs) -> Section | None:
    accuracies: list[Line] = []
    charts: dict[str, list[Line]] = {}
    for name, histories in runs.histories().items():
        first = next((rows for rows in histories if rows), [])
        for column in list(accuracy_columns(first).values())[:1]:
            accuracies.append(over_seeds(histories, column, name, runs.looks[name], scale=100))
        for player in players(first):
            for term in terms(first, player):
                chart = term if player == players(first)[0] else f"{player}: {term}"
                column = f"train/{player}/{term}"
                charts.setdefault(chart, []).append(over_seeds(histories, column, name, runs.looks[name]))
    plots = []
    if drawn := [each for each in accuracies if each.x]:
        plots.append(Plot(curves(drawn, "validation accuracy over epochs", y_label="%"), CURVES))
    if kept := {chart: known for chart, lines in charts.items() if (known := [each for each in lines if each.x])}:
        plots.append(Plot(panels(kept, "losses over epochs, by term"), TERMS))
    return Section("How they learnt", plots=plots) if plots else None


def _confusions(runs: _Runs) -> Section | None:
    """Compare the pictured students by their mean tables, over the seeds of which all have one."""
    found = {
        name: [read_examples(run / FILE) for run in runs.folders.get(name, ())] for name in pictured(runs.candidates)
    }
    seeds = [
        [each.confusion for each in of if each is not None and each.confusion is not None]
        for of in zip(*found.values(), strict=True)
    ]
    complete = [tables for tables in seeds if len(tables) == len(found)]
    if len(found) < 2 or not complete:
        return None
    means = dict(zip(found, np.mean(np.array(complete, dtype=np.float64), axis=0), strict=True))
    classes = next(each.classes for of in found.values() for each in of if each is not None)
    plain, *others = found
    return changes_section(means[plain], {name: means[name] for name in others}, classes, len(complete))


def _what_was_run(runs: _Runs, results: Mapping[str, Any]) -> Section:
    epochs, seconds = results.get("epochs", {}), results.get("seconds", {})
    lines = [
        (name, str(epochs.get(name, "–")), str(len(of)), f"{statistics.fmean(of):.1f} s")
        for name, of in seconds.items()
        if of
    ]
    configs = [run[0] / "config.yaml" for run in runs.folders.values() if run]
    texts = [f"# {path.parent.parent.name}\n{path.read_text(encoding='utf-8')}" for path in configs if path.exists()]
    known = [read_result(of[0]).get("versions", {}) for of in runs.folders.values() if of]
    versions = ", ".join(f"{name} {version}" for name, version in (known[0] if known else {}).items())
    return Section(
        "What was run",
        table=Table(("network", "epochs", "seeds", "time of a run"), lines) if lines else None,
        facts={**results.get("facts", {}), "Trained with": versions} if versions else results.get("facts", {}),
        listing="\n".join(texts),
    )


def _finding(name: str, judgement: Judgement) -> str:
    pair = judgement.pair
    if pair.n == 1:
        return (
            f"{name}: {points(pair.difference)} points against the plain student in a single seed, which shows nothing."
        )
    evidence = f"{points(pair.difference)} points against the plain student over {pair.n} seeds"
    if math.isnan(pair.low):
        return f"{name}: {evidence}, the same in each; a test set too coarse to see how seeds vary shows nothing."
    interval = f"95 % interval {points(pair.low)} to {points(pair.high)}"
    return f"{name}: {judgement.words}. {evidence}, {interval}."


def _sizes(teacher: Candidate, student: Candidate) -> str:
    parameters = teacher.cost.parameters / max(1, student.cost.parameters)
    macs = teacher.cost.macs / max(1, student.cost.macs)
    return (
        f"The teacher reaches {accuracy(teacher.accuracies)} % with {parameters:.3g} times the student's "
        f"parameters and {macs:.3g} times its MACs."
    )
