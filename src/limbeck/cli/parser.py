from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

import yaml
from jsonargparse import ArgumentParser, Namespace, set_loader

from limbeck.cli.complaints import in_words
from limbeck.cli.help import Help, words_of
from limbeck.cli.help import dashed as dashed
from limbeck.cli.terminal import complain

Command = Callable[[Namespace, Mapping[str, Any]], int]
"""What a command does with its options, and with the whole command as ``--config`` takes it; returns the exit code."""

NUMBERS = ("int", "float", "timestamp")
"""What YAML takes for a number."""


class Words(yaml.SafeLoader):
    """Leaves numbers as they were written: layers may be called so, [[2,relu]]; where a number is meant, it is made one."""


Words.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in NUMBERS]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
set_loader("words", lambda text: yaml.load(text, Words), exceptions=(yaml.YAMLError,))


class Parser(ArgumentParser):
    """Says in one line what is wrong and what was meant, without the usage of fifty options."""

    def __init__(self, **said: Any) -> None:
        super().__init__(formatter_class=Help, print_config=None, parser_mode="words", **said)
        self._positionals.title = "arguments"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End the program."""
        meant, words = in_words(getattr(ex, "subcommand_parser", None) or self, message)
        complain(f"{words}\n`{words_of(meant.prog)} --help` shows what there is")
        self.exit(2)


class Commands:
    """The commands, by their words.

    Args:
        parser: That they belong to.
        typed: What the user wrote. Commands that it does not name get no options, since to read those off the signatures of
            all methods takes seconds. By default every command has its own.
    """

    def __init__(self, parser: Parser, typed: Sequence[str] | None = None) -> None:
        self._typed = typed
        about = "`limbeck COMMAND --help` has the options of each."
        self._parents = {"": parser.add_subcommands(title="commands", description=about, metavar="COMMAND")}
        self._commands: dict[str, Command] = {}
        self._groups: dict[str, dict[str, list[Callable[..., Any]]]] = {}

    @property
    def all(self) -> bool:
        """Whether every command has its options."""
        return self._typed is None

    def named(self, path: str) -> bool:
        """Whether a command's words were typed, or all commands are asked for."""
        return self._typed is None or all(word in self._typed for word in path.split())

    def after(self, word: str) -> str | None:
        """Return what was typed after a word; None if nothing was."""
        typed = self._typed or ()
        return next(iter(typed[typed.index(word) + 1 :]), None) if word in typed else None

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
            about: Its line of help.
            groups: Functions, each a group of options.
            parts: More of them, whose options bear a name in front: ``--kd.temperature``.
        """
        parser = self.name(path, about)
        for name, group in [*((None, group) for group in groups), *(parts or {}).items()] if self.named(path) else ():
            parser.add_function_arguments(group, name, as_group=True, skip=skipped(group), fail_untyped=False)
        for action in parser._actions:
            if action.default is False:  # --resume alone says it
                action.nargs, action.const = "?", True
        self._commands[path] = does
        self._groups[path] = {"": list(groups), **{name: [group] for name, group in (parts or {}).items()}}
        return parser

    def name(self, path: str, about: str) -> Parser:
        """Add the words of a command and its line of help alone."""
        parser = Parser(description=about)
        parent, _, word = path.rpartition(" ")
        self._parents[parent].add_subcommand(word, parser, help=about)
        return parser

    def add_family(self, word: str, about: str, description: str, *, title: str, metavar: str) -> None:
        """Add a word that others follow, as ``list`` before ``methods``."""
        family = Parser(description=description)
        self._parents[""].add_subcommand(word, family, help=about)
        self._parents[word] = family.add_subcommands(title=title, description=None, metavar=metavar)

    def __iter__(self) -> Iterator[str]:
        """Go through the words of all commands."""
        return iter(self._commands)

    def find(self, config: Namespace) -> tuple[Command, Namespace]:
        """Return what was asked for, with its options, once what they say can be."""
        words, leaf = [], config
        while "subcommand" in leaf:
            words.append(leaf.subcommand)
            leaf = leaf[leaf.subcommand]
        path = " ".join(words)
        if any(self._groups[path].values()):
            from limbeck.cli.options import look_ahead  # needs torch, as `limbeck --help` does not

            for name, groups in self._groups[path].items():
                look_ahead(groups, leaf, f"{name}." if name else "")
        return self._commands[path], leaf


def skipped(group: Callable[..., Any]) -> set[str | int]:
    """Return the parameters of a method that are no options: whoever assembles it gives them."""
    if not group.__module__.startswith("limbeck.methods"):
        return set()
    from limbeck.engine.assemble import GIVEN

    return {
        name for name in inspect.signature(group).parameters if name in (*GIVEN, "anew", "assistants", "num_classes")
    }


def first_line(function: Callable[..., Any]) -> str:
    """Return what a function does."""
    return (inspect.getdoc(function) or "").splitlines()[0]


def underscored(word: str) -> str:
    """Write an option as signatures do."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value
