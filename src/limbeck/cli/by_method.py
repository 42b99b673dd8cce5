from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from jsonargparse import Namespace
from lightning import seed_everything
from torch import nn

from limbeck import methods
from limbeck.cli.case import Case
from limbeck.cli.networks import network, taught_by
from limbeck.cli.options import (
    answers,
    assistants_of,
    load_data,
    peers_of,
    possible_teacher_of,
    several,
    student_of,
    teacher_of,
    views,
)
from limbeck.cli.parser import Commands, first_line, skipped
from limbeck.engine.assemble import assemble, find, parts_of
from limbeck.engine.fit import Trainable, labels_of

MethodCommand = Callable[[str, Namespace, Mapping[str, Any]], int]
"""A command that a method's name follows."""


def add_by_method(commands: Commands, word: str, does: MethodCommand, *groups: Callable[..., Any]) -> None:
    """Add ``limbeck WORD METHOD`` for every method, and for a sum if one was typed: its own options beside ``groups``."""
    about = first_line(does)
    described = f"{about} `limbeck {word} METHOD --help` has its options; METHOD+METHOD is both at once."
    commands.add_family(word, about, described, metavar="METHOD")
    for name in methods.__all__:
        method = find(name)
        given: list[Callable[..., Any]] = [student_of, *teacher_group(method), method, load_data, answers, *groups]
        commands.add(f"{word} {name}", partial(does, name), first_line(method), *given)
    for name in (one for one in commands.after(word) if "+" in one):
        parts = {part: find(part) for part in parts_of(name)}
        given = [student_of, *_teacher_of_all(parts.values()), total, load_data, answers, *groups]
        commands.add(f"{word} {name}", partial(does, name), f"Train by {name}, see limbeck.add.", *given, parts=parts)


def total(hard: float | None = None) -> None:
    """Say what the methods share.

    Args:
        hard: Weight of the labels, whatever it is in each method; by default 1, and 0 where no method has them.
    """


def assembled(method: str, leaf: Namespace, case: Case) -> Trainable:
    """Make a method and its networks, of the seed."""
    seed_everything(leaf.seed, verbose=False)
    make, own = partial(network, leaf.student, case), {name: leaf[name] for name in options_of(method)}
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
        return [possible_teacher_of, views]
    return [teacher_of, views, assistants_of] if "assistants" in parameters else [teacher_of, views]


def _teacher_of_all(functions: Iterable[Callable[..., Any]]) -> list[Callable[..., Any]]:
    """Return the options that name the teacher of several methods, whom one at least cannot do without."""
    groups = [group for function in functions if (group := teacher_group(function))]
    return next((group for group in groups if teacher_of in group), groups[0] if groups else [])


def _teachers(leaf: Namespace, case: Case) -> nn.Module | list[nn.Module] | None:
    if "peers" in leaf:
        return [network(name, case) for name in several(leaf.peers)]
    if leaf.get("teacher") is None:
        return None
    return taught_by(leaf.teacher, case)
