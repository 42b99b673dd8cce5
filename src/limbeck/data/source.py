from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL import Image

Item = TypeVar("Item")

SMALL = 96
"""Longest side, in pixels, of images that are kept decoded in memory."""


@dataclass(frozen=True)
class Encoded:
    """Image files, as bytes in memory or as paths, decoded one at a time."""

    files: Sequence[bytes | str]

    def __len__(self) -> int:
        return len(self.files)

    def open(self, index: int) -> Image.Image:
        """Return the image as PIL opens it: size and mode are known, pixels not yet decoded."""
        import io

        from PIL import Image, UnidentifiedImageError

        file = self.files[index]
        try:
            return Image.open(io.BytesIO(file) if isinstance(file, bytes) else file)
        except UnidentifiedImageError as error:
            where = f"image {index}" if isinstance(file, bytes) else file
            raise ValueError(f"expected an image file, got something else: {where}") from error


@dataclass(frozen=True)
class Part:
    """One split: its images, as pixels uint8 (N, C, H, W) or encoded, and their classes int64 (N,)."""

    images: Tensor | Encoded
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, rows: Tensor) -> Part:
        """Return the samples in ``rows``."""
        if isinstance(self.images, Tensor):
            return Part(self.images[rows], self.targets[rows])
        return Part(Encoded([self.images.files[row] for row in rows.tolist()]), self.targets[rows])


@dataclass(frozen=True)
class Source:
    """A data set as read from disk: its official splits and class names, and what the user should know about them."""

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


def in_memory(parts: dict[str, Part], label: str) -> dict[str, Part]:
    """Decode all splits to pixels where every image has one and the same size of at most ``SMALL`` pixels a side.

    Returns:
        The splits with pixels (N, C, H, W), C = 1 where every image is grey and else 3; or ``parts`` as they
        were, where an image is too large or of another size.
    """
    size: tuple[int, int] | None = None
    pixels: dict[str, Tensor] = {}
    grey = True
    for split, part in parts.items():
        if not isinstance(part.images, Encoded) or not len(part):
            return parts
        size = size or part.images.open(0).size
        if max(size) > SMALL:
            return parts
        decoded = _decode(part.images, size, f"{label} {split}")
        if decoded is None:
            return parts
        pixels[split], all_grey = decoded
        grey = grey and all_grey
    channels = 1 if grey else 3
    return {
        split: Part(pixels[split][..., :channels].permute(0, 3, 1, 2).contiguous(), part.targets)
        for split, part in parts.items()
    }


def _decode(images: Encoded, size: tuple[int, int], label: str) -> tuple[Tensor, bool] | None:
    """Pixels uint8 (N, H, W, 3) and whether all are grey; None where an image is of another size."""
    import numpy as np

    pixels = torch.empty((len(images), size[1], size[0], 3), dtype=torch.uint8)
    array, grey = pixels.numpy(), True
    for index in track(range(len(images)), f"reading {label}"):
        with images.open(index) as image:
            if image.size != size:
                return None
            grey = grey and image.mode in ("1", "L")
            array[index] = np.asarray(image.convert("RGB"))
    return pixels, grey


def track(items: Sequence[Item], label: str) -> Iterator[Item]:
    """Yield ``items`` under a progress bar that clears itself; without one where standard error is no terminal."""
    if len(items) < 2000 or not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import track as bar

    yield from bar(items, description=label, console=Console(stderr=True), transient=True)


def folder(name: str, root: str | None) -> Path:
    """Return the data set's folder; raises where there is none."""
    if root is None:
        raise FileNotFoundError(f"{name} needs a folder to read from: pass --root DIR (root=...)")
    return Path(root).expanduser()


def missing(
    name: str, wanted: Iterable[str], places: Sequence[Path], *, downloads: bool, detail: str = ""
) -> FileNotFoundError:
    """Return the error of a folder that does not hold the data set.

    Args:
        name: of the data set.
        wanted: names or patterns of the files looked for.
        places: folders they were looked for in, the user's root first.
        downloads: whether ``download=True`` is a remedy.
        detail: what was found instead, where that is known.
    """
    root = places[0]
    if root.is_dir():
        found = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir())
        holds = f"holds {', '.join(found[:8])}" + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        holds = holds if found else "is empty"
    else:
        holds = "is a file, not a folder" if root.exists() else "does not exist"
    remedy = "Pass the folder that holds them as --root DIR (root=...)"
    remedy += ", or let them be downloaded to it with --download (download=True)." if downloads else "."
    return FileNotFoundError(
        f"{name}: looked for {', '.join(wanted)} in {', '.join(str(place) for place in places)}; "
        f"{root} {holds}. {detail + '. ' if detail else ''}{remedy}"
    )
