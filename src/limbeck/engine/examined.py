"""A set-up as a task examines it, before the training and in `limbeck.check`."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from torch.utils.data import DataLoader

from limbeck.core.batches import count, take, tensors
from limbeck.core.batches import samples as samples_of
from limbeck.core.copied import copied
from limbeck.core.frozen import Frozen, bare, frozen
from limbeck.core.method import Method, reads
from limbeck.core.sound import FLOATS, refuse_unsound
from limbeck.core.task import Batch, Task
from limbeck.data import Epochs
from limbeck.data.epochs import generator, known
from limbeck.data.randomness import Draws
from limbeck.data.repeatable import Repeatable, Splits
from limbeck.engine.learner import teachers_of
from limbeck.measure.evaluate import Measurement

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Look:
    """Networks and data to look at: a `limbeck.core.finding.Examined`.

    Args:
        task: The task.
        networks: Those that training is for, by name.
        teachers: By role.
        loaders: The data.
        device: Where the networks are.
        samples: How many one look at the data takes.
        seconds: The time that it has.
    """

    task: Task
    networks: Mapping[str, nn.Module]
    teachers: Mapping[str, Frozen]
    loaders: Splits
    device: torch.device
    samples: int
    seconds: float

    @property
    def outputs(self) -> int | None:
        """How many outputs the data say that a network needs, if they do."""
        return self.loaders.outputs

    @cached_property
    def batch(self) -> Batch:
        """The first training batch in which there is a label: few labels may leave a batch without."""
        train = self.loaders.train
        first = None
        for batch in islice(train, 20):
            first = batch if first is None else first
            target = self.task.target(batch)
            if not isinstance(target, Tensor) or bool(known(target).any()):
                first = batch
                break
        return move_data_to_device(first, self.device)

    @torch.no_grad()
    def answer(self, net: nn.Module) -> Any:
        """Return what a network answers to ``batch``, in eval mode and without gradients."""
        device = next(bare(net).parameters(), torch.empty(0)).device  # before a training, each network's own
        return self.task.feed(frozen(net), move_data_to_device(self.task.inputs(self.batch), device))

    def targets(self) -> Iterator[Any]:
        """Yield the targets of all splits: those of data by name all, those of a loader of the user's own a few."""
        for loader in self.loaders[:3]:
            if isinstance(loader, Epochs) and loader.targets is not None:
                yield loader.targets.cpu()[loader.ids]
            elif loader is not None:
                yield from (self.task.target(batch) for batch in self.some(loader))

    def held_out(self, share: float = 1.0) -> Iterator[Batch]:
        """Yield batches of validation data, or of training data where there is no other."""
        train, val, *_ = self.loaders
        yield from self.some(train if val is None else val, share)

    def some(self, loader: Epochs | Repeatable, share: float = 1.0) -> Iterator[Batch]:
        """Yield batches until there are enough samples or the time is up, or a share of both."""
        enough = int(share * self.samples)
        if isinstance(loader, Epochs):  # any of its samples, since the first may all be of one class
            loader = loader.plain()
            loader.ids = loader.ids[torch.randperm(len(loader.ids), generator=generator("check"))[:enough]]
        seen, end = 0, time.perf_counter() + share * self.seconds
        for batch in loader:
            yield move_data_to_device(batch, self.device)
            seen += samples_of(self.task.target(batch))
            if seen >= enough or time.perf_counter() > end:
                return


class _First(Look):
    """A look that costs one batch: what training sees first."""

    @cached_property
    def batch(self) -> Batch:
        """A batch to look at; what the training will see is not touched."""
        return move_data_to_device(_first(self.loaders.train), self.device)

    def targets(self) -> Iterator[Any]:
        """Yield what is known without reading further."""
        train = self.loaders.train
        yield train.targets if isinstance(train, Epochs) and train.targets is not None else self.task.target(self.batch)

    def held_out(self, share: float = 1.0) -> Iterator[Batch]:
        """Yield nothing: teachers are measured in the first validation."""
        return iter(())


def refuse_unfit(method: Method, loaders: Splits, precision: str = "32-true") -> None:
    """Find targets and networks that cannot go together before the first batch does, which on a GPU has no words for it.

    Args:
        method: The method.
        loaders: The data.
        precision: Lightning's name of that of the training.

    Raises:
        ValueError: A network without weights or with broken ones, one that cannot learn, or not in this precision; what
            the task finds wrong, or metrics without the task's score.
        TypeError: A network that cannot be copied, as it is to be looked at.
    """
    networks, teachers = method.networks(), dict(teachers_of(method))
    refuse_unsound(networks, {role: teacher.net for role, teacher in teachers.items()})
    refuse_types(method, _first(loaders.train), precision)
    where = [next(net.parameters(), torch.empty(0)).device for net in networks.values()]
    look = _First(method.task, networks, teachers, loaders, where[0], samples=1, seconds=0.0)
    found = [] if _is_unlabelled(method, loaders) else method.task.examine(look)
    wrong = [finding.message for finding in found if finding.status == "failed"]
    if wrong := wrong or [*filter(None, [one_left_over(method, loaders)])]:
        raise ValueError("\n".join(wrong))
    if loaders.val is None:
        return
    batch = _first(loaders.val)
    for net, device in zip(networks.values(), where, strict=True):
        _measure(net, move_data_to_device(batch, device), method.task)


