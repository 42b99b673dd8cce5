"""The main job in a minute and a half: a small network learns from a large one, beside the one that learns alone."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import nn

from limbeck import data as datasets
from limbeck import zoo
from limbeck.data import Data
from limbeck.engine.evaluate import evaluate
from limbeck.engine.fit import Trainable, fit
from limbeck.engine.learner import ChanceWarning
from limbeck.engine.run import Run
from limbeck.measure import paired
from limbeck.measure.cost import Cost, cost
from limbeck.methods import fitnets, kd, ls, plain
from limbeck.report.comparison import Comparison, comparison_report, findings
from limbeck.report.table import Candidate, Role, console_table

TEACHER, STUDENT = "mlp-256-256", "mlp-32"
LABELS, BATCH_SIZE = 100, 128
CLIP = 1.0  # FitNets' hint loss is a sum over 256 units: unclipped, at this learning rate, it destroys a student

Build = Callable[[nn.Module], Trainable]
"""Makes a method of a student."""


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
    started, console = time.perf_counter(), Console(highlight=False, soft_wrap=True)
    everything = datasets.load("digits", batch_size=BATCH_SIZE)
    few = datasets.load("digits", batch_size=BATCH_SIZE, labels=LABELS)
    with _bar(console) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", ChanceWarning)  # the untrained teacher is meant
        task = bar.add_task("teacher", total=1 + 7 * seeds)
        teacher = _network(TEACHER, everything, seed=0)
        fit(plain(teacher), everything, epochs=epochs, clip=CLIP, progress=False)
        bar.advance(task)
        known = Candidate(f"teacher {TEACHER}", "teacher", *_measure([teacher], everything))

        def train(name: str, data: Data, build: Build) -> list[nn.Module]:
            students = []
            for seed in range(seeds):
                bar.update(task, description=name)
                student = _network(STUDENT, data, seed)
                fit(build(student), data.with_seed(seed), epochs=epochs, clip=CLIP, seed=seed, progress=False)
                students.append(student)
                bar.advance(task)
            return students

        example = few.example()
        untrained = _network(TEACHER, few, seed=1)
        taught = partial(kd, teacher=teacher)
        distilled = train("kd, 100 labels", few, taught)
        comparisons = [
            Comparison(
                f"{LABELS} labels, {len(few.train.ids) - LABELS:,} more images without",
                f"The teacher was trained on all {len(few.train.ids):,} labels. The students know {LABELS} of them.",
                _candidates(
                    known,
                    few,
                    train("plain, 100 labels", few.labelled(), plain),
                    ("kd", "distilled", distilled),
                    ("fitnets", "distilled", train("fitnets", few, partial(fitnets, teacher=teacher, example=example))),
                    ("ls (label smoothing)", "control", train("ls", few.labelled(), ls)),
                    (
                        "kd, untrained teacher",
                        "control",
                        train("untrained teacher", few, partial(kd, teacher=untrained)),
                    ),
                ),
            ),
            Comparison(
                f"All {len(few.train.ids):,} labels",
                "The same student with every label. Distillation need not help here, and can hurt.",
                _candidates(
                    known,
                    everything,
                    train("plain, all labels", everything, plain),
                    ("kd", "distilled", train("kd, all labels", everything, taught)),
                ),
            ),
        ]
    Run(run_dir).write_networks({"student": distilled[0], "teacher": teacher})
    facts = {
        "Command": f"limbeck demo --seeds {seeds} --epochs {epochs}",
        "Time": f"{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads",
        "Versions": f"torch {torch.__version__}, Python {sys.version.split()[0]}",
    }
    report = comparison_report(comparisons, Path(run_dir) / "report.html", facts=facts)
    for comparison in comparisons:
        console.print(console_table(comparison.candidates, comparison.title))
        for sentence in findings(comparison):
            console.print(f"  {sentence}")
    console.print(
        f"\n{facts['Time']}. Report: {report}\nStudent (kd, {LABELS} labels): {Path(run_dir) / 'student.safetensors'}"
    )
    return comparisons


def _network(name: str, data: Data, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.network(name, data.num_classes, data.shape)


def _measure(nets: list[nn.Module], data: Data) -> tuple[Cost, tuple[float, ...]]:
    return cost(nets[0], data.example(1)), tuple(evaluate(net, data.test)["accuracy"] for net in nets)


def _candidates(
    teacher: Candidate, data: Data, alone: list[nn.Module], *others: tuple[str, Role, list[nn.Module]]
) -> tuple[Candidate, ...]:
    price, baseline = _measure(alone, data)
    found = [teacher, Candidate(f"student {STUDENT}, plain", "baseline", price, baseline)]
    for name, role, nets in others:
        price, accuracies = _measure(nets, data)
        found.append(Candidate(name, role, price, accuracies, paired(accuracies, baseline)))
    return tuple(found)


def _bar(console: Console) -> Progress:
    words = TextColumn("{task.description:>20}"), TextColumn("{task.completed}/{task.total}")
    return Progress(words[0], BarColumn(), words[1], TimeElapsedColumn(), console=console, transient=True)
