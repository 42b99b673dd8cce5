from __future__ import annotations

import io
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from limbeck.core.task import UNLABELLED
from limbeck.data.epochs import classes_in

if TYPE_CHECKING:
    from PIL import Image

    from limbeck.data.masks import Masks

Item = TypeVar("Item")

SMALL = 96
"""Longest side, in pixels, of images that are kept decoded in memory."""


@dataclass(frozen=True)
class Encoded:
    """Image files, as bytes in memory or as paths, decoded one at a time.

    Args:
        files: all of a split.
        origin: where they come from, for errors.
        rows: which of the files these images are; all by default.
    """

    files: Sequence[bytes | str]
    origin: str
    rows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.files) if self.rows is None else len(self.rows)

    def take(self, rows: Tensor) -> Encoded:
        """Return the images in ``rows``."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def path(self, index: int) -> str:
        """Return where an image is, for errors."""
        row = self._row(index)
        file = self.files[row]
        return f"{self.origin}, image {row}" if isinstance(file, bytes) else file

    def read(self, index: int) -> Image.Image:
        """Return an image, decoded."""
        from PIL import Image

        file = self.files[self._row(index)]
        image: Image.Image
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                image.load()
                return image
        except (OSError, SyntaxError, ValueError) as error:  # PIL has a SyntaxError for a broken PNG
            raise ValueError(f"{self.path(index)}: expected a whole image file, got {error}") from error

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
    """Return ``source`` if no split is empty and every class is one of those it names."""
    for split, part in (("train", source.train), ("val", source.val), ("test", source.test)):
        if part is None:
            continue
        if not len(part):
            raise ValueError(f"{name}: expected at least one sample in the {split} split, got none")
        if classes_in(part.targets) is None:
            continue
        low, high = int(part.targets.min()), int(part.targets.max())
        if low < 0 or high >= len(source.classes):
            raise ValueError(
                f"{name}: expected labels in 0..{len(source.classes) - 1} for {len(source.classes)} classes, got "
                f"{low}..{high} in the {split} split"
            )
    return source


def in_memory(parts: dict[str, Part]) -> dict[str, Part]:
    """Decode all splits to pixels where every image has one and the same size of at most ``SMALL`` pixels a side.

    Returns:
        The splits with pixels (N, C, H, W), C = 1 where every image is grey and else 3; or ``parts`` as they
        were, where an image is too large or of another size.
    """
    pixels: dict[str, Tensor] = {}
    size: tuple[int, int] | None = None
    grey = True
    for split, part in parts.items():
        if not isinstance(part.images, Encoded) or not len(part):
            return parts
        size = size or part.images.read(0).size
        if max(size) > SMALL or (decoded := _decode(part.images, size)) is None:
            return parts
        pixels[split], all_grey = decoded
        grey = grey and all_grey
    channels = 1 if grey else 3
    return {split: replace(part, images=pixels[split][:, :channels].contiguous()) for split, part in parts.items()}


def _decode(images: Encoded, size: tuple[int, int]) -> tuple[Tensor, bool] | None:
    """Pixels uint8 (N, 3, H, W) and whether all are grey; None where an image is of another size."""
    pixels = torch.empty((len(images), 3, size[1], size[0]), dtype=torch.uint8)
    array, grey = pixels.numpy(), True
    for index in track(range(len(images)), f"reading {images.origin}"):
        image = images.read(index)
        if image.size != size:
            return None
        grey = grey and image.mode in ("1", "L")
        array[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return pixels, grey


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
