"""What a command works on: data, what the networks are made to do with them, and how the teacher differs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jsonargparse import Namespace
from torch import Tensor, nn

from limbeck.cli.options import call, load_data
from limbeck.cli.tasks import asked
from limbeck.cli.terminal import waiting
from limbeck.core.batches import samples
from limbeck.core.task import Task, answer_at
from limbeck.data import Data, Epochs
from limbeck.data.repeatable import Repeatable, splits
from limbeck.tasks import classification
from limbeck.zoo._outside import find

Loader = Epochs | Repeatable

SHAPE = (3, 32, 32)
"""Of one input, where nobody says anything."""


@dataclass(frozen=True)
class Case:
    """What a command works on.

    Args:
        name: Of the data.
        data: As `limbeck.fit` takes them.
        task: What the networks are made to do.
        outputs: How many outputs a network needs; None where nobody says.
        example: A few inputs, on the CPU.
        view: How the teacher is fed and read where that differs, as `limbeck.Frozen` takes it.
        teacher_outputs: How many outputs the teacher has, if others.
        new_head: Whether networks that are to be trained begin with a fresh last layer where a file's has other outputs.
    """

    name: str
    data: Any
    task: Task
    outputs: int | None
    example: Any
    view: Mapping[str, Any] = field(default_factory=dict)
    teacher_outputs: int | None = None
    new_head: bool = False

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of one input; None where it is no tensor."""
        return shape_of(self.example)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, if there are any."""
        return tuple(getattr(self.data, "classes", ()))

    @property
    def validation(self) -> Loader:
        """The validation data.

        Raises:
            ValueError: There are none.
        """
        val = splits(self.data, seed=0).val
        if val is None:
            raise ValueError(f"{self.name} has no validation data: return loaders (train, val) or (train, val, test)")
        return val

    @property
    def held_out(self) -> Loader:
        """The test data, or the validation data where there are no other."""
        test = splits(self.data, seed=0).test
        return self.validation if test is None else test

    @property
    def title(self) -> str:
        """What is measured on, in words: "digits, 360 test samples"."""
        loader, split = self.held_out, "validation" if splits(self.data, seed=0).test is None else "test"
        return f"{self.name}, " + (
            f"{len(loader.ids):,} {split} samples" if isinstance(loader, Epochs) else f"its {split} data"
        )

    def to(self, device: torch.device | str) -> Case:
        """Serve data by name on ``device``; batches of the user's own loaders are moved one by one."""
        if isinstance(self.data, Data):
            self.data.to(device)
        return self


def case_of(leaf: Namespace) -> Case:
    """Load the data, and find out what is to be done with them."""
    with waiting("loading the data"):
        data = call(load_data, leaf)
        if leaf.get("cache") is not None:
            from limbeck.data.cached import cached

            data = cached(data, leaf.cache)
        return about(data, leaf)


def case_or_shape(leaf: Namespace) -> Case:
    """Take inputs of the data, or any of the shape."""
    if leaf.data is not None:
        if leaf.shape is not None:
            raise ValueError(
                f"--shape is for networks without data, and the inputs of {leaf.data} have theirs: leave it out"
            )
        return case_of(leaf)
    example = torch.randn(2, *(leaf.shape or SHAPE), generator=torch.Generator().manual_seed(0))
    task = asked(leaf.task, leaf.output, classification)
    return Case("", None, task, leaf.num_outputs or 10, example, new_head=leaf.new_head)


def about(data: Any, leaf: Namespace) -> Case:
    """Find out what is to be done with the data."""
    from limbeck.engine.fit import example_of, task_of

    task = asked(leaf.task, leaf.output, task_of(data))
    known = isinstance(data, Data)
    return Case(
        name=data.name if known else leaf.data,
        data=data,
        task=task,
        outputs=leaf.num_outputs or (data.outputs if known else None),
        example=example_of(data, nn.Identity(), task),
        view=_view(leaf),
        teacher_outputs=leaf.get("teacher_num_outputs"),
        new_head=bool(leaf.get("new_head")),
    )


def shape_of(inputs: Any) -> tuple[int, ...] | None:
    """Return the shape of one input; None where it is no tensor."""
    return tuple(inputs.shape[1:]) if isinstance(inputs, Tensor) else None


def samples_in(loader: Loader, task: Task) -> int:
    """Return how many samples a loader has; one of the user's own is read for it."""
    return len(loader.ids) if isinstance(loader, Epochs) else sum(samples(task.target(batch)) for batch in loader)


def _view(leaf: Namespace) -> dict[str, Any]:
    """Return what was said of how the teacher is fed and read."""
    view: dict[str, Any] = {}
    if (key := leaf.get("teacher_output")) is not None:
        view["output"] = answer_at(key)
    if (name := leaf.get("teacher_inputs")) is not None:
        module, _, attribute = name.partition(":")
        view["inputs"] = find(name, module, attribute)
    if (classes := leaf.get("teacher_classes")) is not None:
        view["classes"] = classes
    return view
