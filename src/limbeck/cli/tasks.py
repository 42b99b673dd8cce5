from __future__ import annotations

import difflib
import importlib
import inspect
from dataclasses import replace

from limbeck import tasks
from limbeck.core.task import Task, answer_at
from limbeck.zoo._outside import find


def named() -> dict[str, Task]:
    """Return the tasks that have a name."""
    values = (each() if inspect.isfunction(each) else each for each in vars(tasks).values())
    return {each.name: each for each in values if isinstance(each, Task)}


def describe() -> list[tuple[str, str]]:
    """Return the name of each task with a line about it."""
    files = {name: importlib.import_module(f"limbeck.tasks.{name}") for name in named()}
    return [(name, (file.__doc__ or "").splitlines()[0]) for name, file in files.items()]


def asked(name: str | None, output: str | None, of_data: Task) -> Task:
    """Return the task of a name, or else the data's, with the answer where the user says that it is.

    Raises:
        ValueError: There is no such task; with the closest.
        TypeError: What the user named is no task.
    """
    task = of_data if name is None else _own(name) if ":" in name else _known(name)
    if output is None:
        return task
    find_answer = answer_at(output)
    return replace(task, output=lambda out: task.output(find_answer(out)))  # which may turn axes besides


def _known(name: str) -> Task:
    known = named()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3)
        meant = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)},"
        raise ValueError(f"unknown task {name!r}: {meant} or one of your own, package.module:task")
    return known[name]


def _own(name: str) -> Task:
    module, _, attribute = name.partition(":")
    found = find(name, module, attribute)
    task = found() if callable(found) else found
    if not isinstance(task, Task):
        raise TypeError(f"{name}: expected a limbeck.Task, or a function that returns one, got {type(task).__name__}")
    return task
