"""What the parser refuses, said in the words of a command line: each message of jsonargparse that a user meets."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from jsonargparse import ArgumentParser

from limbeck.cli.help import SEVERAL, dashed, kinds_of, name_of, placeholder, type_of, words_of


def in_words(parser: ArgumentParser, message: str) -> tuple[ArgumentParser, str]:
    """Return the parser of the command that is meant, whose ``--help`` helps, and what is wrong, in plain words.

    A message that is not known is left as it is.
    """
    for pattern, say in SAID:
        if found := re.search(pattern, message, re.DOTALL):
            return say(parser, found)
    return parser, re.sub(r"--\w+", lambda word: dashed(word[0]), message)


Answer = tuple[ArgumentParser, str]

EXAMPLES = {
    "methods": "kd at --student NAME --teacher NAME@FILE",
    "method": "kd --search temperature=1:20:log --student NAME --teacher NAME@FILE",
    "students": "TEACHER@FILE STUDENT@FILE",
}
"""What may follow a command where one of its words is missing."""


def _needs(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    """Say which options and words are missing."""
    keys = found[1].split(", ")
    leaf, _ = at(parser, keys[0])
    missing = [name_of(action) for action in (at(parser, key)[1] for key in keys) if action is not None]
    said = f"`{words_of(leaf.prog)}` needs {' and '.join(missing or keys)}"
    example = next((EXAMPLES[name] for key in keys if (name := key.rpartition(".")[2]) in EXAMPLES), None)
    return leaf, said if example is None else f"{said}, as `{words_of(leaf.prog)} {example}`"


def _needs_word(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    """Say which word comes next."""
    family, action = at(parser, found[1])
    words = words_of(family.prog)
    return family, f"`{words}` needs {_a(action)}, as `{words} {_example(action)}`: {_which(words, action)}"


def _no_such_word(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    word, action = found[1], _family(parser)
    words = words_of(parser.prog)
    meant = did_you_mean(word, action.choices or ()) or _other_place(words, action, word)
    return parser, f"`{words}` has no {_kind(action)}{word!r}{meant or f': {_which(words, action)}'}"


def _other_place(words: str, action: argparse.Action, word: str) -> str:
    """Say where a word belongs that stands in the place of another; nothing where nobody knows."""
    if action.metavar == "METHOD":
        return f": the method comes first, as `{words} kd --student NAME`, and {_which(words, action)}"
    from limbeck import methods  # after all else: it needs torch

    if set(word.split("+")) <= set(methods.__all__):
        return f": did you mean `{words} distill {word}`?"
    return ""


def _unexpected(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    word = found[1]
    if not word.startswith("-"):
        return parser, f"`{words_of(parser.prog)}` takes no further word, got {word!r}"
    return parser, f"`{words_of(parser.prog)}` has no option {dashed(word)}{did_you_mean(word, options(parser))}"


def _not_in_file(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    """Say which key of a configuration is no option."""
    meant = did_you_mean(f"--{found[2]}", options(parser)).replace("--", "")
    return parser, f"--config: `{words_of(parser.prog)}` has no option {found[2]!r}{meant}"


def _wrong_type(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    """Say what an option takes, and what it got."""
    leaf, action = _holding(parser, found[1])
    if action is None:
        return parser, found[0]
    said, value = type_of(action), found[2].strip()
    value = repr(value) if value[:1] not in ("[", "{") else value.replace("'", "")
    words = [choice for kind in kinds_of(said) for choice in choices(kind)]
    close = did_you_mean(value.strip("'"), words, cutoff=0.5)  # they are few
    return leaf, f"{name_of(action)}: expected {' or '.join(map(expected, kinds_of(said)))}, got {value}{close}"


def _no_value(parser: ArgumentParser, found: re.Match[str]) -> Answer:
    names = found[1].split("/")
    action = next((each for each in parser._actions if set(names) & set(each.option_strings)), None)
    if action is None:
        return parser, found[0]
    return parser, f"{name_of(action)}: expected a value after it, {name_of(action)} {placeholder(action)}"


Say = Callable[[ArgumentParser, "re.Match[str]"], Answer]
SAID: Sequence[tuple[str, Say]] = (
    (r"^the following arguments are required: (.*)", _needs),
    (r'^expected "([\w.+]+)" to be one of', _needs_word),
    (r"invalid choice: '(.*?)' \(", _no_such_word),
    (r"^unrecognized arguments: ([^\s=]+)", _unexpected),
    (r"^ambiguous option: ([^\s=]+) could match", _unexpected),
    (r"^Subcommand '(.*?)' does not accept option '(.*?)'", _not_in_file),
    (r'^Parser key "([\w.+]+)":.*(?:Got|Given) value: (.*)', _wrong_type),
    (r"^argument (\S+): expected (?:one|at least one) argument", _no_value),
)
"""Each with what is said instead."""


# what a user may write -----------------------------------------------------------------------------------------------


def expected(kind: Any) -> str:
    """Say what a value of a type is: "a number", "a list of whole numbers, as [1,2]"."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(choices(kind))}"
    if get_origin(kind) in (*SEVERAL, dict, Mapping):
        return f"{_plural(kind)[1]}, as {_shown(kind)}"
    return ONE.get(kind, ("a value",))[0]


