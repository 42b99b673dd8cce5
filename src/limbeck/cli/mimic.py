from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from limbeck.cli.console import STOPPED
from limbeck.cli.options import call, fresh_folder, several
from limbeck.cli.parser import Commands, first_line
from limbeck.data import tabular
from limbeck.data.tabular import Tabular
from limbeck.engine.run import Run
from limbeck.report.mimic import Compression, Model, console_table, write_compression
from limbeck.report.run import run_report
from limbeck.report.table import Role
from limbeck.verbs.mimic import (
    Training,
    Transfer,
    alone,
    compress,
    from_fewer,
    measured,
    student_of,
    teacher_of,
    transfer,
)

NAMES: Mapping[Transfer, str] = {
    "train": "soft labels",
    "unlabelled": "unlabelled rows too",
    "random": "random rows × {}",
    "munge": "MUNGE × {}",
}


def add(commands: Commands) -> None:
    """Add ``limbeck mimic``."""
    commands.add("mimic", _mimic, first_line(_mimic), models, load_table, transferred, schooling)


def models(teacher: list[str] | str = "random-forest", student: str = "mlp-32") -> None:
    """Name who teaches and who learns.

    Args:
        teacher: random-forest or gradient-boosting, scikit-learn's; package.module:factory, which makes a classifier or
            regressor of scikit-learn; or networks, as [mlp-128,mlp-128], for an ensemble. It learns from the labelled rows.
        student: A network, as mlp-32; the paper's had a layer of 32 to 256 units.
    """


def load_table(
    data: str,
    root: str | None = None,
    target: str | None = None,
    categorical: list[str] | str | None = None,
    drop: list[str] | str | None = None,
    regression: bool = False,
    labels: int | None = None,
    val_share: float = 0.1,
    test_share: float = 0.25,
    split_seed: int = 0,
) -> Tabular:
    """Load the table.

    Args:
        data: adult, covtype, or a CSV file with a header.
        root: The folder that holds the files.
        target: The column to predict; a file's last one by default.
        categorical: Columns that hold categories, as [sex,country].
        drop: Columns to leave out, as [id,name].
        regression: The target is a number.
        labels: Keep this many training labels; the other rows stay, without. 4000 as in the paper.
        val_share: Share of train held out for validation.
        test_share: Share of a CSV file held out for the test.
        split_seed: Of the choice of validation and test rows, and of labels.
    """
    return tabular.load(
        data,
        root,
        target=target,
        categorical=several(categorical),
        drop=several(drop),
        regression=regression,
        labels=labels,
        val_share=val_share,
        test_share=test_share,
        split_seed=split_seed,
    )


def transferred(
    transfer: Transfer = "munge",
    times: list[int] | int = 25,
    swap: float = 0.5,
    variance: float = 5.0,
    follow: bool = False,
) -> None:
    """Say which rows the teacher answers.

    Args:
        transfer: The labelled rows; these and the unlabelled ones; random ones, a control; or MUNGE's.
        times: How many times as many as labelled rows, of random ones and MUNGE's; 25 is ours, the paper's most was 100.
            Several, as [1,5,25], are a curve in the report; the run is that of the most.
        swap: MUNGE's probability that an attribute changes; 0.5 as in the R port.
        variance: MUNGE's local variance: the larger, the closer to the data; 5 as in the R port.
        follow: MUNGE looks for neighbours among the rows as edited so far, not the given ones: slower, and little else.
    """


def schooling(
    epochs: int = 20,
    lr: float = 1e-3,
    batch_size: int = 128,
    seed: int = 0,
    run_dir: str | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Training:
    """Say how to train; all defaults are ours.

    Args:
        epochs: Of the rows that the teacher answered.
        lr: Learning rate of Adam, constant.
        batch_size: Rows in a batch.
        seed: Of everything random but the splits.
        run_dir: The run's folder; by default one in runs/ that says what was run, and when.
        resume: Go on with the run in run_dir.
        progress: Show progress bars; by default in a terminal.
    """
    return Training(epochs, lr, batch_size, seed, progress)


def _mimic(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Compress a model of a table into a small network that mimics it, on rows made up for that."""
    table, training = call(load_table, leaf), call(schooling, leaf)
    if leaf.resume and leaf.run_dir is None:
        raise ValueError("--resume needs the folder of the run to go on with: --run-dir runs/NAME")
    names = _names(leaf.transfer, [leaf.times] if isinstance(leaf.times, int) else leaf.times)
    run_dir = Path(leaf.run_dir or fresh_folder("mimic", leaf.student, Path(table.name).stem))
    Run(run_dir).check(config, leaf.resume)
    make = partial(student_of, leaf.student, table)
    make()  # a name that is none is told before a teacher has learned
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    try:
        rows = transfer(table, leaf.transfer, max(names), leaf.swap, leaf.variance, leaf.follow, leaf.seed)
        teacher = teacher_of(leaf.teacher, table, training)
        torch.manual_seed(leaf.seed)
        result = compress(
            make(), teacher, table, rows, training, run_dir=run_dir, resume=leaf.resume, settings=dict(config)
        )
        models = tuple(_models(names, teacher, make, table, rows, result.student, training))
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --run-dir {run_dir} --resume goes on")
        return STOPPED
    said = Compression(table.name, "+".join(several(leaf.teacher)), leaf.student, len(table.test), models)
    write_compression(said, run_dir)
    Console(emoji=False).print(console_table(said))
    for file in (run_dir / "student.safetensors", run_report(run_dir)):
        console.print(Text(str(file)))
    return 0


def _names(kind: Transfer, sizes: Sequence[int]) -> dict[int, str]:
    """Name the student of each size, the smallest first."""
    if not sizes or (len(set(sizes)) > 1 and kind in ("train", "unlabelled")):
        raise ValueError(f"times: several sizes are those of made-up rows, --transfer munge or random, got {sizes}")
    if min(sizes) < 1:
        raise ValueError(f"times must be at least 1, got {min(sizes)}")
    return {times: NAMES[kind].format(times) for times in sorted(set(sizes))}


def _models(
    names: Mapping[int, str],
    teacher: nn.Module,
    make: Callable[[], nn.Module],
    table: Tabular,
    rows: Tensor,
    student: nn.Module,
    training: Training,
) -> Iterator[Model]:
    """Measure the teacher, the student, and beside it those that learned from less."""
    known, updates = table.train.rows, max(1, len(rows) // training.batch_size)

    def fewer(name: str, role: Role, some: Tensor) -> Model:
        return Model(name, role, len(some), measured(from_fewer(make, teacher, table, some, updates, training), table))

    yield Model("teacher", "teacher", len(known), measured(teacher, table))
    plain = alone(make, table, updates, training)
    yield Model("labels alone", "baseline", len(known), measured(plain, table))
    *sizes, most = names
    if sizes:
        yield fewer(NAMES["train"], "control", known)
    for times in sizes:
        yield fewer(names[times], "distilled", rows[: times * len(known)])
    yield Model(names[most], "distilled", len(rows), measured(student, table))
