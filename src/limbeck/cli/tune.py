from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import (
    answers,
    call,
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

if TYPE_CHECKING:
    from torch import nn

    from limbeck.cli.case import Case


def add(commands: Commands) -> None:
    """Add ``limbeck tune``."""
    groups = student_of, possible_teacher_of, views, remembered, load_data, answers, hunt, training
    parser = commands.add("tune", _tune, COMMANDS["tune"], *groups)
    parser.add_argument(
        "method",
        type=str,
        help="METHOD or METHOD:OPTION=VALUE:OPTION=VALUE, the same for all trials; METHOD+METHOD is both at once",
    )
    parser.add_argument(
        "--search",
        type=str,
        nargs="+",
        action="append",
        required=True,
        help="OPTION=LOW:HIGH, OPTION=LOW:HIGH:log (even over orders of magnitude) or OPTION=VALUE,VALUE,...; "
        "layer=pairs and layers=pairs are the layers that pair by themselves",
    )


def hunt(trials: int = 20, seeds: int = 1, final_seeds: int = 3, at_once: int | None = None, jobs: int = 1) -> None:
    """Say how long to search.

    Args:
        trials: How many settings to try.
        seeds: Trainings of each.
        final_seeds: Trainings of the best, of the defaults and of the plain student at the end, on the test data.
        at_once: Trials of a round, which learn from the rounds before it and not from each other; by default as many as
            jobs.
        jobs: Processes that share the trials among themselves, each with a GPU in turn or its share of the cores.
    """


def _tune(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Search, and print what came of it."""
    import torch
    from rich.console import Console

    from limbeck.cli.case import case_of
    from limbeck.cli.jobs import share_out
    from limbeck.cli.networks import network, taught_by, with_networks
    from limbeck.cli.words import entries_of, search_of
    from limbeck.engine.assemble import parameters_of
    from limbeck.report.tuning import console_table, tuning_findings
    from limbeck.verbs.tune import tune

    if leaf.devices * leaf.nodes != 1:
        raise ValueError(f"a search trains on one device, got devices={leaf.devices}, nodes={leaf.nodes}")
    words = [
        word for said in leaf.search for word in ([said] if isinstance(said, str) else said)
    ]  # --config says one each
    run_dir, at_once = leaf.run_dir or fresh_folder("tune", leaf.student, leaf.data), leaf.at_once or leaf.jobs
    if leaf.jobs != 1:
        said = config["tune"] | {"run_dir": run_dir, "at_once": at_once, "search": words}
        return share_out("tune", said, leaf.jobs, leaf.devices)
    case = case_of(leaf)
    entry, *more = entries_of(leaf.method)
    if more:
        raise ValueError(f"{leaf.method}: one value for each option here; what is to be searched goes to --search")
    entry = with_networks(entry, case, leaf.seed)
    if entry.teacher is not None:
        raise ValueError(f"{leaf.method}: all trials have the same teacher, --teacher")
    torch.manual_seed(leaf.seed)  # NAME@random is the same teacher when the command goes on
    teacher = None if leaf.teacher is None else taught_by(leaf.teacher, case)
    left_out = ("resume", "loggers", "devices", "nodes", "strategy", "sync_batchnorm")
    settings = {name: value for name, value in call(training, leaf).items() if name not in left_out}
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    try:
        tuning = tune(
            entry.method,
            lambda: network(leaf.student, case),
            teacher,
            case.data,
            search_of(_with_pairs(words, network(leaf.student, case), teacher, case), parameters_of(entry.method)),
            task=case.task,
            options=entry.options,
            trials=leaf.trials,
            seeds=leaf.seeds,
            final_seeds=leaf.final_seeds,
            seed=leaf.seed,
            at_once=at_once,
            run_dir=run_dir,
            **settings,
        )
    except KeyboardInterrupt:
        console.print(f"stopped; the same command with --run-dir {plain(run_dir)} goes on")
        return STOPPED
    console.print(console_table(tuning))
    for sentence in tuning_findings(tuning):
        console.print(f"  {plain(sentence)}")
    console.print(
        f"\n{plain(_command(tuning.method, tuning.options, leaf))}\n{plain(str(Path(run_dir) / 'report.html'))}"
    )
    return 0


def _with_pairs(words: Sequence[str], student: nn.Module, teacher: nn.Module | None, case: Case) -> Iterator[str]:
    """Write out what pairs by itself: each pair of layers alone, and for several, all of them together."""
    from limbeck.core.layers import pairs

    for word in words:
        if word not in ("layer=pairs", "layers=pairs"):
            yield word
            continue
        if teacher is None:
            raise ValueError(f"{word} needs a teacher, whose layers pair with the student's")
        found = [list(pair) for pair in pairs(student, teacher, case.example, case.task)]
        choices: list[Any] = (
            [*found] if word.startswith("layer=") else [[pair] for pair in found] + [found] * (len(found) > 1)
        )
        yield f"{word.partition('=')[0]}={','.join(map(json.dumps, choices))}"


def _command(method: str, options: Mapping[str, Any], leaf: Namespace) -> str:
    """Return the command line that trains with these options."""
    from limbeck.engine.assemble import parameters_of

    parameters = parameters_of(method)
    words = ["limbeck", "distill", method, "--student", leaf.student]
    if "peers" in parameters and "peers" not in options:
        words += ["--peers", leaf.student]
    elif leaf.teacher is not None:
        words += ["--teacher", _word(leaf.teacher)]
    words += ["--new-head"] * leaf.new_head
    for group in (views, load_data, answers, training):
        for name, parameter in inspect.signature(group).parameters.items():
            if leaf[name] != parameter.default and name not in ("run_dir", "resume", "logger", "progress"):
                words += [f"--{name.replace('_', '-')}", _word(leaf[name])]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", _word(value)]
    return shlex.join(words)


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
