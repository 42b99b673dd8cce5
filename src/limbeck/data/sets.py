from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from limbeck.core.extras import needing
from limbeck.core.options import ranged
from limbeck.core.task import Task
from limbeck.data import cifar, diabetes, digits, idx, imagefolder, masks, parquet
from limbeck.data.augment import Normalise, recipe
from limbeck.data.epochs import Epochs, classes_in, generator, known
from limbeck.data.files import MEAN, SIDE, STD, FileLoader
from limbeck.data.items import Items
from limbeck.data.loader import Loader
from limbeck.data.pipeline import in_words, normalisation, resizing, seen_in, settled
from limbeck.data.rows import Rows
from limbeck.data.source import Encoded, Part, Source, checked
from limbeck.data.split import balanced, groups, hold_out
from limbeck.tasks.classification import classification
from limbeck.tasks.multilabel import multilabel
from limbeck.tasks.regression import regression
from limbeck.tasks.segmentation import segmentation


@dataclass(frozen=True)
class Data:
    """A data set ready for training: three loaders of batches (inputs, targets, ids) and what a network must know.

    Args:
        name: what it was loaded by.
        train: shuffled and augmented; targets are -100, values NaN, where the label was put away.
        val: for choosing (epochs, weights, methods); the official split, or held out from train.
        test: for the final number alone.
        classes: names of the classes or labels, in the order of a network's outputs; none of values.
        shape: of one input, (C, H, W), (D,); None where inputs have none.
        note: what the reader of a result should know about the splits.
        mean: of every channel, of pixels scaled to [0, 1], or of every column; inputs are (values - mean) / std.
        std: likewise.
        task: what networks are made to do with it.
        outputs: how many outputs a network needs; by default one a class.
        pipeline: what decided the inputs and targets, in plain words and numbers, as `load` found it: samples, labels,
            classes in their order, shape, resizing, augmentation, mean and std, whether in memory; for the log.

    Raises:
        ValueError: Neither classes nor outputs.

    Example:
        >>> x, tags = torch.randn(90, 6), torch.randint(2, (90, 3))
        >>> train = Rows(x[:60], tags[:60], batch_size=20, shuffle=True)
        >>> val, test = Rows(x[60:75], tags[60:75], batch_size=15), Rows(x[75:], tags[75:], batch_size=15)
        >>> data = Data("mine", train, val, test, ("red", "round", "large"), (6,), task=multilabel)
        >>> data.outputs, data.task.score.name
        (3, 'mAP')
    """

    name: str
    train: Epochs
    val: Epochs
    test: Epochs
    classes: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    note: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: Task = classification
    outputs: int = 0
    pipeline: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.outputs < 0 or not (self.outputs or self.classes):
            raise ValueError(
                f"{self.name}: how many outputs does a network need? Pass classes=, their names, or outputs=, 1 for a value"
            )
        object.__setattr__(self, "outputs", self.outputs or len(self.classes))
        shapes = {
            name: _held(loader) for name, loader in (("train", self.train), ("val", self.val), ("test", self.test))
        }
        for name, shape in shapes.items():
            if None not in (shape, shapes["train"]) and shape != shapes["train"]:
                warnings.warn(
                    f"{self.name}: inputs have shape {shape} in the {name} split, and {shapes['train']} in train: a "
                    "network whose layers ask for one size cannot be measured on them",
                    stacklevel=3,
                )

    @property
    def num_classes(self) -> int:
        """Number of classes: `outputs` by its older name."""
        return self.outputs

    def labelled(self) -> Data:
        """Return the data with the labelled training samples alone, and as many batches an epoch as before."""
        train = self.train.labelled()
        counts = {"samples": {**self.pipeline.get("samples", {}), "train": len(train.ids)}} if self.pipeline else {}
        return replace(self, train=train, pipeline={**self.pipeline, **counts})

    def in_words(self) -> str:
        """Return in a line what decided the inputs and targets, `pipeline`; nothing where it is not known."""
        return in_words(self.pipeline)

    def example(self, count: int = 8) -> Any:
        """Return the inputs of training samples, (count, C, H, W), not augmented."""
        return self.train.example(count)

    def with_seed(self, seed: int) -> Data:
        """Return the same samples in the order and with the augmentation of another seed."""
        train, val, test = (loader.with_seed(seed) for loader in (self.train, self.val, self.test))
        return replace(self, train=train, val=val, test=test)

    def to(self, device: torch.device | str) -> Data:
        """Move all three loaders to ``device``; returns the data itself."""
        for loader in (self.train, self.val, self.test):
            loader.to(device)
        return self


Root = str | Path | None


