from __future__ import annotations

import bisect
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from limbeck.core.task import UNLABELLED
from limbeck.data import pictures
from limbeck.data.epochs import classes_in

if TYPE_CHECKING:
    from PIL import Image

    from limbeck.data.masks import Masks

Item = TypeVar("Item")

SMALL = 96
"""Longest side, in pixels, of images that are kept decoded in memory."""
LOOKED_AT = 20_000
"""How many files of a split are looked at before a training, spread over it: 0.1 ms a file where disks are quick."""
LITTER = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "lost+found", "Thumbs.db", "desktop.ini"}
"""What systems leave in folders under names that do not begin with a dot."""


@dataclass(frozen=True)
class Encoded:
    """Image files, as bytes in memory or as paths, decoded one at a time.

    Args:
        files: all of a split.
        origin: where they come from, for errors.
        rows: which of the files these images are; all by default.
        shards: where bytes come from, if from several files: each with its first row.
    """

    files: Sequence[bytes | str]
    origin: str
    rows: Tensor | None = None
    shards: Sequence[tuple[int, str]] = ()

    def __len__(self) -> int:
        return len(self.files) if self.rows is None else len(self.rows)

    def take(self, rows: Tensor) -> Encoded:
        """Return the images in ``rows``."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def path(self, index: int) -> str:
        """Return where an image is, for errors."""
        row = self._row(index)
        file = self.files[row]
        if isinstance(file, str):
            return os.fsencode(file).decode(errors="backslashreplace")  # not all names are text
        first, origin = 0, self.origin
        if self.shards:
            first, origin = self.shards[bisect.bisect(self.shards, row, key=lambda shard: shard[0]) - 1]
        return f"{origin}, image {row - first}"

    def read(self, index: int) -> Image.Image:
        """Return an image, decoded and upright, of mode L if it is grey and else RGB; see `limbeck.data.pictures`."""
        return self.seen(index)[0]

    def seen(self, index: int) -> tuple[Image.Image, pictures.Header]:
        """Return the same, and what its file says at its beginning."""
        return pictures.pixels(self.files[self._row(index)], self.path(index))

    def numbers(self, index: int) -> np.ndarray[Any, np.dtype[Any]]:
        """Return the values of a mask as they are, upright, (H, W)."""
        return pictures.numbers(self.files[self._row(index)], self.path(index))

    def header(self, index: int) -> pictures.Header:
        """Return what an image's file says at its beginning."""
        return pictures.header(self.files[self._row(index)], self.path(index))

    def _row(self, index: int) -> int:
        return index if self.rows is None else int(self.rows[index])


@dataclass(frozen=True)
class Part:
    """One split: its images, as pixels uint8 (N, C, H, W) or encoded, or rows float32 (N, D); and its targets (N, ...).

    Where the targets are ``masks``, those in memory are 0 for each sample: one group, of which some may be chosen.
    """

    images: Tensor | Encoded
    targets: Tensor
    masks: Masks | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Part:
        """Return the samples in ``rows``."""
        images = self.images[rows] if isinstance(self.images, Tensor) else self.images.take(rows)
        return Part(images, self.targets[rows], None if self.masks is None else self.masks.take(rows))

    def unlabelled(self, rows: Tensor) -> Part:
        """Return the same samples, with the labels in ``rows`` put away: -100, NaN of values."""
        nothing = math.nan if self.targets.is_floating_point() else UNLABELLED
        masks = None if self.masks is None else self.masks.hide(rows)
        return replace(self, targets=self.targets.index_fill(0, rows, nothing), masks=masks)


@dataclass(frozen=True)
class Source:
    """A data set as read: its official splits, the names of its classes or labels, and what the user should know of it."""

    train: Part
    val: Part | None
    test: Part
    classes: tuple[str, ...]
    note: str = ""

    @property
    def parts(self) -> dict[str, Part]:
        """The splits by name; validation where there is one."""
        splits = {"train": self.train, "val": self.val, "test": self.test}
        return {name: part for name, part in splits.items() if part is not None}


def assemble(name: str, parts: dict[str, Part], classes: tuple[str, ...]) -> Source:
    """Make a source of the splits train, val and test; without a test split, val serves as one."""
    note = ""
    test, val = parts.get("test"), parts.get("val")
    if test is not None and val is not None and len(test) and bool((test.targets == -1).all()):
        test, note = None, "the test split has no labels; "
    if test is None:
        test, val = val, None
        note += "the validation split serves as test, and validation samples are held out from train"
    if test is None:
        raise ValueError(f"{name}: expected a test or validation split, got {sorted(parts)}")
    return Source(parts["train"], val, test, classes, note)


