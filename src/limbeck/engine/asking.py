"""Ask a teacher of all samples, shard by shard, and write down what it says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from limbeck.core.batches import take
from limbeck.core.files import hold
from limbeck.core.frozen import Frozen
from limbeck.core.objective import Source
from limbeck.core.task import Batch, Task, identified, inputs_of, numbers_of, views_of
from limbeck.core.trace import Trace
from limbeck.data.cache import LOCKS, Array, Cache
from limbeck.data.epochs import Epochs
from limbeck.data.randomness import Draws
from limbeck.data.repeatable import Repeatable, samples_in
from limbeck.engine.taught import shown_at

VIEWS = 8
"""In how many ways a sample looks, where it is augmented and nobody says; ours, see docs/cache.md for what fewer cost."""
PASSES = 4
"""How often a loader of the user's own is gone through for samples that it left out, as one with ``drop_last`` does."""
WAIT = 0.5
"""Seconds between two looks at the shards that other builders are at."""
LOOKED_AT = 64
"""Samples by which it is seen whether another view shows them otherwise."""


@dataclass(frozen=True)
class Asked:
    """The samples that a teacher is asked of.

    Args:
        loader: The training data; of ours one whose views cycle.
        views: V, in how many ways each looks.
        seed: What these are drawn by.
    """

    loader: Epochs | Repeatable
    views: int
    seed: int

    @cached_property
    def samples(self) -> int:
        """N: ids are 0 to N − 1."""
        if isinstance(self.loader, Epochs):
            return int(self.loader.ids.max()) + 1
        if isinstance(self.loader.loader, DataLoader | list):
            return samples_in(self.loader)
        return 1 + max(int(self.loader.ids(batch).max()) for batch in self.loader)

    @property
    def batch_size(self) -> int:
        """Of a batch, as a training sees it."""
        loader = self.loader
        return loader.batch_size if isinstance(loader, Epochs) else len(loader.ids(loader.first))


def asked_of(loader: Epochs | Repeatable, views: int | None, seed: int) -> Asked:
    """Return the samples that a teacher is to be asked of, in views that come again.

    Args:
        loader: The training data.
        views: How many; by default those of the data, `VIEWS` where these draw anew in each epoch, and one where samples
            always look the same.
        seed: What the views are drawn by.

    Raises:
        ValueError: The data have other views, or nobody can tell how their samples look.
    """
    if isinstance(loader, Repeatable):
        return _of_given(loader, views)
    if loader.views is not None:
        own = loader.views
        if views not in (None, own.count) or (views is not None and seed != own.seed):
            raise ValueError(
                f"the data have views={own.count} and view_seed={own.seed}, and views={views}, view_seed={seed} are asked "
                "for: say it once"
            )
        return Asked(loader, own.count, own.seed)
    if views is None:
        views = VIEWS if _varies(loader) else 1
    return Asked(loader.cycling(views, seed), views, seed)


def _varies(loader: Epochs) -> bool:
    """Whether samples look otherwise in another view."""
    first = loader.ids[:LOOKED_AT]
    one, other = (next(loader.cycling(2).seen(number, [first])) for number in range(2))
    return not _same(inputs_of(one), inputs_of(other))


def _of_given(loader: Repeatable, views: int | None) -> Asked:
    """See that a loader of the user's own says of which sample, and of which view of it, a batch is."""
    try:
        loader.ids(loader.first)
    except (ValueError, LookupError) as error:
        raise ValueError(
            "what a teacher says is kept by the sample's id, and these batches have none: serve (inputs, targets, ids), an "
            f"id the sample's index in the data set; or limbeck.data.Items(dataset, ...) does. {error}"
        ) from error
    if views_of(loader.first) is not None:
        if views is None:
            raise ValueError("the loader serves numbers of views: say how many there are, views= (--views)")
        return Asked(loader, views, 0)
    if views not in (None, 1):
        raise ValueError(
            f"views={views} of each sample are asked for, and the loader does not say which a batch shows: "
            "let it serve (inputs, targets, ids, numbers), and augment by id and number alone"
        )
    if _draws(loader):
        raise ValueError(
            "the loader shows a sample otherwise each time, and does not say how: what a teacher says of one look would "
            "teach another. Let limbeck.data.Items(dataset, transform=...) augment, which draws by (seed, view, id); or "
            "serve (inputs, targets, ids, numbers), number v of V views, and augment by id and number alone"
        )
    return Asked(loader, 1, 0)


