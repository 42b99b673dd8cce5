"""What a teacher said of a data set, on disk: written once, and read from then on in place of asking again.

The format is plain, so that others can write it too. A folder holds

- ``cache.json``: ``samples`` N, ``views`` V, ``rows`` R in a shard, ``role`` (``"teacher"``), ``places``, ``made_with``;
- ``view-0000/00000.json`` for each view and shard: ``files``, the SHA-256 of each of the shard's files by its name;
- ``view-0000/00000.FILE.npy`` for each view, shard and place: an array of R rows, as `numpy.save` writes it, the last of a
  view shorter. Row r of shard s is the sample of id s · R + r.

A place says what of the teacher is kept: ``place``, its layer, ``""`` for the answer; ``file``, its name in files;
``numbers``, ``"float16"`` or ``"float32"``; ``shape`` of one sample. With ``top`` k an answer is its k largest
log-probabilities: ``FILE.npy`` is (R, ..., k + 1) then, the last the logarithm of the mass that remains, and
``FILE.top.npy``, (R, ..., k), their classes, int16 where there are fewer than 32,768, and else int32.

A shard is there when its ``.json`` is, which is written last.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from limbeck.core.files import Damaged, hold, keep, read, sha256_of, write
from limbeck.core.trace import Trace
from limbeck.data.identity import differences

Numbers = Literal["float16", "float32"]
"""In which floating-point type what is kept is kept."""
Array = np.ndarray[Any, Any]

FACTS = "cache.json"
LOCKS = ".locks"
"""The folder of what one builder at a time holds."""
OPEN = 512
"""Arrays that are mapped at once; each takes a file handle, of which a process has 1024 by default."""
BUILD = "build it again, limbeck cache build"


@dataclass(frozen=True)
class Kept:
    """What is kept of a teacher at one place.

    Args:
        place: The layer, ``""`` for the answer; see `limbeck.core.objective.Source.after`.
        shape: Of one sample there.
        numbers: The type on disk.
        top: Of an answer, the number of classes whose log-probabilities are kept; None: all of it, as it is.
        file: Its name in files; by default that of the place.
    """

    place: str
    shape: tuple[int, ...]
    numbers: Numbers = "float16"
    top: int | None = None
    file: str = ""

    def __post_init__(self) -> None:
        if self.numbers not in ("float16", "float32"):
            raise ValueError(f"numbers must be 'float16' or 'float32', got {self.numbers!r}")
        if self.top is not None and not (self.shape and 0 < self.top < self.shape[-1]):
            raise ValueError(
                f"top must be fewer classes than there are, and one at least: {self.place or 'the answer'} has shape "
                f"{self.shape}, got top={self.top}"
            )
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "file", self.file or re.sub(r"[^\w.=-]+", "-", self.place) or "answer")

    @property
    def bytes(self) -> int:
        """Of one sample in one view."""
        return sum(math.prod(shape) * np.dtype(kind).itemsize for kind, shape in self.files().values())

    def arrays(self, values: Tensor) -> dict[str, Array]:
        """Return the arrays that hold what a teacher showed, (N, ...), by the ends of their files' names.

        Raises:
            ValueError: Another shape, or numbers that the type cannot hold.
        """
        if tuple(values.shape[1:]) != self.shape:
            raise ValueError(
                f"{self.place or 'the answer'!r} has shape {tuple(values.shape[1:])} in a sample, and {self.shape} was to "
                "be kept: where it depends on what else is in the batch (padding, several sizes), it cannot be"
            )
        if self.top is None:
            return {f"{self.file}.npy": self._narrow(values)}
        logs = values.float().log_softmax(-1)
        best, classes = logs.topk(self.top, -1)
        rest = logs.scatter(-1, classes, -math.inf).logsumexp(-1, keepdim=True)
        floor = torch.finfo(getattr(torch, self.numbers)).min
        return {
            f"{self.file}.npy": self._narrow(torch.cat([best, rest], -1).clamp(min=floor)),
            f"{self.file}.top.npy": classes.cpu().numpy().astype(self._ordinal),
        }

    def tensor(self, arrays: Mapping[str, Array]) -> Tensor:
        """Return what a teacher showed from rows of the arrays, float32 (N, ...).

        Where the largest log-probabilities are kept, what remains is shared out evenly among the other classes.
        """
        values = torch.from_numpy(arrays[f"{self.file}.npy"]).float()
        if self.top is None:
            return values
        classes = torch.from_numpy(arrays[f"{self.file}.top.npy"]).long()
        each = values[..., self.top :] - math.log(self.shape[-1] - self.top)
        return each.expand(*each.shape[:-1], self.shape[-1]).scatter(-1, classes, values[..., : self.top])

    def again(self, values: Tensor) -> Tensor:
        """Return what a teacher showed as it would be read back, float32 (N, ...)."""
        return self.tensor(self.arrays(values))

    def files(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the ends of its files' names, with the type and the shape of a row."""
        if self.top is None:
            return {f"{self.file}.npy": (self.numbers, self.shape)}
        rows = self.shape[:-1]
        return {
            f"{self.file}.npy": (self.numbers, (*rows, self.top + 1)),
            f"{self.file}.top.npy": (self._ordinal, (*rows, self.top)),
        }

    @property
    def _ordinal(self) -> str:
        return "int16" if self.shape[-1] < 2**15 else "int32"

    def _narrow(self, values: Tensor) -> Array:
        narrow = values.detach().to(getattr(torch, self.numbers))
        if not bool(narrow.isfinite().all()):
            wide = "" if bool(values.isfinite().all()) else " before they are kept"
            raise ValueError(
                f"the teacher's {self.place or 'answer'!r} has numbers that are not finite{wide}, and a largest of "
                f"{float(values.abs().max()):g}: "
                + ("look at the teacher" if wide else f"{self.numbers} cannot hold them, take numbers='float32'")
            )
        return narrow.cpu().numpy()


