from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from limbeck.core.task import Batch
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs, Piece, classes_in
from limbeck.data.items import Drawn, drawn, stacked

if TYPE_CHECKING:
    from PIL import Image
    from typing_extensions import Self

    from limbeck.data.source import Encoded

RECIPES = ("none", "crop", "crop-flip")
SIDE = 224
"""Of inputs, in pixels, where nobody says another: torchvision's pretrained networks were trained on it."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet's training images, as torchvision's pretrained networks expect them."""


@final
class FileLoader(Epochs):
    """Batches from image files, decoded and augmented by worker processes; for images too large for memory.

    Serves what ``Loader`` serves: (inputs float32 (B, 3, size, size), targets, ids), with an augmentation that depends on
    (seed, view, id), and on the lap where a view has several. Grey images become RGB.

    Args:
        images: encoded images.
        targets: served as they are, see ``Loader``.
        batch_size: samples in a batch, over all processes.
        augment: none, crop (a random resized crop, Szegedy et al. 2015) or crop-flip; torchvision's defaults.
        size: side of the inputs in pixels. Without augmentation they are the centre of an image resized to 8/7 of it.
        workers: processes that decode; 0 decodes in this one.
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

    def to(self, device: torch.device | str) -> Self:
        """Normalise and serve batches on ``device`` from now on; returns the loader itself."""
        self.device, self.targets = torch.device(device), self.targets.to(device)
        self.normalise = self.normalise.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        augment = self.augment if self.augmented else "none"
        pictures = Drawn(_Pictures(self.images), _Pixels(transform(augment, self.size)))
        for pixels, _, rows in drawn(pictures, stacked, plan, self.workers, self.device):
            yield self.normalise(pixels), self.targets[rows], rows


@dataclass(frozen=True)
class _Pictures:
    """Decoded images with their rows."""

    images: Encoded

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Image.Image, int]:
        return self.images.read(row).convert("RGB"), row


@dataclass(frozen=True)
class _Pixels:
    """Makes pixels of an image, uint8 (3, size, size)."""

    change: Callable[[Image.Image], Tensor]

    def __call__(self, image: Image.Image, row: int) -> tuple[Tensor, int]:
        return self.change(image), row


def transform(augment: str, size: int) -> Callable[[Image.Image], Tensor]:
    """Return torchvision's transform, from an image to uint8 (3, size, size), for a name out of ``RECIPES``."""
    from torchvision.transforms import v2

    steps = {
        "none": [v2.Resize(round(size * 8 / 7)), v2.CenterCrop(size)],
        "crop": [v2.RandomResizedCrop(size)],
        "crop-flip": [v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()],
    }
    chain: Callable[[Image.Image], Tensor] = v2.Compose([*steps[augment], v2.PILToTensor()])
    return chain
