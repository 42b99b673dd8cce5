from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jsonargparse import Namespace
from lightning import seed_everything
from torch import nn

from limbeck import methods
from limbeck.cli.networks import network, taught_by
from limbeck.cli.options import assistants_of, load_data, peers_of, possible_teacher_of, several, student_of, teacher_of
from limbeck.cli.parser import Commands, first_line, skipped
from limbeck.data import Data
from limbeck.engine.assemble import assemble, find
from limbeck.engine.fit import Trainable, labels_of

MethodCommand = Callable[[str, Namespace, Mapping[str, Any]], int]
"""A command that a method's name follows."""


def add_by_method(commands: Commands, word: str, does: MethodCommand, *groups: Callable[..., Any]) -> None:
    """Add ``limbeck WORD METHOD`` for every method, with its own options beside ``groups``."""
    about = first_line(does)
    commands.add_family(word, about, f"{about} `limbeck {word} METHOD --help` has its options.", metavar="METHOD")
    for name in methods.__all__:
        method = find(name)
        given: list[Callable[..., Any]] = [student_of, *teacher_group(method), method, load_data, *groups]
        commands.add(f"{word} {name}", partial(does, name), first_line(method), *given)


def assembled(method: str, leaf: Namespace, data: Data) -> Trainable:
    """Make a method and its networks, of the seed."""
    seed_everything(leaf.seed, verbose=False)
    make, own = partial(network, leaf.student, data), {name: leaf[name] for name in options_of(method)}
    if "assistants" in leaf:
        own["assistants"] = [network(name, data) for name in several(leaf.assistants)]
    return assemble(method, make(), _teachers(leaf, data), data.example(), own, labels_of(data), make)


def options_of(method: str) -> list[str]:
    """Return the names of a method's own options."""
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
        return [possible_teacher_of]
    return [teacher_of, assistants_of] if "assistants" in parameters else [teacher_of]


def _teachers(leaf: Namespace, data: Data) -> nn.Module | list[nn.Module] | None:
    if "peers" in leaf:
        return [network(name, data) for name in several(leaf.peers)]
    if leaf.get("teacher") is None:
        return None
    return taught_by(leaf.teacher, data)
