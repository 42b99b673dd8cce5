from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import seed_everything
from rich.console import Console

from limbeck import methods
from limbeck.cli.case import Case, case_of
from limbeck.cli.console import STOPPED, plain
from limbeck.cli.networks import network
from limbeck.cli.options import answers, call, fresh_folder, load_data, network_of, training
from limbeck.cli.parser import Commands, first_line
from limbeck.engine.fit import Result, fit
from limbeck.report.run import console_table, read_result
from limbeck.verbs.distill import goes_on, look_first


def add(commands: Commands) -> None:
    """Add ``limbeck train``."""
    commands.add("train", _train, first_line(_train), network_of, load_data, answers, training, caution)


def caution(check: bool = True) -> None:
    """Say whether to look first.

    Args:
        check: Look for mistakes before the training, which takes seconds; false trains nevertheless.
    """


def _train(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Train a network on the labels: a teacher, say."""
    case = case_of(leaf)
    seed_everything(leaf.seed, verbose=False)
    method = methods.plain(network(leaf.network, case), task=case.task)
    if leaf.check and not goes_on(leaf.run_dir, leaf.resume):
        look_first(lambda: method, case.data, leaf.accelerator)
    return fit_and_tell("plain", leaf.network, method, case, leaf, config)


def fit_and_tell(name: str, network: str, method: Any, case: Case, leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Train as a command says, and say what came of it."""
    if leaf.resume and leaf.run_dir is None:
        raise ValueError("--resume needs the folder of the run to go on with: --run-dir runs/NAME")
    run_dir = leaf.run_dir or fresh_folder(name, network, leaf.data)
    result = fit(method, case.data, run_dir=run_dir, seed=leaf.seed, name=name, settings=config, **call(training, leaf))
    _tell(result, case, run_dir)
    return 0 if result.finished else STOPPED


def _tell(result: Result, case: Case, run_dir: str) -> None:
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    if not result.finished:
        console.print(
            f"stopped after {len(result.history)} epochs; the same command with --run-dir {run_dir} --resume goes on"
        )
        return
    told, epochs = read_result(Path(run_dir)), len(result.history)
    title = f"{case.title}, after {epochs} {'epoch' if epochs == 1 else 'epochs'}"
    Console(emoji=False, highlight=False).print(console_table(told, title))  # as on the page: costs are measured once
    for file in (*(f"{name}.safetensors" for name in result.networks), "report.html"):
        console.print(plain(str(Path(run_dir) / file)))
