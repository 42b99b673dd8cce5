from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from limbeck.core.task import Batch
from limbeck.data.augment import Augment, Normalise
from limbeck.data.epochs import Epochs, Look, Piece, classes_in, generator

if TYPE_CHECKING:
    from typing_extensions import Self

Drawn = tuple[Augment, Tensor]


@final
class Loader(Epochs):
    """Batches from images in memory, augmented a whole batch at a time on the device that holds them.

    A batch is (inputs float32 (B, C, H, W), targets (B, ...), ids int64 (B,)). The augmentation of a view is drawn for
    all samples at once and indexed by id, so an image depends on (seed, view, id) and never on its batch. Where a view has
    more laps than one (``batches``), each further lap is drawn anew, from (seed, view, lap).

    The order of batches, distribution over processes, ``set_epoch``, ``state_dict``: see ``Epochs``.

    Args:
        images: pixels, uint8 (N, C, H, W).
        targets: served as they are. Classes int64 (N,), where -100 marks a sample without a label; several labels (N, K),
            each 1, 0, or -100 where it is not known; values, floating-point (N, M); whatever the task takes, (N, ...).
        batch_size: samples in a batch, over all processes.
        mean: of every channel, of pixels scaled to [0, 1].
        std: likewise.
        augment: applied in this order, those on pixels before normalisation and the others after it.
        shuffle: permute every view; marks a loader for training.
        seed: of order and augmentation.

    Example:
        >>> images, targets = torch.zeros(10, 1, 4, 4, dtype=torch.uint8), torch.zeros(10, dtype=torch.int64)
        >>> loader = Loader(images, targets, batch_size=4, mean=(0.5,), std=(0.5,))
        >>> [tuple(inputs.shape) for inputs, _, _ in loader]
        [(4, 1, 4, 4), (4, 1, 4, 4), (2, 1, 4, 4)]
    """

    targets: Tensor

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
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise TypeError(f"expected images as uint8 (N, C, H, W), got {images.dtype} {tuple(images.shape)}")
        if len(images) != len(targets):
            raise ValueError(f"expected a target for each of {len(images)} images, got {len(targets)}")
        if len(mean) != images.shape[1]:
            raise ValueError(f"expected a mean for each of {images.shape[1]} channels, got {tuple(mean)}")
        super().__init__(len(images), classes_in(targets), batch_size=batch_size, shuffle=shuffle, seed=seed)
        self.images, self.targets = images, targets
        self.augment = tuple(augment)
        self.normalise = Normalise(mean, std)

    def to(self, device: torch.device | str) -> Self:
        """Keep the images on ``device`` and make batches there; returns the loader itself."""
        self.images, self.targets = self.images.to(device), self.targets.to(device)
        self.normalise = self.normalise.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        drawn: dict[Look, list[Drawn]] = {}
        for pieces in plan:
            drawn = {look: drawn[look] if look in drawn else self._draw(look) for look, _ in pieces}
            inputs = torch.cat([self._inputs(ids, drawn[look]) for look, ids in pieces])
            ids = torch.cat([ids for _, ids in pieces]).to(self.images.device)
            yield inputs, self.targets[ids], ids

    def _draw(self, look: Look) -> list[Drawn]:
        """Every augmentation with its parameters for all samples, those not served too, so that ids index them."""
        return [
            (step, step.draw(len(self.images), generator("augment", *look, position)))
            for position, step in enumerate(self.augment if self.augmented else ())
        ]

    def _inputs(self, ids: Tensor, drawn: list[Drawn]) -> Tensor:
        """Inputs of the samples ``ids``, augmented and normalised."""
        device = self.images.device
        images = self.images[ids.to(device)]
        steps = [(step, parameters[ids].to(device)) for step, parameters in drawn]
        for step, parameters in steps:
            if step.on_pixels:
                images = step.apply(images, parameters)
        images = self.normalise(images)
        for step, parameters in steps:
            if not step.on_pixels:
                images = step.apply(images, parameters)
        return images