ONE = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a word", "words")} | {
    bool: ("true or false", "of true or false")
}
SHOWN = {int: ("1", "2"), float: ("0.5", "0.1"), str: ("a", "b"), bool: ("true", "false")}


def _plural(kind: Any) -> tuple[str, str]:
    """Name several values of a type, and one."""
    inner = get_args(kind)
    if get_origin(kind) in (dict, Mapping):
        return f"names with {_of(inner[1])} each", f"names with {_of(inner[1])} each"
    if get_origin(kind) is tuple and len(inner) == 2 and Ellipsis not in inner:
        return f"pairs of {_of(inner[0])}", f"a pair of {_of(inner[0])}"
    if get_origin(kind) in SEVERAL:
        return f"lists of {_of(inner[0])}", f"a list of {_of(inner[0])}"
    return ONE.get(kind, ("a value", "values"))[1], ONE.get(kind, ("a value",))[0]


def _of(kind: Any) -> str:
    return _plural(kinds_of(kind)[0])[0]


def _shown(kind: Any, which: int = 0) -> str:
    """Write an example of a type's value."""
    inner = [kinds_of(each)[0] for each in get_args(kind) if each is not Ellipsis]
    if get_origin(kind) in (dict, Mapping):
        return f"{{name: {_shown(inner[1])}}}"
    if get_origin(kind) in SEVERAL:
        several = inner if len(inner) > 1 else [inner[0]] * 2
        return f"[{','.join(_shown(each, place % 2) for place, each in enumerate(several))}]"
    return SHOWN.get(kind, ("a", "b"))[which]


def choices(kind: Any) -> list[str]:
    """Return the words that a value may be, if it is one of some."""
    return list(map(str, get_args(kind))) if get_origin(kind) is Literal else []


def options(parser: ArgumentParser) -> list[str]:
    """Return a command's options."""
    return list(parser._option_string_actions)


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.7) -> str:
    """Ask for the closest of the words that there are; nothing where none is close."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return f": did you mean {' or '.join(map(dashed, close))}?" if close else ""


# where the parser keeps it -------------------------------------------------------------------------------------------


def at(parser: ArgumentParser, key: str) -> tuple[ArgumentParser, argparse.Action | None]:
    """Find ``distill.kd.teacher``: the parser of `distill kd`, and its option."""
    head, dot, rest = key.partition(".")
    family = parser._subcommands_action
    if dot and family is not None and head in family._name_parser_map:
        return at(family._name_parser_map[head], rest)
    return parser, next((action for action in parser._actions if action.dest == key), None)


def _holding(parser: ArgumentParser, key: str) -> tuple[ArgumentParser, argparse.Action | None]:
    """Find an option by its name alone; commands that were not typed have none."""
    leaf, action = at(parser, key)
    if action is not None or parser._subcommands_action is None:
        return leaf, action
    below = (_holding(each, key) for each in parser._subcommands_action._name_parser_map.values())
    return next(((leaf, action) for leaf, action in below if action is not None), (parser, None))


def _family(parser: ArgumentParser) -> argparse._SubParsersAction[Any]:
    assert parser._subcommands_action is not None
    return parser._subcommands_action


def _a(action: argparse.Action | None) -> str:
    """Name what a word is."""
    metavar = str(action.metavar) if action is not None else "word"
    return f"a {metavar}" if metavar.isupper() else "one more word"


def _kind(action: argparse.Action) -> str:
    metavar = str(action.metavar)
    return f"{metavar.lower()} " if metavar.isupper() else ""


def _example(action: argparse.Action | None) -> str:
    known = list((action.choices if action is not None else None) or ["..."])
    return "kd" if "kd" in known else str(known[0])


def _which(words: str, action: argparse.Action | None) -> str:
    """Say where the words are listed, or which they are."""
    known = list((action.choices if action is not None else None) or [])
    if action is not None and action.metavar == "METHOD":
        return "`limbeck list methods` shows them"
    return f"there are {', '.join(known)}" if len(known) < 6 else f"`{words} --help` shows them"
