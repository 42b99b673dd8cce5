from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from limbeck.core.task import Batch
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs, Piece, classes_in
from limbeck.data.items import Crew, Drawn, stacked

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

    from limbeck.data.source import Encoded

RECIPES = ("none", "crop", "crop-flip")
SIDE = 224
"""Of inputs, in pixels, where nobody says another: torchvision's pretrained networks were trained on it."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, as torchvision's pretrained networks expect them."""
SCALE, RATIO = [0.08, 1.0], [3 / 4, 4 / 3]
"""Of random parts, their shares of the image's area, and width by height: torchvision's defaults."""
SHRINKS = (8, 4, 2)
"""By what a JPEG may be shrunk while it is decoded, which takes less time the smaller it gets."""
SPARE = 2
"""How many times as large as the input a part of a JPEG is at least, once that is shrunk."""
JPEGS = {"JPEG", "MPO"}
"""Pillow's names of JPEGs, and of those that hold several images, as some telephones write them."""


@final
class FileLoader(Epochs):
    """Batches from image files, decoded and augmented by worker processes; for images too large for memory.

    Serves what ``Loader`` serves: (inputs float32 (B, 3, size, size), targets, ids), with an augmentation that depends on
    (seed, view, id), and on the lap where a view has several. Grey images become RGB.

    Images that are not augmented have the very pixels of torchvision's transforms of Pillow's images. Random parts lie
    where torchvision would draw them, and are resized by torch, which is quicker than Pillow: pixels differ by 0.02 of 255
    on average, and by at most 2 or so. Of a JPEG a part at least four times as large as the input is decoded at a half, a
    quarter or an eighth of its size, so that at least twice as much is left to resize: pixels of
    photographs then differ by 0.2 to 0.7 of 255 on average.

    Args:
        images: encoded images.
        targets: served as they are, see ``Loader``.
        batch_size: samples in a batch, over all processes.
        augment: none, crop (a random resized crop, Szegedy et al. 2015) or crop-flip; torchvision's defaults.
        size: side of the inputs in pixels. Without augmentation they are the centre of an image resized to 8/7 of it.
        workers: processes that decode, and stay for the next view; 0 decodes in this one.
        mean: of every channel, of pixels scaled to [0, 1].
        std: likewise.
        shuffle: permute every view; marks a loader for training.
        seed: of order and augmentation.
    """

    targets: Tensor

    def __init__(
        self,
        images: Encoded,
        targets: Tensor,
        *,
        batch_size: int,
        augment: str = "none",
        size: int = SIDE,
        workers: int = 2,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        if augment not in RECIPES:
            raise ValueError(
                f"expected augment to be one of default, {', '.join(RECIPES)} for images as large or as unlike in size "
                f"as these, got {augment!r}"
            )
        if len(images) != len(targets):
            raise ValueError(f"expected a target for each of {len(images)} images, got {len(targets)}")
        super().__init__(len(images), classes_in(targets), batch_size=batch_size, shuffle=shuffle, seed=seed)
        self.images, self.targets = images, targets
        self.augment = augment
        self.size = size
        self.workers = workers
        self.device = torch.device("cpu")
        self.normalise = Normalise(mean, std)
        self._crews = [Crew(_pictures(images, recipe, size), stacked, workers) for recipe in ("none", augment)]

    def to(self, device: torch.device | str) -> Self:
        """Normalise and serve batches on ``device`` from now on; returns the loader itself."""
        self.device, self.targets = torch.device(device), self.targets.to(device)
        self.normalise = self.normalise.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        for pixels, _, rows in self._crews[self.augmented].batches(plan, self.device):
            yield self.normalise(pixels), self.targets[rows], rows


def _pictures(images: Encoded, augment: str, size: int) -> Drawn:
    """Return images as pixels, uint8 (3, size, size), with their rows, for a name out of ``RECIPES``."""
    if augment == "none":
        return Drawn(_Centres(images, size), None)
    return Drawn(_Parts(images, size), _mirrored if augment == "crop-flip" else None)


@dataclass(frozen=True)
class _Centres:
    """The centre of each image, resized to 8/7 of what is seen of it."""

    images: Encoded
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        from torchvision.transforms.v2.functional import center_crop, resize

        image = resize(_rgb(self.images.read(row)), [round(self.size * 8 / 7)])
        return _pixels(center_crop(image, [self.size])), row


@dataclass(frozen=True)
class _Parts:
    """A random part of each image, as torchvision's RandomResizedCrop draws it with its defaults."""

    images: Encoded
    size: int

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        seen = self.images.header(row)
        left, top, right, bottom = part = _part(*seen.size)
        room = min(right - left, bottom - top) // (SPARE * self.size)
        shrink = next((by for by in SHRINKS if by <= room and seen.kind in JPEGS), 1)
        if shrink == 1:
            pixels = _pixels(_rgb(self.images.read(row).crop(part)))[None]
            return functional.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)[0], row
        from PIL.Image import Resampling

        image = self._shrunk(row, shrink)
        wide, high = image.width / seen.size[0], image.height / seen.size[1]
        box = left * wide, top * high, right * wide, bottom * high
        return _pixels(image.resize((self.size, self.size), Resampling.BILINEAR, box)), row

    def _shrunk(self, row: int, by: int) -> Image.Image:
        """Return a JPEG, upright and RGB, of which no more is decoded than its size divided by a number needs."""
        from PIL import Image, ImageOps

        file = self.images.files[row if self.images.rows is None else int(self.images.rows[row])]
        try:
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                image.draft(None, (image.width // by, image.height // by))
                return _rgb(ImageOps.exif_transpose(image))
        except Exception:  # noqa: BLE001  # a decoder of a broken file raises anything: who reads all of it names it
            return _rgb(self.images.read(row))


def _part(width: int, height: int) -> tuple[int, int, int, int]:
    """Draw a part of an image of a size; return its edges, left, top, right, bottom."""
    from torchvision.transforms.v2 import RandomResizedCrop

    image = torch.empty((1, height, width), device="meta")
    top, left, tall, wide = RandomResizedCrop.get_params(image, SCALE, RATIO)
    return left, top, left + wide, top + tall


def _mirrored(pixels: Tensor, row: int) -> tuple[Tensor, int]:
    """Mirror an image in half of the cases."""
    return pixels.flip(-1) if torch.rand(1) < 0.5 else pixels, row


def _rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")


def _pixels(image: Image.Image) -> Tensor:
    """Return the pixels of an image in RGB, uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