def _draws(loader: Repeatable) -> bool:
    """Whether a loader of the user's own shows a sample of its first batch otherwise when it is asked again."""
    batches = in_order(loader)
    with Draws(0).apart():
        first = next(iter(batches))
    places = {row: place for place, row in enumerate(loader.ids(first).tolist())}
    with Draws(1).apart():
        for again in batches:
            mine = [place for place, row in enumerate(loader.ids(again).tolist()) if row in places]
            if mine:
                same = [places[row] for row in loader.ids(take(again, mine)).tolist()]
                return not _same(inputs_of(take(again, mine)), inputs_of(take(first, same)))
    return False


def _same(one: Any, other: Any) -> bool:
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def in_order(loader: Repeatable) -> Any:
    """Return torch's loader of a data set so that it serves all samples in order; another is as it is."""
    own = loader.loader
    if not isinstance(own, DataLoader) or not hasattr(own.dataset, "__getitem__"):
        return own
    return DataLoader(
        own.dataset,
        own.batch_size or len(loader.ids(loader.first)),
        num_workers=own.num_workers,
        collate_fn=own.collate_fn,
        pin_memory=own.pin_memory,
        timeout=own.timeout,
        worker_init_fn=own.worker_init_fn,
        multiprocessing_context=own.multiprocessing_context,
    )