@dataclass(frozen=True)
class _Named:
    """What is known of a data set by its name."""

    line: str
    read: Callable[..., Source]  # of root and download, and for masks of the value of a pixel without a label
    augment: str = "crop-flip"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    task: Task = classification


_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")

_SETS = {
    "digits": _Named(
        "scikit-learn's 1,797 handwritten digits, 8x8 grey, 10 classes; needs no files",
        lambda *_: digits.read(),
        augment="crop",
    ),
    "digits-attributes": _Named(
        "the digits, 5 labels each: even, above four, prime, loop (0 6 8 9), straight (1 4 7); needs no files",
        lambda *_: digits.read_attributes(),
        augment="crop",
        task=multilabel,
    ),
    "diabetes": _Named(
        "scikit-learn's 442 patients, 10 numbers; the disease's progression, in hundreds; needs no files",
        lambda *_: diabetes.read(),
        augment="none",
        task=regression,
    ),
    "mnist": _Named(
        "MNIST: 70,000 handwritten digits, 28x28 grey, 10 classes; idx files",
        partial(idx.read, "MNIST", classes=tuple("0123456789")),
        augment="crop",
        mean=(0.1307,),  # PyTorch's own example, examples/mnist/main.py; so computed from train
        std=(0.3081,),
    ),
    "fashion-mnist": _Named(
        "Fashion-MNIST: 70,000 pieces of clothing, 28x28 grey, 10 classes; idx files",
        partial(idx.read, "FashionMNIST", classes=_FASHION),
    ),
    "cifar10": _Named(
        "CIFAR-10: 60,000 photographs, 32x32, 10 classes; python, binary or parquet files",
        partial(cifar.read, cifar.CIFAR10),
        mean=(0.4914, 0.4822, 0.4465),  # computed from train, with the std of all its pixels
        std=(0.2470, 0.2435, 0.2616),
    ),
    "cifar100": _Named(
        "CIFAR-100: 60,000 photographs, 32x32, 100 classes; python, binary or parquet files",
        partial(cifar.read, cifar.CIFAR100),
        mean=(0.5071, 0.4867, 0.4408),  # RepDistiller (Tian et al. 2020), on which the field's tables were made
        std=(0.2675, 0.2565, 0.2761),
    ),
    "imagefolder": _Named("a folder of your own: train/CLASS/IMAGE and val/ or test/ likewise", imagefolder.read),
    "parquet": _Named("a folder of parquet files with images and labels, as Hugging Face keeps them", parquet.read),
    "voc-masks": _Named(
        "images with masks as VOC keeps them: JPEGImages/, SegmentationClass/, ImageSets/Segmentation/",
        masks.read_voc,
        task=segmentation(),
    ),
    "cityscapes": _Named(
        "Cityscapes: 3,475 street scenes, 19 classes a pixel; leftImg8bit/ and gtFine/",
        masks.read_cityscapes,
        task=segmentation(),
    ),
    "masks": _Named(
        "a folder of your own: train/images/, train/masks/ of the same names, and val/ or test/ likewise",
        masks.read_pairs,
        task=segmentation(),
    ),
}


def names() -> list[str]:
    """Return the names that ``load`` knows."""
    return list(_SETS)


def describe() -> list[tuple[str, str]]:
    """Return every name with a line about the data set."""
    return [(name, named.line) for name, named in _SETS.items()]


