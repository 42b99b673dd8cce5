"""Ask a teacher once: write what it says of the training samples into a folder, from which trainings read it."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.batches import take
from limbeck.core.files import keep
from limbeck.core.finding import no_better
from limbeck.core.frozen import Frozen, frozen
from limbeck.core.method import Method
from limbeck.core.objective import Source, T
from limbeck.core.options import ranged
from limbeck.core.stage import Stage
from limbeck.core.task import Batch, Task, identified, numbers_of
from limbeck.data.cache import Cache, Kept, Numbers
from limbeck.data.cached import made_with, refuse_other_data, uncached
from limbeck.data.epochs import Epochs
from limbeck.data.identity import of_loader
from limbeck.data.repeatable import Repeatable, splits
from limbeck.engine.asking import Asked, Asking, asked_of, smallest
from limbeck.engine.fit import task_of
from limbeck.engine.named import Namer, data_of
from limbeck.engine.taught import (
    MEASURED,
    NEAR,
    alike,
    apart,
    facts_of,
    places,
    refuse_another_teacher,
    said,
    shown_at,
    some,
)
from limbeck.measure.evaluate import Measurement, batches
from limbeck.verbs.check.setup import device_of
from limbeck.verbs.compare import progress_bar

logger = logging.getLogger("limbeck")

SAME = 0.01
"""How far answers to a sample in a batch and in half of it may be apart, in the spread from sample to sample: rounding."""

SHARD, ROWS, SHARDS = 2**27, 8192, 256
"""Of a shard: bytes at most, about, which are held in memory, and lost when a builder is killed; samples at least, where
these are no more bytes; and how many of them a view has about, of many small answers."""


@dataclass(frozen=True)
class Estimate:
    """What a cache will take.

    Args:
        samples: N.
        views: V.
        seconds: Of the teacher, in one process here.
        places: The bytes of a sample in a view, by place.
    """

    samples: int
    views: int
    seconds: float
    places: Mapping[str, int]

    @property
    def bytes(self) -> int:
        """On the disk."""
        return self.samples * self.views * sum(self.places.values())


@dataclass(frozen=True)
class Fidelity:
    """How close what is kept is to what the teacher says.

    Args:
        place: The layer, ``""`` for the answer.
        cosine: The smallest of a sample's.
        difference: The largest of a number; of log-probabilities where the largest are kept.
        numbers: The type on disk.
        samples: How many were asked of again.
        top: How many of the largest log-probabilities are kept, if not all of the answer.
        ok: Whether it is what this type, and the number of classes that is kept, leave of the answers.
    """

    place: str
    cosine: float
    difference: float
    numbers: str
    samples: int
    top: int | None
    ok: bool


@ranged
def build_cache(
    folder: str | os.PathLike[str],
    teacher: nn.Module | str,
    data: Any,
    *,
    methods: Iterable[Method | Iterable[Stage]] = (),
    layers: Sequence[str] = (),
    views: int | None = None,
    view_seed: int = 0,
    numbers: Numbers = "float16",
    top: int | None = None,
    task: Task | None = None,
    accelerator: str = "auto",
    progress: bool | None = None,
    tell: Callable[[Estimate], object] = lambda estimate: None,
) -> Cache:
    """Ask a teacher of every training sample, and keep what it says; `limbeck.cached` lets trainings read it.

    A builder that was killed goes on where it was, by the same call. Several may build one cache at once, on one machine or
    on several that share the folder: each takes the next shard that no other is at.

    Args:
        folder: Where the cache is to lie.
        teacher: The network to ask; or its name with its weights, as ``"resnet20@runs/teacher"``.
        data: As for `limbeck.fit`, or a name. A loader of your own must serve ids, and where it augments the number of the
            view, see `limbeck.cached`.
        methods: Methods whose teacher it is: all that they read of it is kept, layers after the functions through which
            they see them where these leave less, as the attention maps of `limbeck.at`. By default the answer alone is
            kept, which serves kd, dkd, dist, logits and all else that compares answers.
        layers: Layers to keep besides, whole.
        views: V, in how many ways each sample looks, in [1, 9999]; a training goes through them in turn, epoch by epoch. By
            default 8, which is ours, and 1 where samples always look the same.
        view_seed: What the views are drawn by, in [0, 4294967295].
        numbers: The type on disk, ``"float16"`` or ``"float32"``: the second keeps the very numbers that the teacher gave.
        top: Of the answer keep as many of the largest log-probabilities alone, at least 1, and share out what remains
            evenly. At a high temperature few of many classes are another distribution: `verify_cache` shows how close.
        task: What the teacher is made to do; by default the data's.
        accelerator: As for `limbeck.fit`.
        progress: Show a progress bar; by default where standard error is a terminal.
        tell: Is told what it will take before it begins.

    Raises:
        ValueError: A teacher whose answers depend on the batch or on chance, answers of several sizes, a loader whose
            samples cannot be told apart, too little room on the disk, or another cache in the folder.
        OSError: The disk is full, say: what is finished stays.

    Example:
        >>> import tempfile
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> cache = limbeck.build_cache(tempfile.mkdtemp(), teacher, data, views=2)
        >>> cache.views, list(cache.places)
        (2, [''])
        >>> limbeck.distill(student, teacher, limbeck.cached(data, cache), epochs=2).finished
        True
    """
    data, task, asked = _given(teacher, data, task)
    train, val, test, _ = splits(data, seed=0)
    of = asked_of(train, views, view_seed)
    if top is not None and not task.one_class:
        raise ValueError(f"top={top} keeps the likeliest of classes of which one is right, and in {task.name} none is")
    asked.to(device_of(accelerator))
    batch, _, _ = some(of.loader, of.batch_size)
    found = smallest(asked, task, batch, _wanted(methods, layers, task))
    wanted = {name: place for name, (place, _) in found.items()}
    kept = [Kept(name, tuple(shown.shape[1:]), numbers, None if name else top) for name, (_, shown) in found.items()]
    _refuse_fickle(asked, task, batch, found)
    _refuse_rounded(kept, found)
    ask, each = Asking(asked, task, wanted, of), sum(one.bytes for one in kept)
    tell(Estimate(of.samples, of.views, ask.seconds(batch), {one.place: one.bytes for one in kept}))
    cache = Cache.create(
        folder,
        samples=of.samples,
        places=kept,
        made_with={**made_with(of.loader), "torch": torch.__version__, "teacher": facts_of(asked, task)},
        views=of.views,
        view_seed=of.seed,
        rows=_rows(of, each),
    )
    _refuse_no_room(cache, each)
    with progress_bar(progress) as bar:
        missing = sum(len(cache.ids_of(shard)) for _, shard in cache.missing())
        line = bar.add_task("asking the teacher", total=missing)
        ask.into(cache, lambda samples: bar.advance(line, samples))
        bar.update(line, description="measuring the teacher", completed=missing)
        _measure(cache, asked, task, {"val": val, "test": test})
    return cache


@ranged
def verify_cache(
    folder: str | os.PathLike[str],
    teacher: nn.Module | str | None,
    data: Any,
    *,
    methods: Iterable[Method | Iterable[Stage]] = (),
    samples: int = 256,
    task: Task | None = None,
    accelerator: str = "auto",
) -> list[Fidelity]:
    """Compare a cache's files with their checksums, and ask the teacher again of some samples.

    Args:
        folder: Where the cache lies.
        teacher: Who was asked; None of one that is elsewhere: then the files alone are compared, and the data.
        data: As for `build_cache`.
        methods: Those that it was built for, where layers are kept after functions of theirs.
        samples: How many to ask of, at least 1, of several views.
        task: As for `build_cache`.
        accelerator: As for `limbeck.fit`.

    Returns:
        A line for each place; none where there is nobody to ask.

    Raises:
        Damaged, FileNotFoundError: A file is not what was written, or is not there.
        ValueError: It is not finished, it is of another teacher or of other data, or nobody says by which functions of
            which method its layers are seen.
    """
    cache = Cache(folder)
    cache.refuse_unfinished()
    for _ in cache.check():
        pass
    data = uncached(data_of(data, 0))
    of = asked_of(splits(data, seed=0).train, cache.views, cache.view_seed)
    refuse_other_data(cache, of.loader)
    if teacher is None:
        return []
    _, task, asked = _given(teacher, data, task)
    refuse_another_teacher(cache, asked, task)
    asked.to(device_of(accelerator))
    named = {place.after(done): place for place in _wanted(methods, (), task) for done in range(len(place.steps) + 1)}
    seen = {name: named.get(name) or (T[name] if " > " not in name else None) for name in cache.places}
    if unknown := [name for name, place in seen.items() if place is None]:
        raise ValueError(f"{said(unknown)} is kept after functions of a method: say which, methods= (--methods)")
    ask = Asking(asked, task, {name: place for name, place in seen.items() if place is not None}, of)
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in cache.places}
    for batch, ids, views in _looked_at(of, samples):
        shown, there = ask.answer(batch), cache.read(ids, views)
        for name, pairs in rows.items():
            pairs.append((shown[name].cpu().float(), there[name]))
    return [_fidelity(cache.places[name], *map(torch.cat, zip(*pairs, strict=True))) for name, pairs in rows.items()]


def _given(teacher: nn.Module | str, data: Any, task: Task | None) -> tuple[Any, Task, Frozen]:
    """Return data, task and teacher as they are meant; the teacher moves alone."""
    data = uncached(data_of(data, seed=0))
    task = task or task_of(data)
    asked = frozen(Namer(data, task).teacher(teacher)).again()
    if asked.mode != "eval":
        raise ValueError(
            f"what the teacher says cannot be kept: it teaches in the mode {asked.mode!r}, in which answers depend on the "
            "batch or on chance: take mode='eval'"
        )
    return data, task, asked


def _wanted(methods: Iterable[Method | Iterable[Stage]], layers: Sequence[str], task: Task) -> list[Source]:
    """Return the places that methods read, the answer where none is named, and layers."""
    each = [[place for stage in _stages(method) for place in places(stage.method)] for method in methods]
    if not all(each):
        raise ValueError(
            "one of the methods reads nothing of a teacher that could be kept, as jacobian, which differentiates it, or "
            "dml, which has none: leave it out"
        )
    read = [place for own in each for place in own]
    whole = [T[layer] for layer in layers]
    if task.ask is None:
        return [*(read or [T]), *whole]
    if not read + whole or any(not place.path for place in read):
        raise ValueError(
            f"in {task.name} a teacher is asked about what the student shows, and its answer cannot be kept: name layers, "
            "layers= (--layers), which do not depend on it"
        )
    return read + whole


def _stages(method: Method | Iterable[Stage]) -> Iterable[Stage]:
    return [Stage(method)] if isinstance(method, Method) else method


def _refuse_fickle(teacher: Frozen, task: Task, batch: Batch, found: Mapping[str, tuple[Source, Tensor]]) -> None:
    """See that what the teacher shows of a sample depends on that sample alone."""
    _, whole = next(iter(found.values()))
    few = list(range(max(1, len(whole) // 2)))
    alone = shown_at(teacher, task, take(batch, few), {name: place for name, (place, _) in found.items()})
    for name, (_, values) in found.items():
        if alone[name].shape[1:] != values.shape[1:] or apart(alone[name], values[few]) > SAME:
            raise ValueError(
                f"the teacher's {name or 'answer'!r} of a sample depends on what else is in the batch, or on chance, and "
                "cannot be kept: batch norm without its statistics, noise, padding to the longest"
            )


def _refuse_rounded(kept: Sequence[Kept], found: Mapping[str, tuple[Source, Tensor]]) -> None:
    """See that the type on disk leaves what the teacher shows."""
    for one in kept:
        _, shown = found[one.place]
        if one.top is None and (lost := apart(shown, one.again(shown))) > SAME:
            raise ValueError(
                f"{one.numbers} leaves too little of the teacher's {one.place or 'answer'!r}, {lost:.0%} of its spread is "
                "lost: take numbers='float32'"
            )


def _rows(of: Asked, each: int) -> int:
    """Return the samples of a shard: whole batches."""
    rows = min(max(ROWS, of.samples // SHARDS), SHARD // each)
    return max(1, rows // of.batch_size) * of.batch_size


def _refuse_no_room(cache: Cache, each: int) -> None:
    """See that what is missing fits on the disk."""
    needed = each * sum(len(cache.ids_of(shard)) for _, shard in cache.missing())
    free = shutil.disk_usage(cache.folder).free
    if needed > free:
        raise ValueError(
            f"the cache needs {needed / 1e9:.1f} GB more, and the disk of {cache.folder} has {free / 1e9:.1f} GB left: "
            "keep fewer views= or layers=, take top=, or another disk"
        )


def _measure(cache: Cache, teacher: Frozen, task: Task, held_out: Mapping[str, Epochs | Repeatable | None]) -> None:
    """Keep what the teacher reaches on held-out data, so that trainings need not measure it; not of one that guesses."""
    path = cache.folder / MEASURED
    if path.exists():
        return
    found = {}
    for split, loader in held_out.items():
        if loader is not None and (values := _values(teacher, task, loader)) is not None:
            found[split] = {"data": of_loader(loader), "values": values}
    keep(path, found)


def _values(teacher: Frozen, task: Task, loader: Epochs | Repeatable) -> dict[str, float] | None:
    measurement = Measurement(task)
    try:
        with torch.no_grad():
            for batch in batches(loader, teacher):
                measurement.update(teacher, batch)
    except (ValueError, IndexError, RuntimeError) as error:  # its answers are none to these targets
        logger.info("the teacher was not measured, and each training tries it: %s", error)
        return None
    if not measurement.samples:
        return None
    values = measurement.compute()
    if measurement.guess is not None and no_better(
        task.score, values[task.score.name], measurement.guess, measurement.samples
    ):
        return None  # of which each training is to warn
    return values


def _looked_at(of: Asked, samples: int) -> Iterator[tuple[Batch, Tensor, Tensor]]:
    """Yield batches of some samples in several views, with their ids and the numbers of the views."""
    loader = of.loader
    if isinstance(loader, Repeatable):
        for batch in loader:
            if samples <= 0:
                return
            ids = loader.ids(batch)
            yield batch, ids, numbers_of(batch, ids)
            samples -= len(ids)
        return
    generator = torch.Generator().manual_seed(0)
    rounds = -(-samples // loader.batch_size)
    spread = torch.linspace(0, of.views - 1, max(rounds, min(of.views, 8))).round().long()
    views = sorted(set(spread.tolist()))
    for view in views:
        chosen = torch.randperm(len(loader.ids), generator=generator)[: -(-samples // len(views))]
        chunks = torch.split(loader.ids[chosen], loader.batch_size)
        for ids, batch in zip(chunks, loader.seen(view, chunks), strict=True):
            own = identified(batch, ids)
            yield batch, own, torch.full_like(own, view)


def _fidelity(kept: Kept, shown: Tensor, there: Tensor) -> Fidelity:
    cosine, difference = alike(shown if kept.top is None else shown.log_softmax(-1), there)
    far = apart(shown if kept.top is None else kept.again(shown), there)
    return Fidelity(kept.place, cosine, difference, kept.numbers, len(shown), kept.top, far <= NEAR)