class Cache:
    """What a teacher said of a data set's training samples, in a folder.

    It is made by `limbeck.build_cache` or by `Cache.create`. A shard's checksum is compared when it is first read in a
    process; nothing that is not what was written is ever read.

    Args:
        folder: Where it lies.

    Raises:
        FileNotFoundError: There is none.
        Damaged: Its facts are not what was written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> cache = Cache.create(folder, samples=5, places=[Kept("", (3,))], made_with={"teacher": "a service"})
        >>> cache.write(0, 0, [{"": torch.randn(5, 3)}])
        >>> Cache(folder).read(torch.tensor([4, 0]), torch.tensor([0, 0]))[""].shape
        torch.Size([2, 3])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if not (self.folder / FACTS).is_file():
            raise FileNotFoundError(f"{folder} is no cache, without {FACTS}: `limbeck cache build` makes one")
        facts = read(self.folder / FACTS, BUILD)
        try:
            self.samples, self.views, self.rows = (_count(facts, name) for name in ("samples", "views", "rows"))
            self.view_seed, self.role = int(facts.get("view_seed", 0)), str(facts.get("role", "teacher"))
            self.places = {one["place"]: Kept(**one) for one in facts["places"]}
            self.made_with: dict[str, Any] = dict(facts["made_with"])
        except (KeyError, TypeError, ValueError) as error:
            raise Damaged(f"{self.folder / FACTS} does not say what a cache holds ({error}): {BUILD}") from error
        self._mapped: OrderedDict[tuple[int, int], dict[str, Array]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is mapped: a copy, as in another process, maps its own."""
        return {**vars(self), "_mapped": OrderedDict()}

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        *,
        samples: int,
        places: Sequence[Kept],
        made_with: Mapping[str, Any],
        views: int = 1,
        view_seed: int = 0,
        rows: int = 8192,
        role: str = "teacher",
    ) -> Cache:
        """Begin an empty one; where there is one already, of the same facts, go on with it.

        Args:
            folder: Where it is to lie; made.
            samples: N, how many there are: ids are 0 to N − 1.
            places: What is kept.
            made_with: Facts about teacher and data, which are compared before it is used; of a teacher from elsewhere a
                word about it.
            views: V, in how many ways each sample looks.
            view_seed: What these are drawn by.
            rows: R, samples in a shard.
            role: Whose part the teacher plays.

        Raises:
            ValueError: There is another, or a count below 1.
        """
        facts = {
            "samples": samples,
            "views": views,
            "rows": rows,
            "view_seed": view_seed,
            "role": role,
            "places": list(map(asdict, _told_apart(places))),
            "made_with": dict(made_with),
        }
        for name in ("samples", "views", "rows"):
            _count(facts, name)
        path = Path(folder) / FACTS
        # what is hidden may be a cache's that another builder is beginning; `glob` finds nothing where there is no folder
        if any(not one.name.startswith(".") for one in path.parent.glob("*")) and not path.exists():
            raise ValueError(f"{folder} holds something else than a cache: name a folder of its own")
        with hold(path.parent / LOCKS / "facts", wait=True):  # of two who begin, one finds the other's
            if not path.exists():
                keep(path, facts)
        there = cls(folder)
        was, now = (_compared_of(one) for one in (there.facts(), facts))
        if other := next(differences(was, now), None):
            what, before, after = other
            raise ValueError(
                f"{folder} holds a cache with another {what}: {before}, and not {after}. Go on with the same, or take "
                "another folder"
            )
        return there

    def facts(self) -> dict[str, Any]:
        """Return what ``cache.json`` says."""
        return {
            "samples": self.samples,
            "views": self.views,
            "view_seed": self.view_seed,
            "rows": self.rows,
            "role": self.role,
            "places": list(map(asdict, self.places.values())),
            "made_with": self.made_with,
        }

    @property
    def shards(self) -> int:
        """In a view."""
        return -(-self.samples // self.rows)

    @property
    def bytes(self) -> int:
        """What all of it takes on disk."""
        return self.samples * self.views * sum(one.bytes for one in self.places.values())

    def missing(self) -> list[tuple[int, int]]:
        """Return what is not there yet: view and shard."""
        return [one for one in self._every() if not self.has(*one)]

    def refuse_unfinished(self) -> None:
        """Refuse a cache that lacks shards.

        Raises:
            ValueError: It does.
        """
        if missing := self.missing():
            raise ValueError(
                f"the cache in {self.folder} is not finished, {len(missing)} of {self.views * self.shards} shards are "
                "missing: `limbeck cache build` with the same options goes on"
            )

    def ids_of(self, shard: int) -> range:
        """Return the ids of a shard's samples."""
        return range(shard * self.rows, min(self.samples, (shard + 1) * self.rows))

    def lock(self, view: int, shard: int) -> Path:
        """Return what one builder at a time holds, see `limbeck.core.files.hold`."""
        return self.folder / LOCKS / f"{view:04d}-{shard:05d}"

    def sweep(self, view: int, shard: int) -> None:
        """Delete what a killed builder left beside a shard, which whoever holds its lock is about to make."""
        for path in self._seal(view, shard).parent.glob(f".{shard:05d}.*"):
            path.unlink(missing_ok=True)

    def write(self, view: int, shard: int, shown: Iterable[Mapping[str, Tensor]]) -> None:
        """Write a shard from what the teacher showed of its samples, in the order of their ids.

        Args:
            view: The number of the view.
            shard: The number of the shard.
            shown: Batch by batch, by place, (N, ...); a batch is made smaller as it comes.

        Raises:
            ValueError: A place too few, other shapes or numbers of samples, or numbers that cannot be held.
            OSError: The disk is full, say; what was there stays.
        """
        batches = [self.arrays(each) for each in shown]
        self.write_arrays(view, shard, {end: np.concatenate([each[end] for each in batches]) for end in batches[0]})

    def arrays(self, shown: Mapping[str, Tensor]) -> dict[str, Array]:
        """Return what the teacher showed of a batch as it is kept, by the ends of files' names."""
        if lost := [place for place in self.places if place not in shown]:
            raise ValueError(f"the cache keeps {lost[0] or 'the answer'!r} too, and is given {sorted(shown)}")
        return {end: array for place, one in self.places.items() for end, array in one.arrays(shown[place]).items()}

    def write_arrays(self, view: int, shard: int, arrays: Mapping[str, Array]) -> None:
        """Write a shard's arrays, and then what says that they are there; see `write`."""
        if any(len(array) != len(self.ids_of(shard)) for array in arrays.values()):
            raise ValueError(
                f"shard {shard} has {len(self.ids_of(shard))} samples, got {[len(array) for array in arrays.values()]}"
            )
        sums = {}
        for end, array in arrays.items():
            path = write(self._path(view, shard, end), partial(_save, array))
            sums[path.name] = sha256_of(path)
        keep(self._seal(view, shard), {"files": sums})

    def read(self, ids: Tensor, views: Tensor, places: Collection[str] | None = None) -> Trace:
        """Return what the teacher showed of samples.

        Args:
            ids: Theirs, int64 (N,).
            views: The number of the view of each, int64 (N,).
            places: Of these places; by default of all.

        Returns:
            By place, float32 (N, ...), on the CPU.

        Raises:
            FileNotFoundError: A shard is not there.
            Damaged: A shard is not what was written.
            IndexError: An id or a view beyond what was kept.
        """
        wanted = [self.places[place] for place in (self.places if places is None else places)]
        rows, of = ids.cpu().numpy(), views.cpu().numpy()
        if len(rows) and not (0 <= rows.min() <= rows.max() < self.samples and 0 <= of.min() <= of.max() < self.views):
            raise IndexError(
                f"{self.folder} has the ids 0 to {self.samples - 1} in {self.views} views, asked for ids {rows.min()} to "
                f"{rows.max()}, views {of.min()} to {of.max()}: the data are others than those that it was made of"
            )
        found = {
            end: np.empty((len(rows), *shape), kind) for one in wanted for end, (kind, shape) in one.files().items()
        }
        where = of * self.shards + rows // self.rows
        for one in np.unique(where):
            mine = np.flatnonzero(where == one)
            arrays = self._shard(*divmod(int(one), self.shards))
            for end, out in found.items():
                out[mine] = arrays[end][rows[mine] % self.rows]
        return {one.place: one.tensor(found) for one in wanted}

    def check(self) -> Iterator[tuple[int, int]]:
        """Read every shard that is there and compare its checksums; yield which.

        Raises:
            Damaged: One is not what was written.
        """
        for view, shard in self._every():
            if self._seal(view, shard).exists():
                self._shard(view, shard)
                yield view, shard

    def has(self, view: int, shard: int) -> bool:
        """Whether a shard is there, with all its files."""
        ends = ("json", *(end for kept in self.places.values() for end in kept.files()))
        return all(self._path(view, shard, end).exists() for end in ends)

    def _every(self) -> Iterator[tuple[int, int]]:
        return ((view, shard) for view in range(self.views) for shard in range(self.shards))

    def _seal(self, view: int, shard: int) -> Path:
        return self._path(view, shard, "json")

    def _path(self, view: int, shard: int, end: str) -> Path:
        return self.folder / f"view-{view:04d}" / f"{shard:05d}.{end}"

    def _shard(self, view: int, shard: int) -> dict[str, Array]:
        """Return a shard's arrays, mapped; the first time they are compared with their checksums."""
        key = (view, shard)
        if key not in self._mapped:
            self._mapped[key] = self._map(view, shard)
            held = max(1, OPEN // max(1, len(self._mapped[key])))
            while len(self._mapped) > held:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(key)
        return self._mapped[key]

    def _map(self, view: int, shard: int) -> dict[str, Array]:
        seal = self._seal(view, shard)
        remedy = f"delete {seal}, and `limbeck cache build` makes this shard again"
        sums = read(seal, "`limbeck cache build` with the same options makes what is missing").get("files", {})
        arrays = {}
        for kept in self.places.values():
            for end, (kind, shape) in kept.files().items():
                path = self._path(view, shard, end)
                if not path.exists():
                    raise FileNotFoundError(f"there is no file {path}, which {seal.name} speaks of: {remedy}")
                _refuse_another(path, sums.get(path.name), remedy)
                try:
                    array = np.load(path, mmap_mode="r", allow_pickle=False)
                except ValueError as error:
                    raise Damaged(f"{path} is no array ({error}): {remedy}") from error
                if array.dtype != kind or array.shape != (len(self.ids_of(shard)), *shape):
                    raise Damaged(
                        f"{path} is {array.dtype} {array.shape}, and {kind} {(len(self.ids_of(shard)), *shape)} is what "
                        f"{FACTS} says: {remedy}"
                    )
                arrays[end] = array
        return arrays


@dataclass(frozen=True)
class Brought:
    """What a loader brings along of a cache, see `limbeck.data.Epochs.answers`.

    Args:
        cache: The cache.
        places: What of it; None: all.
    """

    cache: Cache
    places: frozenset[str] | None = None

    def __call__(self, ids: Tensor, views: Tensor) -> dict[str, Trace]:
        """Return what teachers said of samples, by role."""
        return {self.cache.role: self.cache.read(ids, views, self.places)}


_compared: set[tuple[str, int, int, int]] = set()
"""Files whose checksum was compared in this process, with their size, time and place on the disk."""


def _refuse_another(path: Path, expected: str | None, remedy: str) -> None:
    """Compare a file with its checksum, once in a process."""
    status = path.stat()
    known = (str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    if known in _compared:
        return
    if expected is None or sha256_of(path) != expected:
        raise Damaged(
            f"{path} is damaged: it is not what its checksum was made of. Perhaps a disk or a copy failed; {remedy}"
        )
    _compared.add(known)


def _count(facts: Mapping[str, Any], name: str) -> int:
    count = facts[name]
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, got {count!r}")
    return count


def _compared_of(facts: Mapping[str, Any]) -> Any:
    """Return those facts by which caches are told apart, as JSON gives them back: which torch it was is no such."""
    made_with = {name: value for name, value in facts["made_with"].items() if name != "torch"}
    return json.loads(json.dumps({**facts, "made_with": made_with}))


def _save(array: Array, path: Path) -> None:
    with path.open("wb") as file:  # numpy.save would add a suffix of its own
        np.save(file, array, allow_pickle=False)


def _told_apart(places: Sequence[Kept]) -> list[Kept]:
    """Return places whose files have different names, on disks that do not tell capitals apart too."""
    taken: set[str] = set()
    found = []
    for kept in places:
        name, number = kept.file, 2
        while name.lower() in taken:
            name, number = f"{kept.file}-{number}", number + 1
        taken.add(name.lower())
        found.append(replace(kept, file=name))
    if twice := [one.place for one in places if [other.place for other in places].count(one.place) > 1]:
        raise ValueError(f"{twice[0] or 'the answer'!r} is to be kept twice: name each place once")
    if not found:
        raise ValueError("there is nothing to keep: name a place, '' for the answer")
    return found