@ranged
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
    size: int | Sequence[int] | None = None,
    ignore: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    in_memory: bool | None = None,
    views: int | None = None,
    view_seed: int = 0,
) -> Data:
    """Load a data set by name; nothing is downloaded unless asked for.

    What is hidden or no image is no data; a file that is broken, or whose values cannot be made 8 bits faithfully, is
    refused by name: here, as far as the beginnings of files tell, or else as it is decoded. Images are turned upright by
    their EXIF data, transparent ones lie on white.

    Of images that are kept in memory only those asked for are decoded, and all of train where its mean is computed. Once
    decoded they are kept on disk, at most 5 GB, for the next start: in ``~/.cache/limbeck`` (``XDG_CACHE_HOME``), in the
    folder that the environment variable ``LIMBECK_DECODED`` names, or nowhere if it is ``off``. That folder may be deleted.

    Args:
        name: one of ``names()``.
        root: folder that holds the files; the digits and diabetes need none.
        download: fetch missing files into ``root`` with torchvision, where it knows the set.
        batch_size: samples in a batch, over all processes, at least 1.
        labels: keep this many samples' labels in training, as many of every class and at least one; the other targets
            become -100, values NaN. Where a sample has not one class, several labels or values, they are chosen at random.
        samples: use only this many training samples, chosen likewise.
        val_share: share of train to hold out for validation, in (0, 1), where the set has no validation split of its own.
        augment: of training images: default (what suits the set), none, crop, crop-flip or cutout.
        seed: of the order of batches and the augmentation, in [0, 4294967295]; numpy's limit.
        split_seed: of the choice of validation samples, of samples and of labels, in [0, 4294967295].
        workers: processes that decode images which are not in memory, at least 0; 0 decodes in this one.
        size: side in pixels to which images that are not in memory are cropped, 224 by default; images with masks may have
            two, height and width. Held-out images with masks are resized whole to it with their masks, and judged so.
        ignore: value of the pixels of a mask that have no label; 255 by default.
        mean: of every channel, of pixels scaled to [0, 1]; by default what is known of the set, or computed from train, or
            ImageNet's for images that are not in memory.
        std: likewise.
        in_memory: keep images in memory as they are, or decode and crop them one by one. By default those of one size of at
            most 96 pixels a side are kept; small images of several sizes are refused, unless a ``size`` is given.
        views: in how many ways each training image looks, at least 1, one after the other: epoch e shows view e mod
            ``views``, so that what a teacher says of them can be kept. By default every epoch draws anew.
        view_seed: those views are drawn by it, in [0, 4294967295], whatever ``seed`` is.

    Raises:
        FileNotFoundError: The folder does not hold the set.
        ValueError: A file that is broken, labels that are no classes of the set, an option out of range.
        TypeError: An option of another kind.
        ModuleNotFoundError: ``limbeck[train]`` is not installed, and the set needs a package of it.
    """
    if name not in _SETS:
        raise ValueError(f"expected a data set out of {', '.join(_SETS)}, got {name!r}{meant(name)}")
    _whole(batch_size=batch_size, labels=labels, samples=samples, seed=seed, split_seed=split_seed, workers=workers)
    _whole(views=views, view_seed=view_seed)
    named = _SETS[name]
    with needing("train", f"the data {name!r}"):
        source = checked(name, _read(name, named, root, download, ignore))
        train, val = _validation(source, val_share, split_seed)
        if samples is not None:
            train = train.take(balanced(groups(train.targets), samples, generator("samples", split_seed), "samples")[1])
        parts = {"train": train, "val": val, "test": source.test}
        if mean is None and std is None and not named.mean:
            parts["measured"] = source.train  # all of it, whatever was asked for
        held, looks = settled(name, source, parts, size, in_memory)
    train = held["train"]
    if train.masks is None:
        _tell_of_absent(name, train.targets, source.classes)
    if labels is not None:
        rest, _ = balanced(groups(train.targets), labels, generator("labels", split_seed), "labels")
        train = train.unlabelled(rest)
    shape = _shape(train.images, SIDE if size is None else size)
    said = normalisation(name, shape[0], mean, std, pixels=not _rows(train))
    means, stds = said or _normalisation(named, held.get("measured", train).images)
    make = partial(
        _loader,
        mean=means,
        std=stds,
        batch_size=batch_size,
        seed=seed,
        workers=workers,
        size=SIDE if size is None else size,
    )
    augment = named.augment if augment == "default" else augment
    shown = make(train, augment=augment, shuffle=True)
    shown = shown if views is None else shown.cycling(views, view_seed)
    loaders = {"train": shown, "val": make(held["val"]), "test": make(held["test"])}
    pipeline = {
        "data": name,
        "samples": {split: len(loader.ids) for split, loader in loaders.items()},
        "labels": _labelled(train),
        "classes": list(source.classes),
        "inputs": list(shape),
        "files": seen_in(looks),
        "in_memory": isinstance(train.images, Tensor),
        "resize": resizing(train, size, augment),
        "augment": augment,
        **({} if views is None else {"views": views}),
        "mean": list(means),
        "std": list(stds),
        "note": source.note,
    }
    return Data(
        name=name,
        train=loaders["train"],
        val=loaders["val"],
        test=loaders["test"],
        classes=source.classes,
        shape=shape,
        note=source.note,
        mean=tuple(means),
        std=tuple(stds),
        task=named.task,
        outputs=len(source.classes) or source.train.targets.shape[-1],
        pipeline=pipeline,
    )


def meant(name: str) -> str:
    """Ask for the data set of the closest name, or say how a folder is loaded; nothing where neither helps."""
    if close := difflib.get_close_matches(name, _SETS, n=2, cutoff=0.7):
        return f": did you mean {' or '.join(close)}?"
    if Path(name).expanduser().is_dir():
        return (
            f", which is a folder: of images by class it is limbeck.data.load('imagefolder', root={name!r}) (--data "
            f"imagefolder --root {name})"
        )
    return ""


def _whole(**counts: int | None) -> None:
    """Refuse what is no whole number."""
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
            raise TypeError(f"{name} must be a whole number, got {count!r}")


