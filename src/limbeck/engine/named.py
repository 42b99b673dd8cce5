"""Networks and data by the names that the command line has for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from limbeck import zoo
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
    """Insist on weights; a function of the user's own may bring its own.

    Raises:
        ValueError: The name says none.
    """
    base, weights = zoo.split_name(name)
    own = ":" in base and not base.startswith(("torchvision:", "timm:"))
    if weights is None and not own:
        raise ValueError(
            f"the {role} {name} has no weights: name their file or a run's folder, {name}@FILE or {name}@RUN "
            f"(train one with `limbeck train --network {name}`), or take {name}@random for an untrained one"
        )
    return name


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
