from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional

RECIPES = ("default", "none", "crop", "crop-flip", "cutout")


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


def recipe(augment: str, *, default: str, cutout: int) -> tuple[Augment, ...]:
    """Return the augmentations that go by a name.

    Args:
        augment: one of ``RECIPES``.
        default: what "default" stands for.
        cutout: side of the cut-out square in pixels.
    """
    if augment not in RECIPES:
        raise ValueError(f"expected augment to be one of {', '.join(RECIPES)}, got {augment!r}")
    recipes: dict[str, tuple[Augment, ...]] = {
        "none": (),
        "crop": (PadCrop(2),),  # a jitter of two pixels, for digits, which must not be mirrored
        "crop-flip": (PadCrop(4), Flip()),  # the CIFAR standard since He et al. 2016, section 4.2
        "cutout": (PadCrop(4), Flip(), Cutout(cutout)),
    }
    return recipes[default if augment == "default" else augment]
