"""Batches of any samples: images with boxes or masks, pairs of images, texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from limbeck.core.task import Batch
from limbeck.core.trace import describe
from limbeck.data.augment import Normalise
from limbeck.data.epochs import Epochs, Look, Piece, generator, seed_of

if TYPE_CHECKING:
    from typing_extensions import Self

Sample = tuple[Any, Any]
"""Inputs and target."""
Transform = Callable[[Any, Any], Sample]
Collate = Callable[[list[Sample], Tensor], Batch]


class Samples(Protocol):
    """A data set: torch's, torchvision's, datasets', or a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def stacked(samples: list[Sample], ids: Tensor) -> Batch:
    """Make a batch of samples of one size: (inputs, targets, ids), as tensors, or dicts of tensors."""
    inputs, targets = default_collate(samples)
    return inputs, targets, ids


def ragged(samples: list[Sample], ids: Tensor) -> Batch:
    """Make a batch of samples of any size: (inputs, targets, ids), lists with a sample an entry, as detectors take them."""
    inputs, targets = zip(*samples, strict=True)
    return list(inputs), list(targets), ids


@final
class Items(Epochs):
    """Batches of the samples of any data set, which worker processes read and augment.

    What a sample draws from torch's generator, as it is read and as it is changed, depends on (seed, view, lap, id) alone,
    whatever it draws: torchvision's v2 transforms change boxes and masks (``tv_tensors``) along with their image, and
    the tokens that are to be guessed are a transform too. What draws from elsewhere, Python's ``random`` or NumPy, does
    not repeat.

    The order of batches, distribution over processes, ``set_epoch``, ``state_dict``: see ``Epochs``.

    Args:
        samples: the data set: ``samples[i]`` is (inputs, target), whatever these are.
        batch_size: samples in a batch, over all processes.
        transform: of a sample that is augmented, ``(inputs, target) -> (inputs, target)``: give it to training data only.
        plain: of a sample that is not augmented, likewise: of data without ``transform``, and of ``plain()``.
        collate: makes a batch of samples and their ids: `stacked`, `ragged`, or your own, which may return a dict with a
            column ``"ids"``.
        labels: class of every sample, int64 (N,), where it has one; -100 marks a sample without a label.
        normalise: of a batch's inputs, where they are pixels, uint8 (B, C, H, W); pages then show them as they were.
        workers: processes that read and augment; 0 does so in this one.
        shuffle: permute every view; marks a loader for training.
        seed: of order and augmentation.

    Raises:
        TypeError: A sample, or what a transform makes of it, is no pair.

    Example:
        >>> pictures = [(torch.rand(3, 4 + i, 5), {"boxes": torch.zeros(i, 4)}) for i in range(6)]
        >>> inputs, targets, ids = next(iter(Items(pictures, batch_size=4, collate=ragged)))
        >>> [tuple(image.shape) for image in inputs], ids
        ([(3, 4, 5), (3, 5, 5), (3, 6, 5), (3, 7, 5)], tensor([0, 1, 2, 3]))
    """

    def __init__(
        self,
        samples: Samples,
        *,
        batch_size: int,
        transform: Transform | None = None,
        plain: Transform | None = None,
        collate: Collate = stacked,
        labels: Tensor | None = None,
        normalise: Normalise | None = None,
        workers: int = 0,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(len(samples), labels, batch_size=batch_size, shuffle=shuffle, seed=seed)
        self.samples = samples
        self.collate = collate
        self.normalise = normalise
        self.workers = workers
        self.device = torch.device("cpu")
        self._transforms = (transform, plain)

    def to(self, device: torch.device | str) -> Self:
        """Serve batches on ``device`` from now on; returns the loader itself."""
        self.device = torch.device(device)
        self.normalise = self.normalise and self.normalise.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        transform, plain = self._transforms
        change = transform if self.augmented and transform is not None else plain
        pieces = Drawn(self.samples, change)
        for batch in drawn(pieces, self.collate, plan, self.workers, self.device):
            yield batch if self.normalise is None else (self.normalise(batch[0]), *batch[1:])


@dataclass(frozen=True)
class Drawn(Dataset[tuple[Sample, int]]):
    """Samples with their ids, changed as a look says."""

    samples: Samples
    change: Transform | None

    def __getitem__(self, key: tuple[Look, int]) -> tuple[Sample, int]:
        look, row = key
        # torchvision draws from the global generator of the CPU, which is put back: it is the user's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed_of("augment", *look, row))
            sample = _pair(self.samples[row], "expected a sample to be")
            changed = sample if self.change is None else self.change(*sample)
        return _pair(changed, "expected a transform to return"), row


def drawn(
    samples: Drawn, collate: Collate, plan: Iterable[list[Piece]], workers: int, device: torch.device
) -> Iterator[Batch]:
    """Yield the batches that ``plan`` lists, on ``device``."""
    from lightning.fabric.utilities import move_data_to_device

    batches = DataLoader(
        samples,
        batch_sampler=([(look, row) for look, ids in pieces for row in ids.tolist()] for pieces in plan),
        num_workers=workers,
        collate_fn=_Collated(collate),
        pin_memory=device.type == "cuda",
        generator=generator("workers"),  # its own, so that the user's stays untouched
    )
    for batch in batches:
        yield move_data_to_device(batch, device)


@dataclass(frozen=True)
class _Collated:
    """Makes a batch of samples with their ids."""

    collate: Collate

    def __call__(self, samples: list[tuple[Sample, int]]) -> Batch:
        return self.collate([sample for sample, _ in samples], torch.tensor([row for _, row in samples]))


def _pair(sample: Any, expected: str) -> Sample:
    if not isinstance(sample, (tuple, list)) or len(sample) != 2:
        raise TypeError(
            f"{expected} (inputs, target), got {describe(sample)}. Inputs of several parts are a dict, "
            "({'image': ..., 'depth': ...}, target)"
        )
    return sample[0], sample[1]
