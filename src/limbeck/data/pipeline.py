"""What decides a pipeline: whether images are kept in memory or decoded, at which size, and the record of it all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from limbeck.data.decoded import decoded
from limbeck.data.files import SIDE
from limbeck.data.masks import sides
from limbeck.data.source import SMALL, Looks, Part, Source, looked

Size = int | Sequence[int] | None


def settled(
    name: str, source: Source, parts: Mapping[str, Part], size: Size, in_memory: bool | None
) -> tuple[Mapping[str, Part], Looks]:
    """Decide whether images are kept in memory, and look at their files.

    Those that have one size of at most ``SMALL`` pixels a side are kept as they are, others are decoded one by one.
    Small images of several sizes are refused, rather than brought to the size of large ones.

    Args:
        name: Of the data set.
        source: As it was read; its files decide.
        parts: Of it, what is needed; nothing else is decoded.
        size: Of inputs, if the user said one.
        in_memory: What the user said, if anything.

    Returns:
        The parts, with pixels if they are kept, and what the source's files say.

    Raises:
        ValueError: A file that is no image, sizes that do not go with what the user said, small images of several sizes.
    """
    images = source.train.images
    if isinstance(images, Tensor):
        _as_it_is(name, images, size, in_memory)
        return parts, Looks()
    if source.train.masks is not None:
        if in_memory:
            raise ValueError(f"{name}: images with masks are always decoded one by one: leave in_memory out")
        return parts, looked(source)
    wanted = None if size is None else sides(size)
    width, height = images.header(0).size
    if in_memory or (in_memory is None and max(width, height) <= SMALL and wanted in (None, (height, width))):
        if kept := decoded(parts):
            _keeps(name, kept[0]["train"], wanted)
            return kept
        if in_memory:
            raise ValueError(
                f"{name}: expected images of one size, to be kept in memory as they are, got {looked(source).told()}: "
                "bring them to one, or leave in_memory out and say size=32 (--size 32), to have them cropped to it"
            )
    looks = looked(source)
    _refuse_small(name, looks, size, in_memory)
    return parts, looks


def _as_it_is(name: str, images: Tensor, size: Size, in_memory: bool | None) -> None:
    """Refuse what cannot be said of a set that is no files of images."""
    if in_memory is False:
        raise ValueError(
            f"{name} is read into memory, and there are no files to decode one by one: leave in_memory out"
        )
    if size is not None and (images.ndim < 4 or sides(size) != tuple(images.shape[-2:])):
        raise ValueError(
            f"{name} has inputs of shape {tuple(images.shape[1:])}, kept as they are: leave size out, got {size}"
        )


def _keeps(name: str, part: Part, wanted: tuple[int, int] | None) -> None:
    """Refuse another size than that of images in memory."""
    assert isinstance(part.images, Tensor)
    height, width = part.images.shape[-2:]
    if wanted not in (None, (height, width)):
        raise ValueError(
            f"{name}: with in_memory=True images are kept as they are, {width}x{height}, got another size: leave size out, "
            "or in_memory out, to have them decoded one by one"
        )


def _refuse_small(name: str, looks: Looks, size: Size, in_memory: bool | None) -> None:
    """Refuse to bring small images to the size of large ones where nobody said so."""
    small = sum(count for shape, count in looks.sizes.items() if max(shape) <= SMALL)
    if 2 * small <= looks.sizes.total():
        return
    (wide, high), _ = looks.sizes.most_common(1)[0]
    side = max(wide, high)
    if size is None:
        raise ValueError(
            f"{name}: expected a size to which small images are cropped that are not kept in memory, got {looks.told()}: "
            f"say size={side} (--size {side}), or bring them all to one size, to have them kept in memory as they are. The "
            f"default, {SIDE}, is that of photographs"
        )
    if in_memory is None and len(looks.sizes) == 1:
        raise ValueError(
            f"{name}: images of {wide}x{high} are kept in memory as they are, got size={size}: leave size out, or say "
            "in_memory=False (--in-memory false) to have them decoded one by one and cropped to it"
        )


def normalisation(
    name: str, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None, *, pixels: bool
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return what the user said of mean and standard deviation; None where nothing was.

    Args:
        name: Of the data set.
        channels: How many there are, or columns.
        mean: As the user said it.
        std: Likewise.
        pixels: Whether they are of pixels, which are scaled to 0..1.

    Raises:
        ValueError: Not one of each channel, or out of range.
    """
    if mean is None and std is None:
        return None
    means, stds = tuple(map(float, mean or ())), tuple(map(float, std or ()))
    if len(means) != channels or len(stds) != channels:
        raise ValueError(f"{name}: expected mean and std of each of {channels} channels, got mean={mean} and std={std}")
    if not all(map(math.isfinite, (*means, *stds))) or min(stds) <= 0:
        raise ValueError(
            f"{name}: expected finite numbers as mean and std, and std above 0, got mean={mean} and std={std}"
        )
    if pixels and (min(means) < 0 or max((*means, *stds)) > 1):
        raise ValueError(
            f"{name}: expected mean and std of pixels scaled to 0..1, got mean={mean} and std={std}: divide them by 255"
        )
    return means, stds


def resizing(part: Part, size: Size, augment: str) -> str:
    """Return in words how images come to their size."""
    if isinstance(part.images, Tensor):
        return "none"
    height, width = sides(SIDE if size is None else size)
    shown, default = f"{width}x{height}", " (the default)" if size is None else ""
    if part.masks is not None:
        crops = "" if augment == "none" else "; in training a random part of a quarter to all"
        return f"the whole to {shown}{default}{crops}"
    crops = "" if augment == "none" else "; in training a random part of 8 to 100 %"
    return f"the shorter side to {round(height * 8 / 7)}, then the central {shown}{default}{crops}"


def seen_in(looks: Looks) -> str:
    """Return in words what files say; nothing of data that are no files."""
    if not looks.sizes:
        return ""
    (wide, high), _ = looks.sizes.most_common(1)[0]
    told = [f"{looks.sizes.total():,} images of {wide}x{high}"]
    if len(looks.sizes) > 1:
        told = [f"{looks.sizes.total():,} images of {len(looks.sizes):,} sizes, {wide}x{high} the most frequent"]
    if looks.turned:
        told.append(f"{looks.turned:,} turned upright by their EXIF data")
    if looks.frames:
        told.append(f"{looks.frames:,} of several frames, of which the first is taken")
    return "; ".join(told)


def in_words(pipeline: Mapping[str, Any]) -> str:
    """Return what decided a pipeline as a line, for the log."""
    return "; ".join(f"{name}: {_short(value)}" for name, value in pipeline.items() if value not in ("", [], None))


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{_short(one)} {name}" for name, one in value.items())
    if isinstance(value, list):
        shown = [_short(one) for one in value[:10]]
        return ", ".join(shown) + f" and {len(value) - 10} more" * (len(value) > 10)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
