"""The command line, made from the signatures and docstrings of what it calls: a file a command, each with its ``add``.

A command's file is imported when its word was typed, and what takes seconds, as Lightning and the data sets, only when the
command runs: `limbeck --help` needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from limbeck.cli.complaints import did_you_mean
from limbeck.cli.parser import Commands, Parser, underscored
from limbeck.cli.terminal import STOPPED, complain, waiting, warn
from limbeck.core.heard import listening
from limbeck.core.quiet import listen

COMMANDS = {
    "demo": "Watch a small network learn from a large one, on real digits, in a minute and a half.",
    "initialize": "Begin a student with the weights of a deeper or wider teacher of its family; write them to a file.",
    "cache": "Ask a teacher of all training samples once, and keep what it says, so that no training need run it.",
    "train": "Train a network on the labels: a teacher, say.",
    "distill": "Train a student by a method.",
    "mimic": "Compress a model of a table into a small network that mimics it, on rows made up for that.",
    "check": "Look for mistakes in a set-up before it is trained; exit code 1 where there are any.",
    "compare": "Train a student by several methods, and by none, over paired seeds; say what that shows.",
    "tune": "Search a method's options on the validation data, then compare the best with the defaults on the test data.",
    "eval": "Measure a network on the test data, alone or beside its teacher.",
    "table": "Show what students save beside their teacher: speed-up, compression, layers, multiplications, score.",
    "export": "Write a network as files that ship, each compared with it on the test data.",
    "report": "Draw the page of a run, a comparison or a search anew, or put several runs beside each other.",
    "layers": "Show a network's layers, or which of the student's belongs to which of the teacher's.",
    "list": "List methods, networks, data sets or tasks.",
    "cite": "Print a method's BibTeX entry.",
}
"""The commands' words, each with its line of help, as `limbeck --help` lists them."""
FILES = {"eval": "evaluate", "list": "listing"}
"""Whose files are not called as they are."""

MENDABLE = (ValueError, TypeError, OSError, ArithmeticError, RuntimeError, ImportError)
"""What is raised for input that cannot work: its message is all that the user needs."""

NO_COMMAND = (
    ". Comparisons, searches and calls from Python leave such files, which no command reads: take the config.yaml of a "
    "`limbeck train` or `limbeck distill`, or write the command anew"
)
"""What is to be done with a configuration that is none of a command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code: 0, 2 for what the user can mend, or 130 after Ctrl-C."""
    # --run-dir is --run_dir: signatures have underscores, command lines dashes
    words = [underscored(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    warnings.showwarning = warn
    try:
        listen()
        words = _with_config([*words[1:], "--help"] if words[:1] == ["help"] else words)
        parser, commands = build(words)
        config = parser.parse_args(words)
        does, leaf = commands.find(config)
        with listening():
            return does(leaf, yaml.safe_load(parser.dump(config, skip_validation=True)))
    except KeyboardInterrupt:
        return STOPPED
    except Exception as error:
        if os.environ.get("LIMBECK_TRACEBACK") or not isinstance(error, _mendable()):
            raise
        complain(str(error).strip() or type(error).__name__)
        return 2


def _mendable() -> tuple[type[Exception], ...]:
    if "lightning" not in sys.modules:  # then it has raised nothing
        return MENDABLE
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    return (*MENDABLE, MisconfigurationException)


def _with_config(words: Sequence[str]) -> list[str]:
    """Put ``--config`` first, as the parser wants it, and after it its command, which nobody need write.

    Raises:
        ValueError: The configuration is none, or one of another command.
    """
    config, rest = _config_of(words)
    if config is None:
        return list(words)
    named = _named_in(config)
    typed = [*takewhile(lambda word: not word.startswith("-"), rest)][: len(named)]
    if typed != named[: len(typed)]:
        raise ValueError(
            f"--config: {_called(config)} is of `limbeck {' '.join(named)}`, and not of `limbeck {' '.join(typed)}`: leave "
            f"the command out, as `limbeck --config FILE --run-dir NEW`, or --config"
        )
    return ["--config", config, *named, *rest[len(typed) :]]


def _config_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return what follows ``--config``, and the other words; None where there is nothing to be had."""
    for place, word in enumerate(words):
        if word.startswith("--config="):
            return word.partition("=")[2], [*words[:place], *words[place + 1 :]]
        if word == "--config" and place + 1 < len(words):
            return words[place + 1], [*words[:place], *words[place + 2 :]]
    return None, list(words)


def _called(config: str) -> str:
    return "it" if config.lstrip().startswith("{") else config


def _named_in(config: str) -> list[str]:
    """Return the words of the command in a configuration, which is a file or the text itself.

    Raises:
        ValueError: It is none.
    """
    said = _read(config)
    if not isinstance(said, Mapping) or not all(isinstance(key, str) for key in said):
        raise ValueError(f"--config: expected a config.yaml of a run, got {config}, which has no options with values")
    if unknown := [key for key in said if key not in (*COMMANDS, "subcommand", "config")]:
        meant = did_you_mean(unknown[0], COMMANDS)
        raise ValueError(
            f"--config: expected a config.yaml of a run, whose first word is a command, got {config} with "
            f"{unknown[0]!r}{meant or NO_COMMAND}"
        )
    words: list[str] = []
    while isinstance(said.get(word := said.get("subcommand") or next(iter(said), "")), Mapping):
        words.append(word)
        said = said[word]
    return words


def _read(config: str) -> Any:
    text = config
    if not config.lstrip().startswith("{"):
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ValueError(f"--config: the file {config} cannot be read: {why}") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ValueError(f"--config: {config} is no YAML{where}: {getattr(error, 'problem', error)}") from error


def build(typed: Sequence[str] | None = None) -> tuple[Parser, Commands]:
    """Make the parser, and the commands by their words; `Commands` says what ``typed`` is for."""
    parser = Parser(
        prog="limbeck",
        description="Train a small network to carry what a large one knows.",
        version=importlib.metadata.version("limbeck"),
    )
    parser.add_argument("--config", action="config", help="a config.yaml of a run, to run the same again")
    commands = Commands(parser, typed)
    for word, about in COMMANDS.items():
        if commands.named(word):
            with waiting("loading torch"):
                importlib.import_module(f"limbeck.cli.{FILES.get(word, word)}").add(commands)
        else:
            commands.name(word, about)
    return parser, commands
