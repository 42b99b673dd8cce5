"""What `limbeck train` and `limbeck distill` do once the method is made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from limbeck.cli.case import Case
from limbeck.cli.options import call, fresh_folder, training
from limbeck.cli.terminal import STOPPED, plain
from limbeck.engine.fit import Result, fit
from limbeck.report.run import console_table, read_result


def fit_and_tell(name: str, network: str, method: Any, case: Case, leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Train as a command says, and say what came of it."""
    if leaf.resume and leaf.run_dir is None:
        raise ValueError("--resume needs the folder of the run to go on with: --run-dir runs/NAME")
    run_dir = leaf.run_dir or fresh_folder(name, network, leaf.data)
    result = fit(method, case.data, run_dir=run_dir, seed=leaf.seed, name=name, settings=config, **call(training, leaf))
    rank_zero_only(_tell)(result, case, run_dir)
    return 0 if result.finished else STOPPED


def _tell(result: Result, case: Case, run_dir: str) -> None:
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    epochs = f"{len(result.history)} {'epoch' if len(result.history) == 1 else 'epochs'}"
    if not result.finished:
        console.print(f"stopped after {epochs}; the same command with --run-dir {plain(run_dir)} --resume goes on")
        return
    told = read_result(Path(run_dir))  # as on the page: costs are measured once
    Console(emoji=False, highlight=False).print(console_table(told, f"{case.title}, after {epochs}"))
    for file in (*(f"{name}.safetensors" for name in result.networks), "report.html"):
        console.print(plain(str(Path(run_dir) / file)))
