from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.files import write
from limbeck.measure import Judgement
from limbeck.report.figures import strip
from limbeck.report.page import Plot, Section, Table, render
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

CAPTION = (
    "Left: a point is one seed, a bar the mean, the dashed line the plain student's mean. Right: mean difference to the "
    "plain student over the same seeds with its 95 % interval; an interval across the dashed line shows nothing."
)


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
    title: str = "Did distillation help?",
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
        details: What ``results.json`` holds beside the rows.
    """
    folder, candidates = Path(folder), comparison.candidates
    results = {"title": comparison.title, "note": comparison.note, "rows": records(candidates), **details}
    write(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write(folder / "table.csv", csv_table(candidates).encode())
    write(folder / "table.md", markdown_table(candidates))
    write(folder / "table.tex", latex_table(candidates))
    comparison_report([comparison], folder / "report.html", facts=facts)


def findings(comparison: Comparison) -> list[str]:
    """Say in plain words what each compared network shows, good or bad, and what the teacher costs beside the student."""
    judged = zip(comparison.candidates, judgements(comparison.candidates), strict=True)
    found = [_finding(candidate.name, judgement) for candidate, judgement in judged if judgement]
    by_role = {candidate.role: candidate for candidate in reversed(comparison.candidates)}
    teacher, student = by_role.get("teacher"), by_role.get("baseline")
    return [*found, _sizes(teacher, student)] if teacher and student else found


def _section(comparison: Comparison) -> Section:
    trained = [candidate for candidate in comparison.candidates if candidate.accuracies]
    figure = strip(trained, f"Accuracy by seed: {comparison.title}") if trained else ""
    return Section(
        comparison.title,
        [comparison.note] * bool(comparison.note) + findings(comparison),
        Table(HEADER, rows(comparison.candidates), LEGEND),
        [Plot(figure, CAPTION)] if figure else [],
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