def checked(name: str, source: Source) -> Source:
    """Return ``source`` if no split is empty, every class is one of those it names, and inputs are of one shape."""
    for split, part in source.parts.items():
        if not len(part):
            raise ValueError(f"{name}: expected at least one sample in the {split} split, got none")
        if isinstance(part.images, Tensor) and isinstance(source.train.images, Tensor):
            shape, wanted = (tuple(images.shape[1:]) for images in (part.images, source.train.images))
            if shape != wanted:
                raise ValueError(
                    f"{name}: expected inputs of shape {wanted} as in train, got {shape} in the {split} split"
                )
        if classes_in(part.targets) is None:
            continue
        wrong = (part.targets < 0) | (part.targets >= len(source.classes))
        if bool(wrong.any()):
            raise ValueError(
                f"{name}: expected labels in 0..{len(source.classes) - 1} for {len(source.classes)} classes, got "
                f"{int(part.targets.min())}..{int(part.targets.max())} in the {split} split, first in sample "
                f"{int(wrong.nonzero()[0])}"
            )
    return source


@dataclass
class Looks:
    """What image files of a set say at their beginnings.

    Args:
        sizes: How many have which width and height.
        first: The first of each size, by its name.
        turned: How many are turned by their EXIF data.
        frames: How many have several frames, of which the first is taken.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    first: dict[tuple[int, int], str] = field(default_factory=dict)
    turned: int = 0
    frames: int = 0

    def add(self, seen: pictures.Header, name: str) -> None:
        """Count an image in."""
        self.sizes[seen.size] += 1
        self.first.setdefault(seen.size, name)
        self.turned += seen.turned
        self.frames += seen.frames

    def join(self, others: Looks) -> None:
        """Count in what other files say."""
        self.sizes += others.sizes
        self.first = others.first | self.first
        self.turned += others.turned
        self.frames += others.frames

    def told(self) -> str:
        """Return the sizes in words, the most frequent first."""
        most = self.sizes.most_common(3)
        words = [f"{count:,} of {wide}x{high} ({self.first[wide, high]})" for (wide, high), count in most]
        return ", ".join(words) + f" and of {len(self.sizes) - 3} other sizes" * (len(self.sizes) > 3)


def looked(source: Source) -> Looks:
    """Look at the files of all splits, or at ``LOOKED_AT`` of each.

    Raises:
        ValueError: One is no image, or one that cannot be converted faithfully; the message names it.
    """
    looks = Looks()
    for part in source.parts.values():
        if isinstance(images := part.images, Encoded):
            rows = torch.linspace(0, len(images) - 1, min(len(images), LOOKED_AT), dtype=torch.float64).long().tolist()
            for row in track(rows, f"looking at {images.origin}"):
                seen, name = images.header(row), images.path(row)
                pictures.refuse_unknown_range(seen, name)
                looks.add(seen, name)
    return looks


def visible(path: Path, below: Path) -> bool:
    """Return whether a file or folder is data: no part of its path under a folder is hidden, or what systems leave."""
    return not any(part.startswith(".") or part in LITTER for part in path.relative_to(below).parts)


def entries(place: Path) -> list[Path]:
    """Return what lies in a folder and is data, in order; nothing where there is none."""
    return sorted(path for path in place.iterdir() if visible(path, place)) if place.is_dir() else []


def text(path: Path) -> str:
    """Return what a file says.

    Raises:
        ValueError: It is no text; the message names it.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got {error}: save it as UTF-8") from error


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield ``items`` under a progress bar that clears itself; without one where standard error is no terminal."""
    if len(items) < 2000 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, description=label, console=Console(stderr=True), transient=True)


def folder(name: str, root: str | Path | None) -> Path:
    """Return the data set's folder; raises where none is given."""
    if root is None:
        raise ValueError(f"{name} needs a folder to read from: pass --root DIR (root=...)")
    return Path(root).expanduser()


def missing(name: str, wanted: Iterable[str], places: Sequence[Path], *, downloads: bool) -> FileNotFoundError:
    """Return the error of a folder that does not hold the data set.

    Args:
        name: of the data set.
        wanted: names or patterns of the files looked for.
        places: folders they were looked for in, the user's root first.
        downloads: whether ``download=True`` is a remedy.
    """
    remedy = "Pass the folder that holds them as --root DIR (root=...)"
    remedy += ", or let them be downloaded to it with --download (download=True)." if downloads else "."
    return FileNotFoundError(
        f"{name}: looked for {', '.join(wanted)} in {', '.join(map(str, places))}; "
        f"{places[0]} {_holds(places[0])}. {remedy}"
    )


def _holds(root: Path) -> str:
    """What lies in a folder, as the end of a sentence."""
    if not root.is_dir():
        return "is a file, not a folder" if root.exists() else "does not exist"
    found = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
    if not found:
        return "is empty"
    return f"holds {', '.join(found[:8])}" + (f" and {len(found) - 8} more" if len(found) > 8 else "")
