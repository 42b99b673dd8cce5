from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from limbeck import methods
from limbeck.cli import COMMANDS
from limbeck.cli.options import (
    answers,
    assistants_of,
    load_data,
    peers_of,
    possible_teacher_of,
    remembered,
    several,
    student_of,
    teacher_of,
    total,
    views,
)
from limbeck.cli.parser import Commands, first_line, skipped
from limbeck.engine.assemble import assemble, find, parts_of

if TYPE_CHECKING:
    from torch import nn

    from limbeck.cli.case import Case
    from limbeck.engine.fit import Trainable

MethodCommand = Callable[[str, Namespace, Mapping[str, Any]], int]
"""A command that a method's name follows."""


def add_by_method(commands: Commands, word: str, does: MethodCommand, *groups: Callable[..., Any]) -> None:
    """Add ``limbeck WORD METHOD`` for every method, and for a sum if one was typed: its own options beside ``groups``."""
    about = COMMANDS[word]
    description = f"{about} `limbeck {word} METHOD --help` has its options; METHOD+METHOD is both at once."
    commands.add_family(word, about, description, title="methods", metavar="METHOD")
    typed = commands.after(word)
    described = commands.all or typed in ("--help", "-h")
    for name in [one for one in methods.__all__ if one == typed] or methods.__all__:
        if name != typed and not described:
            commands.name(f"{word} {name}", "")  # to say which is the closest
            continue
        method = find(name)
        given: list[Callable[..., Any]] = [student_of, *teacher_group(method), method, load_data, answers, *groups]
        commands.add(f"{word} {name}", partial(does, name), first_line(method), *given)
    if typed is not None and "+" in typed:
        parts = {part: find(part) for part in parts_of(typed)}
        given = [student_of, *_teacher_of_all(parts.values()), total, load_data, answers, *groups]
        commands.add(
            f"{word} {typed}", partial(does, typed), f"Train by {typed}, see limbeck.add.", *given, parts=parts
        )


def assembled(method: str, leaf: Namespace, case: Case) -> Trainable:
    """Make a method and its networks, of the seed."""
    from lightning import seed_everything

    from limbeck.cli.networks import network
    from limbeck.engine.fit import labels_of, refuse_unremembered

    seed_everything(leaf.seed, verbose=False)
    make, own = partial(network, leaf.student, case), {name: leaf[name] for name in options_of(method)}
    refuse_unremembered(method, own, case.data, case.task)
    if "assistants" in leaf:
        own["assistants"] = [network(name, case) for name in several(leaf.assistants)]
    student, teachers = make(), _teachers(leaf, case)
    return assemble(method, student, teachers, case.example, own, labels_of(case.data), make, case.task)


def options_of(method: str) -> list[str]:
    """Return the names of a method's own options."""
    parts = parts_of(method)
    if len(parts) > 1:
        return ["hard", *(f"{part}.{name}" for part in parts for name in options_of(part))]
    function = find(method)
    return [name for name in inspect.signature(function).parameters if name not in skipped(function)]


def teacher_group(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the options that name who teaches."""
    parameters = inspect.signature(function).parameters
    if "peers" in parameters:
        return [peers_of]
    if "teacher" not in parameters:
        return []
    if parameters["teacher"].default is not inspect.Parameter.empty:
        return [possible_teacher_of, views, remembered]
    others = [assistants_of] if "assistants" in parameters else []
    return [teacher_of, views, remembered, *others]


def _teacher_of_all(functions: Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Return the options that name the teacher of several methods, whom one at least cannot do without."""
    groups = [group for function in functions if (group := teacher_group(function))]
    return next((group for group in groups if teacher_of in group), groups[0] if groups else [])


def _teachers(leaf: Namespace, case: Case) -> nn.Module | list[nn.Module] | None:
    from limbeck.cli.networks import network, taught_by

    if "peers" in leaf:
        return [network(name, case) for name in several(leaf.peers)]
    if leaf.get("teacher") is None:
        return None
    return taught_by(leaf.teacher, case)
