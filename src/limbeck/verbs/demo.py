"""The main job in a minute and a half: a small network learns from a large one, beside the one that learns alone."""

from __future__ import annotations

import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from limbeck import data as datasets
from limbeck import zoo
from limbeck.data import Data
from limbeck.engine.fit import fit
from limbeck.engine.learner import ChanceWarning
from limbeck.engine.run import Run
from limbeck.methods import kd, plain
from limbeck.report.comparison import Comparison, comparison_report, findings
from limbeck.report.table import console_table
from limbeck.verbs.compare import Entry, compare

TEACHER, STUDENT = "mlp-256-256", "mlp-32"
LABELS, BATCH_SIZE = 100, 128
CLIP = 1.0  # FitNets' hint loss is a sum over 256 units: unclipped, at this learning rate, it destroys a student


def demo(seeds: int = 5, epochs: int = 40, run_dir: str = "runs/demo") -> list[Comparison]:
    """Distil a teacher of 2x256 units into a student of 32 on scikit-learn's real digits, twice.

    First where one would distil: the teacher knows all labels, but only 100 are at hand now, and many images without.
    Then where one need not: with all labels there is little left to learn, and a student this small underfits.
    Beside each distilled student stand the same one trained on the labels alone, and as controls label smoothing and an
    untrained teacher.

    Args:
        seeds: How many times each student is trained, each time from other weights; the same ones for all methods.
        epochs: Of every student.
        run_dir: Where the report and the networks go.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    started, console = time.perf_counter(), Console(emoji=False, highlight=False, soft_wrap=True)
    everything = datasets.load("digits", batch_size=BATCH_SIZE)
    few = datasets.load("digits", batch_size=BATCH_SIZE, labels=LABELS)

    def trained(entries: list[str | Entry], data: Data, title: str, note: str) -> Comparison:
        compared = compare(
            entries,
            lambda: _network(STUDENT, data),
            teacher,
            data,
            epochs=epochs,
            seeds=seeds,
            clip=CLIP,
        )
        return replace(compared, title=title, note=note)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChanceWarning)  # the untrained teacher is meant
        teacher, untrained = (_network(TEACHER, everything, seed) for seed in (0, 1))
        fit(plain(teacher), everything, epochs=epochs, clip=CLIP, progress=False)
        comparisons = [
            trained(
                ["kd", "fitnets", "ls", Entry("kd", name="kd, untrained teacher", teacher=untrained, control=True)],
                few,
                f"{LABELS} labels, {len(few.train.ids) - LABELS:,} more images without",
                f"The teacher, {TEACHER}, was trained on all {len(few.train.ids):,} labels. "
                f"The students, {STUDENT}, know {LABELS} of them.",
            ),
            trained(
                ["kd"],
                everything,
                f"All {len(few.train.ids):,} labels",
                "The same student with every label. Distillation need not help here, and can hurt.",
            ),
        ]
        student = _network(STUDENT, few, seed=0)  # the first of those compared, once more
        fit(kd(student, teacher), few, epochs=epochs, clip=CLIP, progress=False)
    Run(run_dir).write_networks({"student": student, "teacher": teacher})
    facts = {
        "Command": f"limbeck demo --seeds {seeds} --epochs {epochs}",
        "Time": f"{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads",
        "Versions": f"torch {torch.__version__}, Python {sys.version.split()[0]}",
    }
    report = comparison_report(comparisons, Path(run_dir) / "report.html", facts=facts)
    for comparison in comparisons:
        console.print(console_table(comparison.candidates, comparison.title))
        console.print(f"  {comparison.note}")
        for sentence in findings(comparison):
            console.print(f"  {sentence}")
    console.print(
        f"\n{facts['Time']}. Report: {report}\nStudent (kd, {LABELS} labels): {Path(run_dir) / 'student.safetensors'}"
    )
    return comparisons


def _network(name: str, data: Data, seed: int | None = None) -> nn.Module:
    if seed is not None:
        torch.manual_seed(seed)
    return zoo.network(name, data.outputs, data.shape)
