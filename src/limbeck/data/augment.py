from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Augment(Protocol):
    """One augmentation: ``draw`` its parameters for all samples of a data set, ``apply`` them to any batch of these."""

    on_pixels: ClassVar[bool]
    """Whether it works on raw pixels (uint8, before normalisation) or on normalised inputs."""

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the parameters of ``count`` samples, (count, ...)."""
        ...

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Return augmented ``images`` (N, C, H, W); ``parameters`` (N, ...) are on the same device."""
        ...


@dataclass(frozen=True)
class PadCrop:
    """Pad by ``pad`` black pixels on every side and crop the original size at a random place."""

    pad: int = 4
    on_pixels: ClassVar[bool] = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return top and left of every crop, int64 (count, 2)."""
        return torch.randint(0, 2 * self.pad + 1, (count, 2), generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Crop every image at its own place, without a loop over them."""
        height, width = images.shape[-2:]
        padded = functional.pad(images, (self.pad,) * 4)
        # A view of every possible crop, (N, C, 2 pad + 1, 2 pad + 1, H, W), takes no memory; one is picked per image.
        crops = padded.unfold(2, height, 1).unfold(3, width, 1)
        top, left = parameters.unbind(1)
        return crops[torch.arange(len(images), device=images.device), :, top, left]


@dataclass(frozen=True)
class Flip:
    """Mirror half of the images left to right."""

    on_pixels: ClassVar[bool] = True

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which samples are mirrored, bool (count,)."""
        return torch.rand(count, generator=generator) < 0.5

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Mirror the chosen images."""
        return torch.where(parameters[:, None, None, None], images.flip(-1), images)


@dataclass(frozen=True)
class Cutout:
    """Set a square to zero, the mean colour since it works on normalised inputs (DeVries and Taylor, 2017).

    The centre is uniform over the image, so part of the square may lie outside. ``size`` is its side in pixels.
    """

    size: int
    on_pixels: ClassVar[bool] = False

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the centres as shares of height and width in [0, 1), float32 (count, 2)."""
        return torch.rand(count, 2, generator=generator)

    def apply(self, images: Tensor, parameters: Tensor) -> Tensor:
        """Clear every image's own square."""
        rows = self._inside(parameters[:, 0], images.shape[-2])
        columns = self._inside(parameters[:, 1], images.shape[-1])
        return images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)

    def _inside(self, centre: Tensor, side: int) -> Tensor:
        """Which of the ``side`` lines the square covers, bool (N, side)."""
        first = (centre * side).long()[:, None] - self.size // 2
        lines = torch.arange(side, device=centre.device)
        return (lines >= first) & (lines < first + self.size)


class Normalise:
    """Turn uint8 pixels into (pixel / 255 - mean) / std, as one multiplication and one addition.

    Args:
        mean: of every channel, of pixels scaled to [0, 1].
        std: likewise.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"expected as many positive std as mean, got {tuple(mean)} and {tuple(std)}")
        self.scale = torch.tensor([1 / (255 * s) for s in std])[:, None, None]
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """Return float32 (N, C, H, W) of uint8 ``images``."""
        return images.to(torch.float32).mul_(self.scale).add_(self.shift)

    def to(self, device: torch.device | str) -> Normalise:
        """Return the same for images on ``device``."""
        other = copy.copy(self)
        other.scale, other.shift = self.scale.to(device), self.shift.to(device)
        return other


def recipe(augment: str, side: int) -> tuple[Augment, ...]:
    """Return the augmentations that go by a name, for images whose shorter side has ``side`` pixels."""
    jitter = PadCrop(max(1, side // 14))  # 2 of MNIST's 28 pixels: Hinton et al. 2015, section 3
    crop = PadCrop(max(1, side // 8))  # 4 of CIFAR's 32 pixels: He et al. 2016, section 4.2
    cutout = Cutout(side // 2)  # 16 of CIFAR-10's 32 pixels: DeVries and Taylor 2017, section 4.3
    recipes: dict[str, tuple[Augment, ...]] = {
        "none": (),
        "crop": (jitter,),  # for digits, which must not be mirrored
        "crop-flip": (crop, Flip()),
        "cutout": (crop, Flip(), cutout),
    }
    if augment not in recipes:
        raise ValueError(f"expected augment to be one of default, {', '.join(recipes)}, got {augment!r}")
    return recipes[augment]
