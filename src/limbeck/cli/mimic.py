from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from limbeck.cli.console import STOPPED
from limbeck.cli.options import call, fresh_folder, several
from limbeck.cli.parser import Commands, first_line
from limbeck.compression import (
    MANY,
    Measured,
    Training,
    Transfer,
    alone,
    compress,
    measured,
    student_of,
    teacher_of,
    transfer,
)
from limbeck.data import tabular
from limbeck.data.tabular import Tabular
from limbeck.files import write
from limbeck.report.table import milliseconds, percent, size


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


def transferred(transfer: Transfer = "munge", times: int = 25, swap: float = 0.5, variance: float = 5.0) -> None:
    """Say which rows the teacher answers.

    Args:
        transfer: The labelled rows; these and the unlabelled ones; random ones, a control; or MUNGE's.
        times: How many times as many as labelled rows, of random ones and MUNGE's; 25 is ours, the paper's most was 100.
        swap: MUNGE's probability that an attribute changes; 0.5 as in the R port.
        variance: MUNGE's local variance: the larger, the closer to the data; 5 as in the R port.
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
    run_dir = Path(leaf.run_dir or fresh_folder("mimic", leaf.student, Path(table.name).stem))
    teacher = teacher_of(leaf.teacher, table, training)
    rows = transfer(table, leaf.transfer, leaf.times, leaf.swap, leaf.variance, leaf.seed)
    torch.manual_seed(leaf.seed)
    student = student_of(leaf.student, table)
    result = compress(
        student, teacher, table, rows, training, run_dir=run_dir, resume=leaf.resume, settings=dict(config)
    )
    console = Console(highlight=False, soft_wrap=True)
    if not result.finished:
        console.print(f"stopped; the same command with --run-dir {run_dir} --resume goes on")
        return STOPPED
    updates = max(1, len(rows) // training.batch_size)
    plain = alone(lambda: student_of(leaf.student, table), table, updates, training)
    found = {
        "teacher": measured(teacher, table),
        "student, labels alone": measured(plain, table),
        "student, mimic": measured(result.student, table),
    }
    record = {
        "data": table.name,
        "teacher": leaf.teacher,
        "student": leaf.student,
        "rows": len(rows),
        **{name: asdict(of) for name, of in found.items()},
    }
    write(run_dir / "mimic.json", json.dumps(record, indent=1))
    said = (
        f"{'+'.join(several(leaf.teacher))} into {leaf.student}: {table.name}, {len(table.test):,} test rows; "
        f"{len(table.train):,} labelled rows, {len(rows):,} answered by the teacher"
    )
    Console().print(_table(said, found))
    console.print(Text(str(run_dir / "student.safetensors")))
    return 0


def _table(title: str, found: Mapping[str, Measured]) -> Table:
    """Return what each costs and reaches, beside how many times smaller and faster than the first it is."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("model", "size", "1 row", f"{MANY:,} rows", "RMSE", "accuracy"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    first = next(iter(found.values()))
    for name, of in found.items():
        pairs = ((first.bytes, of.bytes, size), (first.row_ms, of.row_ms, milliseconds))
        costs = [_beside(*pair) for pair in (*pairs, (first.many_ms, of.many_ms, milliseconds))]
        accuracy = "–" if of.accuracy is None else f"{percent(of.accuracy)} %"
        table.add_row(Text(name), *costs, f"{of.rmse:.4f}", accuracy)
    return table


def _beside(first: float, own: float, say: Any) -> str:
    """Return a cost, and which part of the teacher's it is."""
    return say(own) if own == first else f"{say(own)} (1/{first / own:.3g})"
