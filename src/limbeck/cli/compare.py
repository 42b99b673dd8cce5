from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import (
    answers,
    call,
    caution,
    fresh_folder,
    load_data,
    possible_teacher_of,
    remembered,
    student_of,
    training,
    views,
)
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import STOPPED, plain


def add(commands: Commands) -> None:
    """Add ``limbeck compare``."""
    groups = student_of, possible_teacher_of, views, remembered, load_data, answers, contest, training, caution
    parser = commands.add("compare", _compare, COMMANDS["compare"], *groups)
    parser.add_argument(
        "methods",
        type=str,
        nargs="+",
        help="each METHOD or METHOD:OPTION=VALUE,VALUE:OPTION=VALUE; METHOD+METHOD:OPTION=VALUE is both at once; "
        "assistants=NAME,[NAME,NAME], peers=NAME and teacher=NAME@FILE are networks",
    )


def contest(
    seeds: int = 3,
    decide: bool = False,
    most: int | None = None,
    smallest: float | None = None,
    match: Literal["epochs", "compute"] = "epochs",
    jobs: int = 1,
) -> None:
    """Say what is fair, and what is to be told.

    Args:
        seeds: How many, from 0 on, the same for all methods; with --decide those before the first look.
        decide: Add seeds to the methods that are not told yet, and to them alone; all looks together are wrong as seldom as
            one.
        most: How many seeds a method may have with --decide; 12 by default.
        smallest: The smallest difference that matters, as the table shows it: with 0.3, a method may also be told to make
            no difference larger than 0.3 points.
        match: What is equal: the epochs, or about the time of a run.
        jobs: Processes that share the runs among themselves, each with a GPU in turn or its share of the cores.
    """


def _compare(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Compare, in this process or in several."""
    import torch
    from rich.console import Console

    from limbeck.cli.case import case_of
    from limbeck.cli.jobs import share_out
    from limbeck.cli.networks import network, taught_by, with_networks
    from limbeck.cli.words import entries_of
    from limbeck.report.comparison import opening, remarks
    from limbeck.report.table import console_table
    from limbeck.verbs.compare import compare

    run_dir = leaf.run_dir or fresh_folder("compare", leaf.student, leaf.data)
    if leaf.jobs != 1:
        return share_out("compare", config["compare"] | {"run_dir": run_dir}, leaf.jobs, leaf.devices * leaf.nodes)
    case = case_of(leaf)
    entries = [with_networks(entry, case, leaf.seed) for words in leaf.methods for entry in entries_of(words)]
    torch.manual_seed(leaf.seed)  # NAME@random is the same teacher in every process, and when the command goes on
    teacher = None if leaf.teacher is None else taught_by(leaf.teacher, case)
    settings = {name: value for name, value in call(training, leaf).items() if name not in ("resume", "loggers")}
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    try:
        comparison = compare(
            entries,
            lambda: network(leaf.student, case),
            teacher,
            case.data,
            task=case.task,
            seeds=leaf.seeds,
            decide=leaf.decide,
            most=leaf.most,
            smallest=leaf.smallest,
            match=leaf.match,
            run_dir=run_dir,
            check=leaf.check,
            **settings,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --run-dir {plain(run_dir)} goes on")
        return STOPPED
    for sentence in opening(comparison):
        console.print(plain(sentence))
    console.print(console_table(comparison.candidates, comparison.title))
    for sentence in remarks(comparison):
        console.print(f"  {plain(sentence)}")
    console.print(plain(str(Path(run_dir) / "report.html")))
    return 0
