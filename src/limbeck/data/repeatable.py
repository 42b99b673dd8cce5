"""What `fit` accepts as data, made repeatable, resumable and shared among processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from limbeck.core.batches import count, take
from limbeck.core.task import beside, ids_of, numbers_of
from limbeck.data import Data, names
from limbeck.data.epochs import Answers, Epochs, generator, share
from limbeck.data.randomness import Draws
from limbeck.data.sets import meant

_END = object()


class Splits(NamedTuple):
    """The loaders of one training, each at its beginning, and how many outputs the data say that a network needs."""

    train: Epochs | Repeatable
    val: Epochs | Repeatable | None
    test: Epochs | Repeatable | None
    outputs: int | None = None

    def few(self, count: int = 8) -> Any:
        """Return a batch of a few training samples; what the training will see is not touched."""
        return self.train.few(count) if isinstance(self.train, Epochs) else take(self.train.first, slice(count))


def splits(data: Any, seed: int) -> Splits:
    """Return the loaders in what the user gave: a `Data`, ``(train, val)``, ``(train, val, test)``, or ``train`` alone.

    Raises:
        TypeError: Something else, or a loader without a length.
        ValueError: An empty one.
    """
    if isinstance(data, Data):
        return splits((data.train, data.val, data.test), seed)._replace(outputs=data.outputs)
    loaders = data if isinstance(data, tuple) else (data,)
    if not 1 <= len(loaders) <= 3:
        raise TypeError(f"data must be train, (train, val) or (train, val, test), got a tuple of {len(loaders)}")
    ready = [
        None if loader is None else repeatable(loader, name, seed)
        for name, loader in zip(("train", "val", "test"), loaders, strict=False)
    ]
    train, val, test = [*ready, None, None][:3]
    if train is None:
        raise TypeError("data holds no training loader, got None")
    return Splits(train, val, test)


class Repeatable:
    """The user's own loader, whose batches depend on nothing but the seed and the epoch.

    It draws its random numbers apart from the training's, so that a run that goes on in the middle of an epoch asks it
    for the batches it has seen, skips them, and finds what it would have found. Among several processes each takes
    its share of every batch, unless the loader has a ``DistributedSampler`` and did so itself.

    Args:
        loader: Anything with a length that can be iterated again and again.
        seed: Of what it draws.
        train: Give every process equally many samples of a batch; what is left over is dropped.
    """

    def __init__(self, loader: Iterable[Any], seed: int, train: bool) -> None:
        self.loader, self.seed, self.train = loader, seed, train
        self.answers: Answers | None = None  # what teachers said of its samples, which batches then bring along
        self.ids: Callable[[Any], Tensor] = ids_of  # finds these in a batch
        self._view, self._batch, self._fresh = 0, 0, True
        self._own: list[Tensor] | None = None  # states of the loader's own generators when the view began

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # `repeatable` saw to it

    def __iter__(self) -> Iterator[Any]:
        if self._fresh and self._own is not None:  # loaded: the generators go back to where they were
            self.set_generator_states(self._own)
        if not self._fresh or self._batch >= len(self):
            self._view, self._batch = self._view + 1, 0
        self._fresh = False
        self._own = self.generator_states()
        sampler = getattr(self.loader, "sampler", None)
        if isinstance(sampler, DistributedSampler):
            sampler.set_epoch(self._view)
        view = self._view if self.train else 0  # what is measured stays the same
        draws = Draws(generator("user", self.seed, view).initial_seed())
        with draws.apart():
            batches = iter(self.loader)
        seen, done = self._batch, 0
        while True:
            with draws.apart():
                batch = next(batches, _END)
            if batch is _END:
                return
            done += 1
            if done > seen:
                self._batch = done
                own = self._share(batch)
                yield own if self.answers is None else taught(own, self.answers, self.ids)

    @cached_property
    def first(self) -> Any:
        """A batch to look at; what the training will see is not touched."""
        return self.look()

    def look(self) -> Any:
        """Return a batch that depends on nothing but the data, unless these draw from what nobody can see."""
        before = self.generator_states()
        for one in self._generators:
            one.manual_seed(0)
        with Draws(0).apart():
            batch = next(iter(self.loader))
        self.set_generator_states(before)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Return the view, how many of its batches were handed out, and the loader's own generators as it then began."""
        ended = self._batch >= len(self)  # the next view begins where this one ended
        return {"view": self._view, "batch": self._batch, "own": self.generator_states() if ended else self._own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next ``iter()`` go on after the batches that ``state`` counts."""
        self._view, self._batch, self._own, self._fresh = state["view"], state["batch"], state["own"], True

    @property
    def _generators(self) -> list[torch.Generator]:
        """Those that the loader or its sampler was given."""
        sampler, batches = (getattr(self.loader, name, None) for name in ("sampler", "batch_sampler"))
        holders = (self.loader, sampler, batches, getattr(batches, "sampler", None))
        found = [getattr(holder, "generator", None) for holder in holders]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())

    def generator_states(self) -> list[Tensor]:
        """Return the states of the generators that the loader or its sampler was given."""
        return [one.get_state() for one in self._generators]

    def set_generator_states(self, states: list[Tensor]) -> None:
        """Put back what `generator_states` returned."""
        for one, state in zip(self._generators, states, strict=True):
            one.set_state(state)

    def _share(self, batch: Any) -> Any:
        rank, world = share()
        if world == 1 or isinstance(getattr(self.loader, "sampler", None), DistributedSampler):
            return batch
        return shared(batch, rank, world, self.train)


class Cached:
    """A loader of the user's own whose batches bring along what teachers said of their samples, see `limbeck.cached`.

    Args:
        loader: It serves ids, and where it augments the number of the view, see `limbeck.core.task.views_of`.
        answers: What teachers said.
        ids: Finds the ids in a batch.
    """

    def __init__(self, loader: Iterable[Any], answers: Answers, ids: Callable[[Any], Tensor] = ids_of) -> None:
        self.loader, self.answers, self.ids = loader, answers, ids

    def __len__(self) -> int:
        return len(self.loader)  # type: ignore[arg-type]  # as the user's own

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield taught(batch, self.answers, self.ids)


def taught(batch: Any, answers: Answers, ids: Callable[[Any], Tensor] = ids_of) -> Any:
    """Return a batch with what teachers said of its samples."""
    own = ids(batch)
    return beside(batch, own, answers(own, numbers_of(batch, own)))


def samples_in(loader: Epochs | Repeatable) -> int:
    """Return how many samples a loader has: those of its data set, where it says so, and else as they are counted."""
    if isinstance(loader, Epochs):
        return len(loader.ids)
    own = loader.loader
    if isinstance(own, DataLoader) and isinstance(own.dataset, Sized):
        return len(own.dataset)
    return sum(count(batch) for batch in own) if isinstance(own, list) else len(loader) * count(loader.first)


def shared(batch: Any, rank: int, world: int, even: bool) -> Any:
    """Return a process's share of a batch.

    Args:
        batch: Columns of samples, see `limbeck.core.batches`.
        rank: Of the process.
        world: How many there are.
        even: Give all equally many, and drop what is left over.

    Raises:
        ValueError: Fewer samples than processes, or columns of different lengths.
    """
    samples = count(batch)
    if samples < world:
        raise ValueError(f"a batch of {samples} cannot be shared among {world} processes: use drop_last=True")
    return take(batch, slice(rank, samples - (samples % world if even else 0), world))


def _is_no_loader(given: Any) -> bool:
    """Whether it can be gone through, and yet gives no batches: arrays, and what belongs to another argument."""
    return isinstance(given, (dict, str, nn.Module)) or hasattr(given, "__array__")


def _advice(given: Any) -> str:
    """Say what to do with what is no loader."""
    if isinstance(given, str):
        return f"load data by their name, limbeck.data.load({given if given in names() else 'NAME'!r}){meant(given)}"
    if isinstance(given, dict):
        return "pass a tuple of loaders, (train, val) or (train, val, test)"
    if isinstance(given, nn.Module):
        return "the order is limbeck.fit(method, data) and limbeck.distill(student, teacher, data)"
    if hasattr(given, "__array__"):
        return (
            "wrap inputs and targets together in torch.utils.data.DataLoader(torch.utils.data.TensorDataset("
            "torch.as_tensor(inputs), torch.as_tensor(targets)), batch_size=64)"
        )
    return "wrap it in torch.utils.data.DataLoader"


def repeatable(loader: Any, name: str, seed: int) -> Epochs | Repeatable:
    """Return a loader at its beginning, made repeatable.

    Args:
        loader: One of ours, or anything with a length that yields batches.
        name: Of the split, for messages; "train" is shared out evenly.
        seed: Of what it draws, unless it is ours.

    Raises:
        TypeError: No loader, or one without a length.
        ValueError: An empty one.
    """
    if isinstance(loader, Epochs):
        return loader.with_seed(loader.seed)  # at its beginning, whatever it served before
    if isinstance(loader, Cached):
        own = repeatable(loader.loader, name, seed)
        own.answers, own.ids = loader.answers, loader.ids
        return own
    if isinstance(loader, list) and any(isinstance(each, (DataLoader, Epochs)) for each in loader):
        raise TypeError("got a list of loaders: pass a tuple, (train, val) or (train, val, test)")
    if not hasattr(loader, "__iter__") or not hasattr(loader, "__len__") or _is_no_loader(loader):
        raise TypeError(
            f"the {name} data must be a loader with a length that yields (inputs, targets), "
            f"got {type(loader).__name__}: {_advice(loader)}"
        )
    try:
        length = len(loader)
    except TypeError as error:  # a DataLoader over an IterableDataset without one
        raise TypeError(f"the {name} data has no length ({error}): give its dataset a __len__") from error
    if length == 0:
        raise ValueError(f"the {name} data is empty: 0 batches (with drop_last=True, lower batch_size)")
    return Repeatable(loader, seed, train=name == "train")