def _tell_of_absent(name: str, targets: Tensor, classes: Sequence[str]) -> None:
    """Say which classes cannot be learned, since no training sample is of them."""
    if classes_in(targets) is None or not classes:
        return
    counts = torch.bincount(targets, minlength=len(classes))
    if absent := [one for one, count in zip(classes, counts.tolist(), strict=True) if not count]:
        warnings.warn(
            f"{name}: no training sample is of {len(absent)} of {len(classes)} classes, {', '.join(absent[:8])}: they "
            "cannot be learned",
            stacklevel=4,
        )


def _labelled(part: Part) -> int:
    hidden = None if part.masks is None else part.masks.hidden
    return int(known(part.targets).sum() if hidden is None else (~hidden).sum())


def _rows(part: Part) -> bool:
    """Return whether inputs are rows of numbers, and not images."""
    return isinstance(part.images, Tensor) and part.images.is_floating_point()


def _held(loader: Epochs) -> tuple[int, ...] | None:
    """Return the shape of one input of a loader that has all in memory."""
    values = loader.images if isinstance(loader, Loader) else loader.rows if isinstance(loader, Rows) else None
    return None if values is None else tuple(values.shape[1:])


def _read(name: str, named: _Named, root: Root, download: bool, ignore: int | None) -> Source:
    """Read a data set; only the values of masks can mean that there is no label."""
    if named.task is not segmentation():
        if ignore is not None:
            raise ValueError(f"{name} has no masks in which values could be ignored: leave ignore out, got {ignore}")
        return named.read(root, download)
    return named.read(root, download, 255 if ignore is None else ignore)


def _validation(source: Source, share: float, seed: int) -> tuple[Part, Part]:
    """Train and validation: the official split, or a share held out from train."""
    if source.val is not None:
        return source.train, source.val
    kept, held = hold_out(groups(source.train.targets), share, generator("val", seed))
    return source.train.take(kept), source.train.take(held)


def _loader(
    part: Part,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    seed: int,
    workers: int,
    size: int | Sequence[int],
    augment: str = "none",
    shuffle: bool = False,
) -> Epochs:
    if part.masks is not None and isinstance(part.images, Encoded):
        return Items(
            masks.Pairs(part.images, part.masks),
            batch_size=batch_size,
            transform=masks.transform(augment, masks.sides(size)),
            plain=masks.transform("none", masks.sides(size)),
            labels=None if part.masks.hidden is None else part.targets,
            normalise=Normalise(mean, std),
            workers=workers,
            shuffle=shuffle,
            seed=seed,
        )
    if isinstance(part.images, Tensor) and part.images.is_floating_point():
        if augment != "none":
            raise ValueError(f"expected augment to be default or none for rows of numbers, got {augment!r}")
        rows = (part.images - torch.tensor(mean)) / torch.tensor(std)
        return Rows(rows, part.targets, batch_size=batch_size, shuffle=shuffle, seed=seed)
    if isinstance(part.images, Tensor):
        return Loader(
            part.images,
            part.targets,
            batch_size=batch_size,
            mean=mean,
            std=std,
            augment=recipe(augment, min(part.images.shape[-2:])),
            shuffle=shuffle,
            seed=seed,
        )
    if not isinstance(size, int):
        raise TypeError(f"expected size to be one side, as images are cropped to squares, got {size}")
    return FileLoader(
        part.images,
        part.targets,
        batch_size=batch_size,
        augment=augment,
        size=size,
        workers=workers,
        mean=mean,
        std=std,
        shuffle=shuffle,
        seed=seed,
    )


def _shape(images: Tensor | Encoded, size: int | Sequence[int]) -> tuple[int, ...]:
    return (3, *masks.sides(size)) if isinstance(images, Encoded) else tuple(images.shape[1:])


def _normalisation(named: _Named, images: Tensor | Encoded) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and std: ImageNet's for large images, the ones known for the set, or else computed from all of train."""
    if isinstance(images, Encoded):
        return MEAN, STD
    return (named.mean, named.std) if named.mean else statistics(images)


def statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of every channel of uint8 images, scaled to [0, 1], or of every column of rows."""
    if images.is_floating_point():
        deviation, centre = torch.std_mean(images.double(), 0, correction=0)
        return tuple(centre.tolist()), tuple(deviation.where(deviation > 0, 1.0).tolist())
    levels = torch.arange(256, dtype=torch.float64) / 255
    # A histogram of the 256 levels is exact and needs no float copy of the images.
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]) ** 2).sum(1).sqrt()
    std[std == 0] = 1.0  # a constant channel carries nothing to scale
    return tuple(mean.tolist()), tuple(std.tolist())
