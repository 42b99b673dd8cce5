from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli.by_method import add_by_method, assembled
from limbeck.cli.options import caution, refuse_folder, training
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import waiting


def add(commands: Commands) -> None:
    """Add ``limbeck distill METHOD``."""
    add_by_method(commands, "distill", _distill, training, caution)


def _distill(method: str, leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Train as `limbeck.distill` does."""
    from limbeck.cli.case import case_of

    refuse_folder(leaf)
    case = case_of(leaf)

    from limbeck.cli.fitting import fit_and_tell
    from limbeck.verbs.distill import goes_on, look_first

    if leaf.check and not goes_on(leaf.run_dir, leaf.resume):
        with waiting("looking for mistakes before the training"):
            look_first(lambda: assembled(method, leaf, case), case.data, leaf.accelerator)
    return fit_and_tell(method, leaf.student, assembled(method, leaf, case), case, leaf, config)
