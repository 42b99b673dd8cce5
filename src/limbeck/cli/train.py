from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import answers, caution, load_data, network_of, refuse_folder, training
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import waiting


def add(commands: Commands) -> None:
    """Add ``limbeck train``."""
    commands.add("train", _train, COMMANDS["train"], network_of, load_data, answers, training, caution)


def _train(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Train on the labels as `limbeck.fit` does."""
    from limbeck.cli.case import case_of

    refuse_folder(leaf)
    case = case_of(leaf)

    from lightning import seed_everything

    from limbeck import methods
    from limbeck.cli.fitting import fit_and_tell
    from limbeck.cli.networks import network
    from limbeck.verbs.distill import goes_on, look_first

    seed_everything(leaf.seed, verbose=False)
    method = methods.plain(network(leaf.network, case), task=case.task)
    if leaf.check and not goes_on(leaf.run_dir, leaf.resume):
        with waiting("looking for mistakes before the training"):
            look_first(lambda: method, case.data, leaf.accelerator)
    return fit_and_tell("plain", leaf.network, method, case, leaf, config)
