"""Image files: one way to open them, for all sets that read files.

An image is decoded whole, turned upright as its EXIF data say, and brought to 8 bits, grey or RGB. 16 bits become 8 by
their depth (value / 257), what is transparent is laid on white, and of several frames the first is taken. What cannot be
brought to 8 bits faithfully, as floating-point values whose range nobody says, is refused with its name.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

GREY = {"1", "L", "LA", "La"}
SIXTEEN = {"I;16", "I;16L", "I;16B", "I;16N"}
SIXTEEN_AS_I = {"PNG", "PPM"}
"""Formats whose 16 bits Pillow gives as mode I: PNG's until Pillow 11.3, and PGM's, which it brings to 0..65535."""
NUMBERS = {"1", "L", "P", "I", *SIXTEEN}
"""Modes of one whole number a pixel, as masks have them."""
ORIENTATION = 0x0112
"""EXIF's tag of how to turn an image; 5 to 8 exchange width and height."""
SAID_IN = {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
"""Where Pillow looks for it, in formats other than TIFF."""
BITS, WHITE_IS_ZERO = 258, 262
"""TIFF's tags of how many bits a value has, and, if 0, that white is 0."""


class Unfit(ValueError):
    """A file that is no image, not whole, or none whose values are known; the message names it and a remedy."""


@dataclass(frozen=True)
class Header:
    """What an image file says at its beginning.

    Args:
        size: Width and height, once it is upright.
        mode: Pillow's.
        kind: Pillow's name of its format.
        turned: Whether its EXIF data turn it.
        frames: Whether it has several.
    """

    size: tuple[int, int]
    mode: str
    kind: str | None
    turned: bool
    frames: bool


def header(file: bytes | str, name: str) -> Header:
    """Look at an image without decoding it.

    Args:
        file: Its bytes, or where it is.
        name: Of the image, for errors.

    Raises:
        Unfit: It is no image, or larger than Pillow's limit.
    """
    with _named(file, name) as image:
        return _header(image)


def pixels(file: bytes | str, name: str) -> tuple[Image.Image, Header]:
    """Return an image, upright, of mode L if it is grey and else RGB, and what its file says at its beginning.

    Args:
        file: Its bytes, or where it is.
        name: Of the image, for errors.

    Raises:
        Unfit: It is no image, not whole, larger than Pillow's limit, or its values have no known range.
    """
    with _named(file, name) as image:
        seen = _header(image)
        refuse_unknown_range(seen, name)
        image.load()
        return _turned(_eight_bits(image), _orientation(image)), seen


def numbers(file: bytes | str, name: str) -> np.ndarray[Any, np.dtype[Any]]:
    """Return the values of an image of one channel, upright, as they are, (H, W): of a palette the numbers of its colours.

    Args:
        file: Its bytes, or where it is.
        name: Of the image, for errors.

    Raises:
        Unfit: It is no image, not whole, or larger than Pillow's limit.
    """
    with _named(file, name) as image:
        image.load()
        return np.array(_turned(image, _orientation(image)))


def refuse_unknown_range(seen: Header, name: str) -> None:
    """Refuse an image whose values could mean anything.

    Args:
        seen: What its file says.
        name: Of the image, for errors.

    Raises:
        Unfit: Its values are floating-point, of more than 16 bits or with a sign, or colours that Pillow cannot convert.
    """
    if seen.mode == "F" or (seen.mode == "I" and seen.kind not in SIXTEEN_AS_I):
        values = "floating-point values" if seen.mode == "F" else "whole numbers of 32 bits or with a sign"
        raise Unfit(
            f"{name}: expected values of 8 or 16 bits, got {values}, and nobody says which are black and white: scale "
            "them to 0..255 and save the image again"
        )
    if seen.mode == "LAB":
        raise Unfit(f"{name}: expected an image in grey, RGB, CMYK or a palette, got one in LAB: save it as RGB")


@contextmanager
def _named(file: bytes | str, name: str) -> Iterator[Image.Image]:
    """Open an image; what fails, here or while it is decoded, is told with its name and what to do."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
            most = Image.MAX_IMAGE_PIXELS
            if most is not None and image.width * image.height > most:  # of which Pillow only warns up to twice as many
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")
            yield image
    except (MemoryError, Unfit):
        raise
    except Image.DecompressionBombError as error:
        raise Unfit(
            f"{name}: expected at most {Image.MAX_IMAGE_PIXELS:,} pixels, which is Pillow's limit since a small file can "
            f"fill the memory, got more ({error}): make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from error
    except Exception as error:  # a decoder of a broken file raises anything
        what = _what(file, error)
        raise Unfit(f"{name}: expected a whole image file, got {what}: copy it again, or delete it") from error


def _what(file: bytes | str, error: Exception) -> str:
    """Say what a file is that could not be read as an image."""
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "a name or a link that leads nowhere"
    if not (len(file) if isinstance(file, bytes) else os.path.getsize(file)):
        return "an empty one"
    if isinstance(error, UnidentifiedImageError):
        return "one that Pillow does not know as an image"
    return str(error).strip() or type(error).__name__


def _header(image: Image.Image) -> Header:
    turned = _orientation(image)
    width, height = image.size
    if turned > 4 and image.format != "TIFF":  # whose size Pillow gives as it will be
        width, height = height, width
    return Header((width, height), image.mode, image.format, turned > 1, bool(getattr(image, "is_animated", False)))


def _orientation(image: Image.Image) -> int:
    """Return how EXIF says to turn an image, 1 to 8; 1 is upright. What is not decoded yet stays so."""
    from PIL import Image

    if SAID_IN.isdisjoint(image.info) and image.format != "TIFF":
        return 1
    try:  # the class's own, since that of a PNG decodes it
        found = Image.Image.getexif(image).get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # data that are broken, in an image that is not, say nothing; no viewer minds
        return 1
    return found if found in range(1, 9) else 1


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    from PIL.Image import Transpose

    turns = (
        Transpose.FLIP_LEFT_RIGHT,
        Transpose.ROTATE_180,
        Transpose.FLIP_TOP_BOTTOM,
        Transpose.TRANSPOSE,
        Transpose.ROTATE_270,
        Transpose.TRANSVERSE,
        Transpose.ROTATE_90,
    )
    return image if orientation == 1 else image.transpose(turns[orientation - 2])


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return mode L of a grey image, RGB of others."""
    if image.mode == "I" or image.mode in SIXTEEN:
        return _of_sixteen(image)
    mode = "L" if image.mode in GREY else "RGB"
    if image.has_transparency_data:
        image = _on_white(image)
    return image if image.mode == mode else image.convert(mode)


def _of_sixteen(image: Image.Image) -> Image.Image:
    """Return mode L: 0 stays black, and the largest value of its depth becomes 255."""
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0] if image.mode != "I" else 16  # a TIFF may have 12
    top, values = 2**bits - 1, np.array(image).astype(np.int64)
    shades = (values * 255 + top // 2) // top
    if tags.get(WHITE_IS_ZERO) == 0:  # which Pillow turns round for 8 bits alone
        shades = 255 - shades
    if isinstance(clear := image.info.get("transparency"), int):
        shades[values == clear] = 255
    return Image.fromarray(shades.astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    from PIL import Image

    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white
