"""Images that are kept in memory: decoded as far as they are asked for, and kept on disk for the next start.

What is on disk is found by the bytes of the image files and by what decoded them, so it is never that of other files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from limbeck.core import files
from limbeck.data import pictures
from limbeck.data.source import Encoded, Looks, Part, track

FORMAT = 1
"""Of what is kept on disk."""
LEAST = 1000
"""Fewest images of a split that are worth a file: fewer are decoded in a tenth of a second."""
MOST = 5 * 2**30
"""Most bytes on disk: room for 30 sets of CIFAR's size. What was not read for longest is deleted."""
DECODERS = ("jpg", "libjpeg_turbo", "webp")
"""Libraries beneath Pillow that decode what is not stored exactly, by Pillow's names."""

logger = logging.getLogger("limbeck")


@dataclass(frozen=True)
class Held:
    """Of a split, what was decoded and what was seen.

    Args:
        pixels: Of the images asked for, uint8 (N, C, H, W); C = 1 where all images of the split are grey, and else 3.
        turned: How many of the split's images are turned by their EXIF data.
        frames: How many have several frames.
    """

    pixels: Tensor
    turned: int
    frames: int


def decoded(parts: Mapping[str, Part]) -> tuple[dict[str, Part], Looks] | None:
    """Decode parts to pixels, (N, C, H, W), C = 1 where every image of their splits is grey and else 3.

    All files of the splits are looked at, and only those of the parts are decoded, each once. So which are asked for
    decides neither their shape nor whether they are kept in memory.

    Args:
        parts: Of image files; several may be of one split.

    Returns:
        The parts with their pixels, and what the files say; None if their sizes differ.

    Raises:
        ValueError: A file that is no image, or one that cannot be converted faithfully; the message names it.
    """
    asked: dict[int, list[Encoded]] = {}
    for part in parts.values():
        assert isinstance(part.images, Encoded)
        asked.setdefault(id(part.images.files), []).append(part.images)
    looks = Looks()
    found: dict[int, tuple[Tensor, Tensor]] = {}
    fresh: dict[Path, Held] = {}
    for key, wanted in asked.items():
        split, rows = replace(wanted[0], rows=None), _together(wanted)
        places = _places(split, rows)
        held = _kept(places, rows)
        if held is None:
            held = _decode(split, rows)
            if held is None:
                return None
            fresh |= dict.fromkeys(list(places)[-1:], held)
        looks.join(_seen(held, split))
        if len(looks.sizes) > 1:
            return None
        found[key] = rows, held.pixels
    _keep(fresh)
    channels = max(pixels.shape[1] for _, pixels in found.values())
    return {name: _with_pixels(part, found, channels) for name, part in parts.items()}, looks


def cache() -> Path | None:
    """Return the folder in which decoded images are kept; None where the user wants none.

    It is ``limbeck/decoded`` in ``XDG_CACHE_HOME``, or in ``~/.cache``. ``LIMBECK_DECODED`` takes the place of ``limbeck``
    there, and nothing is kept if it is ``off``.
    """
    said = os.environ.get("LIMBECK_DECODED", "")
    if said == "off":
        return None
    with suppress(RuntimeError):  # there is no home
        if said:
            return Path(said).expanduser() / "decoded"
        standard = os.environ.get("XDG_CACHE_HOME", "")  # a relative one is to be ignored, says the standard
        return (Path(standard) if os.path.isabs(standard) else Path.home() / ".cache") / "limbeck" / "decoded"
    return None


def _rows(images: Encoded) -> Tensor:
    return torch.arange(len(images.files)) if images.rows is None else images.rows


def _together(asked: Sequence[Encoded]) -> Tensor:
    """Which files of a split are asked for, each once, in ascending order."""
    wanted = torch.zeros(len(asked[0].files), dtype=torch.bool)
    for images in asked:
        wanted[_rows(images)] = True
    return wanted.nonzero().flatten()


def _with_pixels(part: Part, found: Mapping[int, tuple[Tensor, Tensor]], channels: int) -> Part:
    """Give a part its pixels out of those of its split, which lie there behind their rows."""
    assert isinstance(part.images, Encoded)
    rows, pixels = found[id(part.images.files)]
    wanted = _rows(part.images)
    own = pixels if torch.equal(wanted, rows) else pixels[torch.searchsorted(rows, wanted)]
    return replace(part, images=own.expand(-1, channels, -1, -1).contiguous())


def _seen(held: Held, split: Encoded) -> Looks:
    height, width = held.pixels.shape[-2:]
    size = width, height
    return Looks(Counter({size: len(split)}), {size: split.path(0)}, held.turned, held.frames)


