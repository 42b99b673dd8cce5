"""Networks and data by the names that the command line has for them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import zoo
from limbeck.core.frozen import matched
from limbeck.core.options import refuse_call
from limbeck.core.task import Task
from limbeck.data import Data, load
from limbeck.engine.fit import example_of

Named = nn.Module | str


def data_of(data: Any, seed: int) -> Any:
    """Return data, loaded as `limbeck.data.load` does where they are a name."""
    return load(data, seed=seed) if isinstance(data, str) else data


@dataclass(frozen=True)
class Namer:
    """Makes networks of their names, to suit data; those that are networks already stay as they are.

    Args:
        data: As `limbeck.fit` takes them.
        task: What the networks are made to do.
    """

    data: Any
    task: Task

    def learner(self, net: Named) -> nn.Module:
        """Return a network that is to be trained: its weights are drawn, unless its name says which."""
        return self._made(net, new_head=None) if isinstance(net, str) else net

    def learners(self, nets: Sequence[Named]) -> list[nn.Module]:
        """Return several of them."""
        return [self.learner(net) for net in nets]

    def teacher(self, net: Named) -> nn.Module:
        """Return a network that has learned.

        Raises:
            ValueError: Its name says no weights, or those of another task.
        """
        if not isinstance(net, str):
            return net
        refuse_another_task(weighted(net, "teacher"), self.task)
        tell_of_other_classes(net, getattr(self.data, "classes", ()))
        return self._made(net, new_head=False)

    def _made(self, name: str, new_head: bool | None) -> nn.Module:
        few = example_of(self.data, nn.Identity(), self.task)
        shape = tuple(few.shape[1:]) if isinstance(few, Tensor) else None
        outputs = self.data.outputs if isinstance(self.data, Data) else None
        if outputs is None and ":" not in zoo.split_name(name)[0]:
            raise ValueError(
                f"{name} is made for a number of outputs, which loaders do not tell: make it, "
                f"limbeck.zoo.network({name!r}, num_classes, {shape}), or pass a limbeck.data.Data"
            )
        return zoo.network(name, outputs, shape, new_head=new_head)


def made_by_name(
    student: Callable[[], nn.Module] | str, teacher: Named | None, data: Any, task: Task
) -> tuple[Callable[[], nn.Module], nn.Module | None]:
    """Return what makes the student, and the teacher, whichever of them is a name.

    Raises:
        TypeError: A student that is no function and no name.
    """
    namer = Namer(data, task)
    if isinstance(teacher, str):
        torch.manual_seed(0)  # NAME@random is the same teacher at each call
    taught = None if teacher is None else namer.teacher(teacher)
    if isinstance(student, str):
        return partial(namer.learner, student), taught
    refuse_no_maker(student)
    return student, taught


def refuse_no_maker(student: Any) -> None:
    """Raise a TypeError unless a student is a function that makes it anew for each training."""
    like = "student=lambda: limbeck.zoo.network('resnet8', num_classes, shape), or its name, 'resnet8'"
    if isinstance(student, nn.Module):
        raise TypeError(
            f"student must be a function that makes one, anew for each training, {like}, got the network "
            f"{type(student).__name__}"
        )
    refuse_call("the student", student, like)


def weighted(name: str, role: str) -> str:
    """Insist on weights; a function of the user's own may bring its own, and a warning says that nobody knows.

    Raises:
        ValueError: The name says none, or is a file's.
    """
    if (doubt := unnamed_weights(name)) is not None:
        warnings.warn(doubt, stacklevel=3)
        return name
    base, weights = zoo.split_name(name)
    zoo.refuse_file(base)
    if weights is None:
        raise ValueError(
            f"the {role} {name} has no weights: name their file or a run's folder, {name}@FILE or {name}@RUN "
            f"(train one with `limbeck train --network {name}`), or take {name}@random for an untrained one"
        )
    return name


def unnamed_weights(name: str) -> str | None:
    """Say that the weights of a function of the user's own are its own matter; None of a name that names weights."""
    base, weights = zoo.split_name(name)
    if weights is not None or ":" not in base or base.startswith(("torchvision:", "timm:")):
        return None
    return (
        f"{name} names no weights: if the function does not load them itself, these are random. {name}@FILE or {name}@RUN "
        "names them"
    )


def refuse_other_classes(name: str, classes: Sequence[str]) -> None:
    """Find data with other classes than those of the network's training, whose answers would bear wrong names.

    Args:
        name: Of the network, with its weights.
        classes: The names of the classes here, in their order; empty where nobody knows.

    Raises:
        ValueError: They are others, or in another order, or of another number.
    """
    was = zoo.trained_on(name)
    if not was.classes or not classes or was.classes == tuple(classes):
        return
    if len(was.classes) != len(classes):
        differ = f"for {len(was.classes)} classes ({_few(was.classes)}), and here there are {len(classes)}"
        raise ValueError(f"{name} was trained {differ} ({_few(classes)}){its_data(name)}")
    raise ValueError(
        f"{name} was trained on other classes: {_first_other(was.classes, classes)}{its_data(name)}. Are these the same by "
        f"other names, name them alike; `limbeck export --classes [{','.join(classes)}]` ships it with the names here"
    )


def tell_of_other_classes(name: str, classes: Sequence[str]) -> None:
    """Warn of a teacher whose outputs are other classes than the student's; where layers are compared, that is no matter.

    Args:
        name: Of the teacher, with its weights.
        classes: The names of the classes here, in their order; empty where nobody knows.
    """
    was = zoo.trained_on(name).classes
    if len(was) != len(classes) or was == tuple(classes):
        return
    how = (
        "If it knows the classes here, --teacher-classes (limbeck.Frozen(teacher, classes=...)) says which of its outputs "
        "each of them is"
    )
    if set(was) == set(classes):
        order = list(matched(classes, was).values())
        how = (
            f"--teacher-classes [{','.join(map(str, order))}] (limbeck.Frozen(teacher, classes={order})) puts them into "
            "the order here"
        )
    warnings.warn(f"the teacher {name} was trained on other classes: {_first_other(was, classes)}. {how}", stacklevel=3)


def its_data(name: str) -> str:
    """Say what data the run of a network had, as the end of a sentence; nothing where that is not known."""
    words = zoo.trained_on(name).words
    return f". Its training had {words}: say the same here" if words else ""


def _first_other(was: Sequence[str], classes: Sequence[str]) -> str:
    """Name the first output that means another class."""
    at = next(at for at, pair in enumerate(zip(was, classes, strict=True)) if pair[0] != pair[1])
    return f"its output {at} is {was[at]!r}, and here class {at} is {classes[at]!r}"


def _few(words: Sequence[str]) -> str:
    return ", ".join(words[:3]) + ", ..." * (len(words) > 3)


def refuse_another_task(name: str, task: Task) -> None:
    """Find weights that were trained for another task, whose answers mean something else.

    Raises:
        ValueError: They were.
    """
    trained_for = zoo.trained_for(name)
    if trained_for not in (None, task.name):
        raise ValueError(
            f"the tasks of teacher and student differ: {name} was trained for {trained_for}, and the task here is "
            f"{task.name}. Say task=limbeck.{trained_for} (--task {trained_for}), or take a teacher of {task.name}; where "
            "the teacher has an answer of this task too, limbeck.Frozen(teacher, output=...) (--teacher-output) says which"
        )
