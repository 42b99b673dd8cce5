"""How help is written: one short line of usage, options as documents write them, defaults in plain words."""

from __future__ import annotations

import argparse
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from jsonargparse import DefaultHelpFormatter

NETWORKS = ("student", "teacher", "network", "peers", "assistants")
"""Options that name one."""
SEVERAL = (list, tuple, Sequence)
"""Types whose values stand in brackets."""


class Help(DefaultHelpFormatter):
    """Shows what a user needs, and none of the parser's own words."""

    def _format_usage(
        self, usage: str | None, actions: Iterable[argparse.Action], groups: Any, prefix: str | None
    ) -> str:
        words = [words_of(self._prog)]
        actions = list(actions)
        words += [placeholder(each) for each in actions if not each.option_strings]
        options = [each for each in actions if each.option_strings and not isinstance(each, argparse._HelpAction)]
        words += [f"{name_of(each)} {placeholder(each)}" for each in options if each.required]
        words += ["[options]"] * any(not each.required for each in options)
        return f"{'usage: ' if prefix is None else prefix}{' '.join(words)}\n\n"

    def _format_action(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._SubParsersAction):  # its words alone: the section has a heading
            return "".join(map(self._format_action, self._iter_indented_subactions(action)))
        return super()._format_action(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return placeholder(action)
        names = ", ".join(dashed(name) for name in action.option_strings if not name.endswith("+"))
        value = "" if action.nargs == 0 or is_flag(action) else f" {placeholder(action)}"
        return names + value

    def _expand_help(self, action: argparse.Action) -> str:
        if isinstance(action, argparse._HelpAction):
            return "Show this help."
        default = action.default if action.option_strings else None
        if action.required and action.option_strings:
            said = " (required)"
        elif default in (None, argparse.SUPPRESS) or is_flag(action):
            said = ""
        else:
            said = f" (default: {in_words(default)})"
        return f"{action.help or ''}{said}"


def words_of(prog: str) -> str:
    """Return what a command is called, ``limbeck distill kd``."""
    return prog.replace(" [options]", "")


def dashed(word: str) -> str:
    """Write an option as command lines do."""
    return word.replace("_", "-") if word.startswith("--") else word


def name_of(action: argparse.Action) -> str:
    """Return what a user calls an option, ``--run-dir``, or a word of the command, ``METHOD``."""
    return dashed(action.option_strings[0]) if action.option_strings else placeholder(action)


def placeholder(action: argparse.Action) -> str:
    """Return what stands for the value of an option in help: ``NAME``, ``N``, ``{sgd,adam,adamw}``."""
    if isinstance(action, (argparse._SubParsersAction, argparse._SubParsersAction._ChoicesPseudoAction)):
        return str(action.metavar or action.dest)
    word = action.dest.rpartition(".")[2]
    if not action.option_strings:
        return word.upper() + "..." * (action.nargs == "+")
    if word in NETWORKS:
        return "NAME"
    kinds = kinds_of(type_of(action))
    return _placeholder(kinds[0]) or word.upper().replace("_", "-")


def _placeholder(kind: Any) -> str | None:
    """Return what stands for a value of a type; of text, nothing: the option's name says more."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) in SEVERAL:
        inner = [each for each in get_args(kind) if each is not Ellipsis]
        if get_origin(kind) is not tuple or Ellipsis in get_args(kind):
            inner = [inner[0]] * 2
        return "[" + ",".join(_placeholder(kinds_of(each)[0]) or "WORD" for each in inner) + "]"
    return {int: "N", float: "X", bool: "{true,false}"}.get(kind)


def is_flag(action: argparse.Action) -> bool:
    """Whether an option is said by its name alone, as ``--resume``."""
    return action.default is False


def in_words(value: Any) -> str:
    """Write a value as a command line does."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(in_words, value)) + "]"
    return str(value)


def type_of(action: argparse.Action) -> Any:
    """Return the type of an option's value."""
    return getattr(action, "_typehint", None) or action.type or str


def kinds_of(annotation: Any) -> list[Any]:
    """Return the types of which a value may have one, without that of None."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [kind for kind in kinds if kind is not types.NoneType]
