from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console
from rich.text import Text

from limbeck.cli import COMMANDS
from limbeck.cli.options import call, fresh_folder, several
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import STOPPED
from limbeck.data import tabular
from limbeck.data.tabular import Tabular
from limbeck.report.mimic import console_table
from limbeck.verbs.mimic import Training, Transfer, compress


def add(commands: Commands) -> None:
    """Add ``limbeck mimic``."""
    commands.add("mimic", _mimic, COMMANDS["mimic"], models, load_table, transferred, schooling)


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
        labels: Keep this many labels in all, those of the validation rows among them; the other rows stay, without. The
            paper trains on 4000.
        val_share: Share of the labelled rows held out for validation, which says after which epoch each network stops.
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
        epochs: Of the rows that the teacher answered, at most: networks keep the one with the least validation loss.
        lr: Learning rate of Adam, constant.
        batch_size: Rows in a batch.
        seed: Of everything random but the splits.
        run_dir: The run's folder; by default one in runs/ that says what was run, and when.
        resume: Go on with the run in run_dir.
        progress: Show progress bars; by default in a terminal.
    """
    return Training(epochs, lr, batch_size, seed, progress)


def _mimic(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Compress, and print what came of it."""
    table, training = call(load_table, leaf), call(schooling, leaf)
    if leaf.resume and leaf.run_dir is None:
        raise ValueError("--resume needs the folder of the run to go on with: --run-dir runs/NAME")
    run_dir = Path(leaf.run_dir or fresh_folder("mimic", leaf.student, Path(table.name).stem))
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    try:
        found = compress(
            table,
            leaf.teacher,
            leaf.student,
            rows=leaf.transfer,
            times=leaf.times,
            swap=leaf.swap,
            variance=leaf.variance,
            follow=leaf.follow,
            training=training,
            run_dir=run_dir,
            resume=leaf.resume,
            settings=config,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --run-dir {run_dir} --resume goes on")
        return STOPPED
    Console(emoji=False).print(console_table(found.compression))
    for file in (run_dir / "student.safetensors", run_dir / "report.html"):
        console.print(Text(str(file)))
    return 0
