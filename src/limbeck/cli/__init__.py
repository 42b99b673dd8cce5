"""The command line, made from the signatures and docstrings of what it calls: a file a command, each with its ``add``."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException

from limbeck.cli import (
    check,
    compare,
    demo,
    distill,
    evaluate,
    export,
    initialize,
    layers,
    listing,
    mimic,
    report,
    table,
    train,
    tune,
)
from limbeck.cli.console import STOPPED, complain, warn
from limbeck.cli.parser import Commands, Parser, underscored
from limbeck.core.quiet import listen

MENDABLE = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError, MisconfigurationException)
"""What is raised for input that cannot work: its message is all that the user needs."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, or 130 after Ctrl-C."""
    # --run-dir is --run_dir: signatures have underscores, command lines dashes
    words = [underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    config_alone = len(words) <= 2 and any(word.startswith("--config") for word in words)  # the file names the command
    warnings.showwarning = warn
    try:
        listen()
        parser, commands = build(_named_in(words[-1]) if config_alone else words)
        config = parser.parse_args(words)
        does, leaf = commands.find(config)
        return does(leaf, yaml.safe_load(parser.dump(config, skip_validation=True)))
    except KeyboardInterrupt:
        return STOPPED
    except MENDABLE as error:
        if os.environ.get("LIMBECK_TRACEBACK"):
            raise
        complain(str(error).strip() or type(error).__name__)
        return 2


def _named_in(config: str) -> list[str]:
    """Return the words of the command in a file; none where it cannot be read, which the parser complains of."""
    path = Path(config.rpartition("=")[2])
    words: list[str] = []
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return words
    while isinstance(said, dict) and len(said) == 1:
        ((word, said),) = said.items()
        words.append(str(word))
    return words


def build(typed: Sequence[str] = ()) -> tuple[Parser, Commands]:
    """Make the parser, and the commands by their words; `Commands` says what ``typed`` is for."""
    parser = Parser(prog="limbeck", description="Train a small network to carry what a large one knows.")
    parser.add_argument("--config", action="config", help="a config.yaml of a run, to run the same again")
    commands = Commands(parser, typed)
    training = (demo, initialize, train, distill, mimic, check, compare, tune)
    trained = (evaluate, table, export, report, layers, listing)
    for command in (*training, *trained):  # as --help lists them
        command.add(commands)
    return parser, commands