@dataclass(frozen=True)
class Asking:
    """A teacher who is asked of samples.

    Args:
        teacher: On the device where it is to run.
        task: How it is asked.
        places: What of it is kept, by the names that it is kept under.
        of: The samples.
    """

    teacher: Frozen
    task: Task
    places: Mapping[str, Source]
    of: Asked

    def seconds(self, batch: Batch) -> float:
        """Return about how long it will take to ask of all, from a batch of these samples."""
        self.answer(batch)
        begun = time.perf_counter()
        shown = self.answer(batch)
        rows = len(next(iter(shown.values())).cpu())  # waits for the device
        return (time.perf_counter() - begun) / rows * self.of.samples * self.of.views

    def answer(self, batch: Batch) -> Trace:
        """Return what the teacher shows of a batch."""
        return shown_at(self.teacher, self.task, batch, self.places)

    def into(self, cache: Cache, tell: Callable[[int], object] = lambda samples: None) -> None:
        """Ask of all that a cache lacks, and write it there.

        Args:
            cache: The cache.
            tell: Is told how many samples were just asked of.
        """
        if isinstance(self.of.loader, Repeatable):
            with hold(cache.folder / LOCKS / "all", wait=True):  # samples come as they come: one builder asks of all
                self._gather(self.of.loader, cache, tell)
            return
        while left := cache.missing():
            taken = 0
            for view, shard in left:
                with hold(cache.lock(view, shard)) as mine:
                    if mine and not cache.has(view, shard):
                        cache.sweep(view, shard)
                        cache.write(view, shard, self._shard(self.of.loader, view, cache.ids_of(shard), tell))
                        taken += 1
            if not taken:
                time.sleep(WAIT)

    def _shard(self, loader: Epochs, view: int, ids: range, tell: Callable[[int], object]) -> Iterator[Trace]:
        """Yield what the teacher shows of a shard, in batches that are all full, as they are in a training."""
        size = loader.batch_size
        chunks = torch.split(torch.arange(ids.start, ids.stop), size)
        full = [*chunks[:-1], torch.cat([chunks[-1], torch.arange(size - len(chunks[-1])) % self.of.samples])]
        for chunk, asked, batch in zip(chunks, full, loader.seen(view, full), strict=True):
            places = {row: place for place, row in enumerate(identified(batch, asked).tolist())}
            rows = [places[row] for row in chunk.tolist()]
            yield {name: value[rows] for name, value in self.answer(batch).items()}
            tell(len(chunk))

    def _gather(self, loader: Repeatable, cache: Cache, tell: Callable[[int], object]) -> None:
        """Go through a loader of the user's own until every sample of every view was there."""
        left = dict.fromkeys(cache.missing())
        waiting: dict[tuple[int, int], _Shard] = {}
        for batch in self._passes(loader):
            if not left:
                return
            ids = loader.ids(batch).cpu()
            numbers = numbers_of(batch, ids).cpu()
            _refuse_beyond(ids, numbers, cache)
            keys = [(int(view), int(row) // cache.rows) for view, row in zip(numbers, ids, strict=True)]
            fresh = [
                at
                for at, key in enumerate(keys)
                if key in left and not (key in waiting and waiting[key].seen[int(ids[at]) % cache.rows])
            ]
            if not fresh:
                continue
            arrays = cache.arrays(self.answer(batch if len(fresh) == len(keys) else take(batch, fresh)))
            for key in dict.fromkeys(keys[at] for at in fresh):
                mine = [place for place, at in enumerate(fresh) if keys[at] == key]
                shard = waiting.setdefault(key, _Shard.like(arrays, len(cache.ids_of(key[1]))))
                shard.put([int(ids[fresh[place]]) % cache.rows for place in mine], mine, arrays)
                if shard.seen.all():
                    cache.write_arrays(*key, shard.arrays)
                    del left[key], waiting[key]
            tell(len(fresh))
        if left:
            served = sum(int(shard.seen.sum()) for shard in waiting.values())
            wanted = sum(len(cache.ids_of(shard)) for _, shard in left)
            raise ValueError(
                f"the loader never served {wanted - served} of {cache.samples * cache.views} samples in their views: let "
                f"it serve the ids 0 to {cache.samples - 1}, without drop_last, and all of {cache.views} views"
            )

    def _passes(self, loader: Repeatable) -> Iterator[Batch]:
        if (plain := in_order(loader)) is not loader.loader:
            yield from Repeatable(plain, loader.seed, train=False)
        for _ in range(self.of.views + PASSES):
            yield from loader


def _refuse_beyond(ids: Tensor, numbers: Tensor, cache: Cache) -> None:
    """Refuse ids and views of which there are not so many."""
    for values, what, count in ((ids, "ids", cache.samples), (numbers, "numbers of views", cache.views)):
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < count:
            raise ValueError(
                f"the loader serves the {what} {int(values.min())} to {int(values.max())}, and there are {count}: let it "
                f"serve 0 to {count - 1}, of samples the place in the data set that it goes through"
            )


@dataclass
class _Shard:
    """What is there of a shard."""

    arrays: dict[str, Array]
    seen: Array

    @classmethod
    def like(cls, arrays: Mapping[str, Array], rows: int) -> _Shard:
        """Return an empty one for rows like those of ``arrays``."""
        empty = {end: np.zeros((rows, *array.shape[1:]), array.dtype) for end, array in arrays.items()}
        return cls(empty, np.zeros(rows, bool))

    def put(self, rows: list[int], places: list[int], arrays: Mapping[str, Array]) -> None:
        """Put what is at ``places`` of ``arrays`` into rows."""
        for end, array in arrays.items():
            self.arrays[end][rows] = array[places]
        self.seen[rows] = True


def smallest(teacher: Frozen, task: Task, batch: Batch, wanted: Iterable[Source]) -> dict[str, tuple[Source, Tensor]]:
    """Return the places to keep by name: each as it is, or after those of its functions that leave least of it.

    Beside each place is what the teacher shows there of the batch.

    Raises:
        ValueError: A place that is no tensor with a sample a row, so that it cannot be kept.
    """
    every: dict[str, Source] = {}
    for place in wanted:
        every |= {place.after(done): place for done in range(place.plain_steps + 1)}
    shown = shown_at(teacher, task, batch, every)
    found: dict[str, Source] = {}
    for place in dict.fromkeys(wanted):
        names = [place.after(done) for done in range(place.plain_steps + 1)]
        sizes = [_size(name, shown[name]) for name in names]
        found[names[sizes.index(min(sizes))]] = place
    return {
        name: (place, shown[name]) for name, place in found.items() if name == place.path or place.path not in found
    }


def _size(name: str, value: Any) -> int:
    if isinstance(value, Tensor) and value.ndim and value.is_floating_point():
        return value[:1].numel()
    raise ValueError(
        f"the teacher's {name or 'answer'!r} is no tensor of numbers with a sample a row, and cannot be kept: name layers "
        "that are, as those of a backbone (`limbeck layers` lists them), or take the answer out of it, limbeck.Frozen("
        "teacher, output=...)"
    )