def _is_unlabelled(method: Method, loaders: Splits) -> bool:
    """Whether batches hold no targets, and none are read."""
    if loaders.val is not None or loaders.test is not None or "target" in reads(method):
        return False
    try:
        method.task.target(_first(loaders.train))
    except (ValueError, LookupError):
        return True
    return False


def one_left_over(method: Method, loaders: Splits) -> str | None:
    """Say so where the last batch of an epoch is one sample on which a method cannot train: batch norm refuses it."""
    if last_of(loaders.train) != 1:
        return None
    trial = copied(method)  # statistics move
    trial.train()
    device = next((p.device for net in trial.networks().values() for p in net.parameters()), torch.device("cpu"))
    batch = move_data_to_device(take(_first(loaders.train), slice(1)), device)
    try:
        with Draws(0).apart():
            for _ in trial.step(batch, 0.5):
                pass
    except ValueError as error:
        return (
            f"the last batch of an epoch has one sample, and cannot be trained on ({error}): drop_last=True, or another "
            "batch_size"
        )
    return None


def last_of(loader: Epochs | Repeatable) -> int | None:
    """Return how many samples the last batch of an epoch has, of a loader that says so without being read."""
    own = loader.loader if isinstance(loader, Repeatable) else None
    if isinstance(own, DataLoader) and own.batch_size is not None and isinstance(own.sampler, Sized):
        rest = len(own.sampler) % own.batch_size
        return own.batch_size if own.drop_last or not rest else rest
    try:
        return count(own[-1]) if isinstance(own, list) else None
    except ValueError:  # its columns are no samples
        return None


def refuse_types(method: Method, batch: Batch, precision: str = "32-true") -> None:
    """Find floating-point types that cannot be trained together.

    Args:
        method: The method.
        batch: A training batch.
        precision: Lightning's name of that of the training; those that end in ``-true`` cast networks and inputs.

    Raises:
        ValueError: A student in half precision, or one that is fed another type than it takes; a teacher in half precision
            that the task asks parts of.
    """
    if method.task.ask is not None:
        for role, teacher in teachers_of(method):
            if halves := _of_type(teacher.net, HALVES):
                raise ValueError(
                    f"the {role} is in half precision ({halves[0]}), and {method.task.name} asks its parts: teacher.float()"
                )
    if precision.endswith("-true") and precision != "32-true":
        return
    inputs = method.task.inputs(batch)
    for name, net in method.networks().items():
        frozen(net)  # raises where no view can be had
        if halves := _of_type(net, HALVES, trains=True):
            raise ValueError(
                f"the network {name!r} has weights in half precision ({halves[0]}), in which small updates are lost: "
                f"{name}.float(), and precision='bf16-mixed' for its speed; or precision='bf16-true', if that is meant"
            )
        if {leaf.dtype for leaf in tensors(inputs) if leaf.dtype in FLOATS} not in (set(), {_type(net)}):
            _refuse_another_type(name, net, inputs, method.task)


@torch.no_grad()
def _refuse_another_type(name: str, net: nn.Module, inputs: Any, task: Task) -> None:
    """Run a network that may cast what it is fed by itself."""
    twin = copied(net).eval()
    here = move_data_to_device(inputs, next(twin.parameters()).device)
    try:
        task.feed(twin, here)
    except RuntimeError as error:
        given = next(leaf.dtype for leaf in tensors(inputs) if leaf.dtype in FLOATS)
        raise ValueError(
            f"the network {name!r} computes in {_type(net)} and is fed {given}: {name}.to({given}), or serve the other "
            "type; precision='64-true' casts both to float64"
        ) from error


def _type(net: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in net.parameters() if p.dtype in FLOATS), None)


def _of_type(net: nn.Module, types: Sequence[torch.dtype], *, trains: bool = False) -> list[str]:
    """Return the parameters of some types, or those of them that are trained."""
    return [name for name, p in net.named_parameters() if p.dtype in types and (p.requires_grad or not trains)]


@torch.no_grad()
def _measure(net: nn.Module, batch: Batch, task: Task) -> None:
    """Measure one batch for nothing but to see that the score is among the metrics."""
    measurement = Measurement(task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metrics that one batch is too little for
        measurement.update(frozen(net), batch)
        measurement.compute()


def _first(loader: Epochs | Repeatable) -> Batch:
    return loader.few(8) if isinstance(loader, Epochs) else loader.first
