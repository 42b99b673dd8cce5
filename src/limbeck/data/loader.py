from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from limbeck.data.augment import Augment
from limbeck.data.epochs import Batch, Epochs, generator

if TYPE_CHECKING:
    from typing_extensions import Self


@final
class Loader(Epochs):
    """Batches from images in memory, augmented a whole batch at a time on the device that holds them.

    A batch is (inputs float32 (B, C, H, W), targets int64 (B,), ids int64 (B,)). The augmentation of a view is drawn for
    all samples at once and indexed by id, so an image depends on (seed, view, id) and never on its batch. Where a view has
    more laps than one (``batches``), each further lap is drawn anew, from (seed, view, lap).

    The order of batches, distribution over processes, ``set_epoch``, ``state_dict``: see ``Epochs``.

    Args:
        images: pixels, uint8 (N, C, H, W).
        targets: classes, int64 (N,); -100 marks a sample without a label.
        batch_size: samples in a batch, over all processes.
        mean: of every channel, of pixels scaled to [0, 1].
        std: likewise.
        augment: applied in this order, those on pixels before normalisation and the others after it.
        shuffle: permute every view; marks a loader for training.
        seed: of order and augmentation.
        drop_last: drop an incomplete last batch.
        batches: batches in a view; by default, as many as one lap over the samples has.
        ids: rows of ``images`` to serve; all by default.
        device: where images are kept and batches made; where ``images`` are by default.

    Example:
        >>> images, targets = torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
        >>> loader = Loader(images, targets, batch_size=4, mean=(0.5,), std=(0.5,))
        >>> [tuple(inputs.shape) for inputs, _, _ in loader]
        [(4, 1, 4, 4), (4, 1, 4, 4), (2, 1, 4, 4)]
    """

    def __init__(
        self,
        images: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Sequence[Augment] = (),
        shuffle: bool = False,
        seed: int = 0,
        drop_last: bool = False,
        batches: int | None = None,
        ids: Tensor | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TypeError(f"expected images as uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if len(images) != len(targets):
            raise ValueError(f"expected a target for each of {len(images)} images, got {len(targets)}")
        if not len(mean) == len(std) == images.shape[1] or min(std) <= 0:
            raise ValueError(f"expected mean and positive std of {images.shape[1]} channels, got {mean} and {std}")
        super().__init__(
            targets,
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
            batches=batches,
            ids=ids,
        )
        self.images = images
        self.augment = tuple(augment)
        # pixel / 255 - mean) / std as one multiplication and one addition
        self._scale = torch.tensor([1 / (255 * s) for s in std])[None, :, None, None]
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)])[None, :, None, None]
        self.to(images.device if device is None else device)

    def to(self, device: torch.device | str) -> Self:
        """Keep the images on ``device`` and make batches there; returns the loader itself."""
        self.images, self.targets = self.images.to(device), self.targets.to(device)
        self._scale, self._shift = self._scale.to(device), self._shift.to(device)
        return self

    def plain(self) -> Self:
        """Return a loader of the same samples once, in order and without augmentation."""
        other = copy.copy(self)
        other.augment, other.shuffle, other.drop_last, other.batches = (), False, False, None
        other._move(0, 0)
        return other

    def _serve(self, view: int, first: int) -> Iterator[Batch]:
        drawn: dict[int, list[Tensor]] = {}
        for pieces in self._plan(view, first):
            drawn = {lap: drawn[lap] if lap in drawn else self._draw(view, lap) for lap, _ in pieces}
            inputs = [self._look(ids, drawn[lap]) for lap, ids in pieces]
            ids = torch.cat([ids for _, ids in pieces]).to(self.images.device)
            yield inputs[0] if len(inputs) == 1 else torch.cat(inputs), self.targets[ids], ids

    def _draw(self, view: int, lap: int) -> list[Tensor]:
        """Parameters of every augmentation for all samples, those not served too, so that ids index them."""
        count = len(self.images)
        return [
            step.draw(count, generator("augment", self.seed, view, lap, position))
            for position, step in enumerate(self.augment)
        ]

    def _look(self, ids: Tensor, drawn: list[Tensor]) -> Tensor:
        """Inputs of the samples ``ids``, augmented and normalised."""
        device = self.images.device
        images = self.images[ids.to(device)]
        steps = [(step, drawn[i][ids].to(device)) for i, step in enumerate(self.augment)]
        for step, parameters in steps:
            if step.on_pixels:
                images = step.apply(images, parameters)
        images = images.to(torch.float32).mul_(self._scale).add_(self._shift)
        for step, parameters in steps:
            if not step.on_pixels:
                images = step.apply(images, parameters)
        return images