def _places(split: Encoded, rows: Tensor) -> dict[Path, Tensor]:
    """Where images of a split may be kept, and which: all of them, and, last, those in ``rows``; nothing of a few."""
    from PIL import ImageFile, __version__, features

    folder = cache()
    if folder is None or len(split) < LEAST:
        return {}
    versions = [__version__, *map(features.version, DECODERS), ImageFile.LOAD_TRUNCATED_IMAGES]
    try:
        sha = hashlib.sha256(json.dumps([FORMAT, versions, inspect.getsource(pictures)]).encode())
        for file in split.files:
            content = file if isinstance(file, bytes) else Path(file).read_bytes()
            sha.update(len(content).to_bytes(8, "little"))
            sha.update(content)
    except OSError:  # files that cannot be read are told of as they are decoded
        return {}
    places = {folder / f"{sha.hexdigest()}.ckpt": torch.arange(len(split))}
    if len(rows) < len(split):
        sha.update(rows.numpy().data)
        places[folder / f"{sha.hexdigest()}.ckpt"] = rows
    return places


def _kept(places: Mapping[Path, Tensor], rows: Tensor) -> Held | None:
    """Find the images in ``rows``, alone or among all of the split."""
    for place, those in places.items():
        if held := _read(place, len(those)):
            return held if len(those) == len(rows) else replace(held, pixels=held.pixels[rows])
    return None


def _decode(split: Encoded, rows: Tensor) -> Held | None:
    """Decode the images in ``rows``, and look at the others; None where one is of another size than those before."""
    looks, grey = Looks(), True
    pixels = torch.empty(0, dtype=torch.uint8)
    places = {row: place for place, row in enumerate(rows.tolist())}
    for row in track(range(len(split)), f"reading {split.origin}"):
        image = None
        if row in places:
            image, seen = split.seen(row)
            seen = replace(seen, size=image.size)
        else:
            seen = split.header(row)
            pictures.refuse_unknown_range(seen, split.path(row))
        looks.add(seen, split.path(row))
        if len(looks.sizes) > 1:
            return None
        if not len(pixels):
            width, height = seen.size
            pixels = torch.empty((len(rows), 3, height, width), dtype=torch.uint8)
            array = pixels.numpy()
        grey = grey and (_grey(seen) if image is None else image.mode == "L")
        if image is not None:
            array[places[row]] = np.asarray(image if image.mode == "RGB" else image.convert("RGB")).transpose(2, 0, 1)
    return Held(pixels[:, :1].contiguous() if grey else pixels, looks.turned, looks.frames)


def _grey(seen: pictures.Header) -> bool:
    """Return whether an image will be grey once it is decoded."""
    return seen.mode == "I" or seen.mode in pictures.GREY | pictures.SIXTEEN


def _read(place: Path, count: int) -> Held | None:
    """Read ``count`` images that `_keep` wrote; None where there are none, or none that can be trusted."""
    try:
        kept = files.read(place, "its images are decoded again")
    except FileNotFoundError:
        return None
    except (files.Damaged, OSError) as error:
        logger.info("%s", error)
        return None
    if not _fits(kept, place, count):
        logger.info("%s is not what limbeck keeps there: its images are decoded again", place)
        return None
    with suppress(OSError):
        os.utime(place)  # it was of use, so others are deleted first
    return Held(kept["pixels"], kept["turned"], kept["frames"])


def _fits(kept: Any, place: Path, count: int) -> bool:
    if not isinstance(kept, dict) or kept.keys() != {"of", "pixels", "turned", "frames"} or kept["of"] != place.stem:
        return False
    pixels = kept["pixels"]
    form = isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and pixels.ndim == 4
    return form and len(pixels) == count and pixels.shape[1] in (1, 3)


def _keep(fresh: Mapping[Path, Held]) -> None:
    """Write images for the next start; a training does not fail for want of it."""
    try:
        for place, held in fresh.items():
            if held.pixels.nbytes <= MOST:
                files.keep(place, {"of": place.stem, **vars(held)})
                _make_room(place.parent)
    except (OSError, RuntimeError) as error:  # of a full disk, torch tells as RuntimeError
        logger.warning(
            "decoded images are not kept for the next start (%s): say where there is room with LIMBECK_DECODED=FOLDER, or "
            "LIMBECK_DECODED=off",
            error,
        )


def _make_room(folder: Path) -> None:
    """Delete what was not read for longest, as far as there is more than ``MOST``."""
    kept = []
    for path in folder.glob("*.ckpt"):
        with suppress(FileNotFoundError):  # another process deleted it
            kept.append((path.stat().st_mtime, path.stat().st_size, path))
    room = MOST
    for _, size, path in sorted(kept, reverse=True):
        room -= size
        if room < 0:
            with suppress(OSError):  # Windows does not delete what is being read
                path.unlink()
