from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from limbeck.data import digits
from limbeck.data.augment import recipe
from limbeck.data.epochs import Epochs, generator
from limbeck.data.loader import Loader
from limbeck.data.source import Part, Source
from limbeck.data.split import balanced, hold_out

UNLABELLED = -100
"""The target of a sample without a label: torch's own `ignore_index`."""


@dataclass(frozen=True)
class Data:
    """A data set ready for training: three loaders of batches (inputs, targets, ids) and what a network must know.

    Args:
        name: what it was loaded by.
        train: shuffled and augmented; targets are -100 where the label was put away.
        val: for choosing (epochs, weights, methods); the official split, or held out from train.
        test: for the final number alone.
        classes: names, in the order of the targets.
        shape: of one input, (C, H, W).
        note: what the reader of a result should know about the splits.
    """

    name: str
    train: Epochs
    val: Epochs
    test: Epochs
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    note: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    def labelled(self) -> Data:
        """Return the data with the labelled training samples alone, and as many batches an epoch as before."""
        return replace(self, train=self.train.labelled())

    def example(self, count: int = 8) -> Tensor:
        """Return the inputs (count, C, H, W) of training samples, not augmented."""
        return self.train.example(count)

    def with_seed(self, seed: int) -> Data:
        """Return the same samples in the order and with the augmentation of another seed."""
        return self._each(lambda loader: loader.with_seed(seed))

    def to(self, device: torch.device | str) -> Data:
        """Return the same data on ``device``."""
        return self._each(lambda loader: loader.to(device))

    def _each(self, change: Callable[[Epochs], Epochs]) -> Data:
        return replace(self, train=change(self.train), val=change(self.val), test=change(self.test))


Root = str | Path | None


@dataclass(frozen=True)
class _Named:
    """What is known of a data set by its name."""

    line: str
    read: Callable[[Root, bool], Source]
    augment: str = "crop-flip"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


_SETS = {
    "digits": _Named(
        "scikit-learn's handwritten digits: 1,797, 8x8 grey; needs no files", lambda *_: digits.read(), "crop"
    ),
}


def names() -> list[str]:
    """Return the names that ``load`` knows."""
    return list(_SETS)


def describe() -> list[tuple[str, str]]:
    """Return every name with a line about the data set."""
    return [(name, named.line) for name, named in _SETS.items()]


def load(
    name: str,
    root: str | Path | None = None,
    *,
    download: bool = False,
    batch_size: int = 128,
    labels: int | None = None,
    samples: int | None = None,
    val_share: float = 0.1,
    augment: str = "default",
    seed: int = 0,
    split_seed: int = 0,
    workers: int = 2,
    size: int = 224,
) -> Data:
    """Load a data set by name; nothing is downloaded unless asked for.

    Args:
        name: one of ``names()``.
        root: folder that holds the files; the digits need none.
        download: fetch missing files into ``root`` with torchvision, where it knows the set.
        batch_size: samples in a batch, over all processes.
        labels: keep this many training labels, class-balanced; the other targets become -100.
        samples: use only this many training samples, class-balanced.
        val_share: share of train to hold out for validation, where the set has no validation split of its own.
        augment: of training images: default (what suits the set), none, crop, crop-flip or cutout.
        seed: of the order of batches and the augmentation.
        split_seed: of the choice of validation samples, of samples and of labels.
        workers: processes that decode images too large for memory; 0 decodes in this one.
        size: side in pixels to which images too large for memory are cropped.
    """
    if name not in _SETS:
        raise ValueError(f"expected a data set out of {', '.join(_SETS)}, got {name!r}")
    named = _SETS[name]
    source = named.read(root, download)
    train, val = source.train, source.val
    if val is None:
        kept, held = hold_out(train.targets, val_share, generator("val", split_seed))
        train, val = train.take(kept), train.take(held)
    if samples is not None:
        train = train.take(balanced(train.targets, samples, generator("samples", split_seed), "samples")[1])
    if labels is not None:
        train = _forget(train, balanced(train.targets, labels, generator("labels", split_seed), "labels")[0])
    steps = recipe(named.augment if augment == "default" else augment, min(source.train.images.shape[-2:]))
    mean, std = (named.mean, named.std) if named.mean else statistics(source.train.images)

    def loader(part: Part, training: bool = False) -> Epochs:
        return Loader(
            part.images,
            part.targets,
            batch_size=batch_size,
            mean=mean,
            std=std,
            augment=steps if training else (),
            shuffle=training,
            seed=seed,
        )

    return Data(
        name,
        loader(train, training=True),
        loader(val),
        loader(source.test),
        source.classes,
        tuple(source.train.images.shape[1:]),
        source.note,
    )


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel of uint8 ``images``, of pixels scaled to [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    # A histogram of the 256 levels is exact and needs no float copy of the images.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a constant channel carries nothing to scale
    return tuple(mean.tolist()), tuple(std.tolist())


def _forget(part: Part, rows: Tensor) -> Part:
    """``part`` without the labels of ``rows``."""
    return Part(part.images, part.targets.index_fill(0, rows, UNLABELLED))
