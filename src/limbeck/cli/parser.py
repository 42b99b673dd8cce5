from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser, Namespace

from limbeck.cli.console import complain
from limbeck.engine.assemble import GIVEN

Command = Callable[[Namespace, Mapping[str, Any]], int]
"""What a command does with its options, and with the whole command as ``--config`` takes it; returns the exit code."""


class Parser(ArgumentParser):
    """Says in one line what is wrong and what was meant, without the usage of fifty options."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program."""
        parser = getattr(ex, "subcommand_parser", None) or self
        known = [*parser._option_string_actions, *(name for each in parser._actions for name in each.choices or ())]
        wrong = re.search(r"unrecognized arguments: ([^\s=]+)|invalid choice: '(.*?)'", message)
        close = difflib.get_close_matches(wrong[1] or wrong[2], known, n=3, cutoff=0.7) if wrong else []
        if message.startswith("the following arguments are required"):
            message = re.sub(r"(\w+\.)+", "", message)  # distill.kd.teacher is the teacher to the user
        meant = f": did you mean {' or '.join(map(dashed, close))}?" if close else ""
        complain(f"{message}{meant}\n`{parser.prog.replace(' [options]', '')} --help` shows what there is")
        self.exit(2)


class Commands:
    """The commands, by their words.

    Args:
        parser: That they belong to.
        typed: What the user wrote. Commands that it does not name get no options, since to read those off the signatures of
            all methods takes seconds. By default every command has its own.
    """

    def __init__(self, parser: Parser, typed: Sequence[str] = ()) -> None:
        self._typed = typed
        self._parents = {"": parser.add_subcommands()}
        self._commands: dict[str, Command] = {}

    def after(self, word: str) -> Sequence[str]:
        """Return what was typed after a word, if anything."""
        at = self._typed.index(word) + 1 if word in self._typed else len(self._typed)
        return self._typed[at : at + 1]

    def add(
        self,
        path: str,
        does: Command,
        about: str,
        *groups: Callable[..., Any],
        parts: Mapping[str, Callable[..., Any]] | None = None,
    ) -> Parser:
        """Add a command: its options are the parameters of ``groups``, their help what the docstrings say.

        Args:
            path: Its words, as ``"list methods"``.
            does: What it does.
            about: Its first line of help.
            groups: Functions, each a group of options.
            parts: More of them, whose options bear a name in front: ``--kd.temperature``.
        """
        parser = Parser(description=about)
        named = not self._typed or all(word in self._typed for word in path.split())
        for name, group in [*((None, group) for group in groups), *(parts or {}).items()] if named else ():
            parser.add_function_arguments(group, name, as_group=True, skip=skipped(group), fail_untyped=False)
        for action in parser._actions:
            if action.default is False:  # --resume alone says it
                action.nargs, action.const = "?", True
        self._commands[path] = does
        parent, _, word = path.rpartition(" ")
        self._parents[parent].add_subcommand(word, parser, help=about)
        return parser

    def add_family(self, word: str, about: str, description: str, metavar: str | None = None) -> None:
        """Add a word that others follow, as ``list`` before ``methods``."""
        family = Parser(description=description)
        self._parents[""].add_subcommand(word, family, help=about)
        self._parents[word] = family.add_subcommands(metavar=metavar)

    def __iter__(self) -> Iterator[str]:
        """Go through the words of all commands."""
        return iter(self._commands)

    def find(self, config: Namespace) -> tuple[Command, Namespace]:
        """Return what was asked for, with its options."""
        words, leaf = [], config
        while "subcommand" in leaf:
            words.append(leaf.subcommand)
            leaf = leaf[leaf.subcommand]
        return self._commands[" ".join(words)], leaf


def skipped(group: Callable[..., Any]) -> set[str | int]:
    """Return the parameters of a method that are no options: whoever assembles it gives them."""
    if not group.__module__.startswith("limbeck.methods"):
        return set()
    return {
        name for name in inspect.signature(group).parameters if name in (*GIVEN, "anew", "assistants", "num_classes")
    }


def first_line(function: Callable[..., Any]) -> str:
    """Return what a function does."""
    return (inspect.getdoc(function) or "").splitlines()[0]


def dashed(word: str) -> str:
    """Write an option as command lines do."""
    return word.replace("_", "-") if word.startswith("--") else word


def underscored(word: str) -> str:
    """Write an option as signatures do."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
