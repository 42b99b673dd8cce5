"""Data that bring along what a teacher said of them."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from limbeck.core.files import VERSION
from limbeck.core.options import shown
from limbeck.core.task import ids_of, views_of
from limbeck.data.cache import Brought, Cache
from limbeck.data.epochs import Epochs, Views
from limbeck.data.identity import differences, looks_of
from limbeck.data.repeatable import Cached, Repeatable, repeatable, samples_in
from limbeck.data.sets import Data, load


def cached(
    data: Any,
    cache: Cache | str | os.PathLike[str],
    *,
    places: Collection[str] | None = None,
    ids: Callable[[Any], Tensor] = ids_of,
) -> Any:
    """Return data whose training batches bring along what a teacher said of them, so that it need not be asked again.

    `limbeck.fit` and all that trains by it see to it that the cache is of the method's teacher. In a loop of one's own
    nobody does::

        for batch in limbeck.cached(loader, "cache/resnet20"):
            limbeck.play(method, batch, optimizers)

    Where samples look otherwise from epoch to epoch, they look from now on as they did for the teacher: in the cache's
    views, one after the other. Validation and test data are as they were.

    Args:
        data: As for `limbeck.fit`, or a name. A loader of your own serves ids, and where it augments the number of the view
            as well, by which, with the id, it augments and by nothing else.
        cache: The folder.
        places: What of it; by default all, and in `limbeck.fit` what the method reads.
        ids: Finds the ids in a batch of your own loader.

    Raises:
        FileNotFoundError: There is no cache.
        ValueError: It is not finished, or of other data, views, or another version of limbeck.
    """
    if not isinstance(cache, (Cache, str, os.PathLike)):
        raise TypeError(f"the order is limbeck.cached(data, folder), got {shown(cache)} as the folder")
    cache = cache if isinstance(cache, Cache) else Cache(cache)
    data = load(data) if isinstance(data, str) else data
    cache.refuse_unfinished()
    told = Brought(cache, None if places is None else frozenset(places))
    if isinstance(data, Data):
        told_of = {**data.pipeline, "views": cache.views} if data.pipeline else data.pipeline
        return replace(data, train=_told(data.train, told, ids), pipeline=told_of)
    loaders = data if isinstance(data, tuple) else (data,)
    joined = (_told(loaders[0], told, ids), *loaders[1:])
    return joined if isinstance(data, tuple) else joined[0]


def uncached(data: Any) -> Any:
    """Return data whose batches bring nothing along, and are else as they were: their views cycle still."""
    if isinstance(data, Data):
        return replace(data, train=uncached(data.train))
    if isinstance(data, tuple):
        return (uncached(data[0]), *data[1:])
    if isinstance(data, Epochs):
        own = data.with_seed(data.seed)
        own.answers = None
        return own
    return data.loader if isinstance(data, Cached) else data


def _told(loader: Any, told: Brought, ids: Callable[[Any], Tensor]) -> Any:
    """Let a loader bring along what a cache holds, if that is of its samples."""
    cache = told.cache
    if isinstance(loader, Epochs):
        here = Views(cache.views, cache.view_seed)
        if loader.views not in (None, here):
            raise ValueError(
                f"the cache in {cache.folder} was made with views={here.count} and view_seed={here.seed}, and the data "
                f"have views={loader.views.count} and view_seed={loader.views.seed}: leave them out, and the cache's are "
                "taken"
            )
        own = loader.cycling(here.count, here.seed)
        own.answers = told
        refuse_other_data(cache, own)
        return own
    given = repeatable(loader, "train", 0)
    refuse_other_data(cache, given)
    if isinstance(given, Repeatable) and isinstance(given.loader, DataLoader) and samples_in(given) > cache.samples:
        raise ValueError(f"the cache in {cache.folder} has {cache.samples} samples, and the data {samples_in(given)}")
    if cache.views > 1 and isinstance(given, Repeatable) and views_of(given.first) is None:
        raise ValueError(
            f"the cache in {cache.folder} has {cache.views} views of each sample, and the loader does not say which a "
            "batch shows: let it serve (inputs, targets, ids, numbers), and augment by id and number alone"
        )
    return Cached(loader, told, ids)


def refuse_other_data(cache: Cache, loader: Epochs | Repeatable) -> None:
    """See that a cache was made of these samples, as they look here, by this limbeck.

    Raises:
        ValueError: It was not; the first difference.
    """
    was, now = cache.made_with, made_with(loader)
    known = {name: now[name] for name in now if name in was}
    if other := next(differences({name: was[name] for name in known}, known), None):
        path, before, after = other
        raise ValueError(
            f"the cache in {cache.folder} was made with another {path}: {before}, and not {after}. Take the same, or "
            "`limbeck cache build` another, in a folder of its own"
        )
    samples = int(loader.ids.max()) + 1 if isinstance(loader, Epochs) else 0
    if samples > cache.samples:
        raise ValueError(
            f"the cache in {cache.folder} has {cache.samples} samples, and the data {samples}: they are others"
        )


def made_with(loader: Epochs | Repeatable) -> dict[str, Any]:
    """Return what a cache is made with but for the teacher, as JSON can hold it."""
    facts = {"limbeck": importlib.metadata.version("limbeck"), "format": VERSION, "data": looks_of(loader)}
    return json.loads(json.dumps(facts))  # type: ignore[no-any-return]
