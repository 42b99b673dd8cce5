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
from limbeck.core.files import write
from limbeck.core.method import Method
from limbeck.data import Data
from limbeck.engine.fit import fit
from limbeck.engine.learner import ChanceWarning
from limbeck.engine.run import Run
from limbeck.methods import kd, plain
from limbeck.report.comparison import Comparison, comparison_report, opening, remarks
from limbeck.report.page import linked
from limbeck.report.table import console_table
from limbeck.verbs.compare import Entry, compare

TEACHER, STUDENT = "mlp-256-256", "mlp-32"
LABELS, BATCH_SIZE = 100, 128
FILES = {
    "student.safetensors": f"weights of {STUDENT}, by kd with {LABELS} labels",
    "teacher.safetensors": f"weights of {TEACHER}",
    "few-labels/report.html": "the first comparison, with all its pictures",
    "all-labels/report.html": "the second one",
}
"""What a demo leaves beside its page."""
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
        run_dir: Where the report, the networks and every training go. The same call goes on there, however a former one
            ended.

    Raises:
        ValueError: No seed or epoch; a folder that holds other runs, or a demo of other epochs.
        OSError: A folder that cannot be written to.
        KeyboardInterrupt: Ctrl-C, after a checkpoint.
    """
    for name, value in (("seeds", seeds), ("epochs", epochs)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    folder = _ready(Path(run_dir))
    began_before = (folder / "teacher").exists()
    started, console = time.perf_counter(), Console(emoji=False, highlight=False, soft_wrap=True)
    everything = datasets.load("digits", batch_size=BATCH_SIZE)
    few = datasets.load("digits", batch_size=BATCH_SIZE, labels=LABELS)

    def compared(name: str, entries: list[str | Entry], data: Data, title: str, note: str) -> Comparison:
        found = compare(
            entries,
            lambda: _network(STUDENT, data),
            teacher,
            data,
            epochs=epochs,
            seeds=seeds,
            clip=CLIP,
            run_dir=folder / name,
        )
        return replace(found, title=title, note=note)

    def trained(name: str, method: Method, data: Data) -> None:
        """Train what the comparisons do not, or read what is trained."""
        result = fit(method, data, epochs=epochs, clip=CLIP, progress=False, run_dir=folder / name, resume=True)
        if not result.finished or result.interrupted:  # a teacher that was half trained must not pass for one that was
            raise KeyboardInterrupt("stopped by the user")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ChanceWarning)  # the untrained teacher is meant
        teacher, untrained = (_network(TEACHER, everything, seed) for seed in (0, 1))
        trained("teacher", plain(teacher), everything)
        comparisons = [
            compared(
                "few-labels",
                ["kd", "fitnets", "ls", Entry("kd", name="kd, untrained teacher", teacher=untrained, control=True)],
                few,
                f"{LABELS} labels, {len(few.train.ids) - LABELS:,} more images without",
                f"The teacher, {TEACHER}, was trained on all {len(few.train.ids):,} labels. "
                f"The students, {STUDENT}, know {LABELS} of them.",
            ),
            compared(
                "all-labels",
                ["kd"],
                everything,
                f"All {len(few.train.ids):,} labels",
                "The same student with every label. Distillation need not help here, and can hurt.",
            ),
        ]
        student = _network(STUDENT, few, seed=0)  # the first of those compared, once more
        trained("student", kd(student, teacher), few)
    Run(folder).write_networks({"student": student, "teacher": teacher})
    facts = {
        "Command": f"limbeck demo --seeds {seeds} --epochs {epochs}",
        "Time": f"{time.perf_counter() - started:.0f} s on {torch.get_num_threads()} threads"
        + (", beside what was there from a former call" if began_before else ""),
        "Versions": f"torch {torch.__version__}, Python {sys.version.split()[0]}",
    }
    page = folder / "report.html"
    files = [linked(folder / name, page, what, name) for name, what in FILES.items()]
    report = comparison_report(comparisons, page, facts=facts, files=files)
    for comparison in comparisons:
        for sentence in opening(comparison):
            console.print(f"{comparison.title}: {sentence}")
        console.print(console_table(comparison.candidates))
        for sentence in remarks(comparison):
            console.print(f"  {sentence}")
    console.print(
        f"\n{facts['Time']}. Report: {report}\nStudent (kd, {LABELS} labels): {folder / 'student.safetensors'}"
    )
    return comparisons


def _ready(folder: Path) -> Path:
    """Return the folder, made and writable, before anything is trained.

    Raises:
        ValueError: It holds another run, or a comparison.
        OSError: It cannot be written to.
    """
    if Run(folder).exists or (folder / "results.json").exists():
        raise ValueError(
            f"{folder} holds a run that is no demo, whose files this one would replace: take another run_dir"
        )
    try:
        write(folder / ".writable", "").unlink()
    except OSError as error:
        raise type(error)(
            f"the demo keeps its report and networks in {folder}, which cannot be written to ({error.strerror or error}): "
            "take another folder, run_dir= (--run-dir)"
        ) from error
    return folder


def _network(name: str, data: Data, seed: int | None = None) -> nn.Module:
    if seed is not None:
        torch.manual_seed(seed)
    return zoo.network(name, data.outputs, data.shape)
