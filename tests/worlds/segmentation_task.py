"""Semantic segmentation, a class for every pixel, on networks that answer with (N, K, H, W), or with it as ``"out"``."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex
from torchvision.utils import draw_segmentation_masks

from limbeck import classification
from limbeck.exhibits import Exhibit, Gallery, Shown
from limbeck.losses import cross_entropy
from limbeck.task import UNLABELLED, Batch, Score, Task, logits
from limbeck.tasks.meters import MeanLoss


def classes_last(output: Any) -> Tensor:
    """Logits (N, H, W, K)."""
    return logits(output).movedim(1, -1)


def at_size_of(answer: Tensor, target: Tensor) -> Tensor:
    """Logits at the size of the labels: SegFormer's are at a quarter of it."""
    if answer.shape[1:3] == target.shape[1:]:
        return answer
    return F.interpolate(answer.movedim(-1, 1), target.shape[1:], mode="bilinear").movedim(1, -1)


def pixel_cross_entropy(answer: Tensor, target: Tensor) -> Tensor:
    """Mean over the labelled pixels."""
    return cross_entropy(at_size_of(answer, target), target)


class Overlap(MulticlassJaccardIndex):
    """The mean over classes of intersection over union, of labelled pixels."""

    def update(self, answer: Tensor, target: Tensor) -> None:
        super().update(at_size_of(answer, target).movedim(-1, 1), target)


class Pixels(MulticlassAccuracy):
    """The share of the labelled pixels that are right."""

    def update(self, answer: Tensor, target: Tensor) -> None:
        super().update(at_size_of(answer, target).movedim(-1, 1), target)


def overlaps(answer: Tensor) -> MetricCollection:
    """``mIoU``, ``pixels`` and mean loss."""
    known = {"num_classes": answer.shape[-1], "ignore_index": UNLABELLED}
    return MetricCollection(
        {"mIoU": Overlap(**known), "pixels": Pixels(**known, average="micro"), "loss": MeanLoss(pixel_cross_entropy)}
    )


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show a few images, the true classes of their pixels, and those that each network sees."""
    inputs, targets = shown.samples
    masks = {"true": targets} | {name: at_size_of(answer, targets).argmax(-1) for name, answer in shown.answers.items()}
    kinds = next(iter(shown.answers.values())).shape[-1]
    rows = tuple(
        (picture, *(_painted(picture, mask[row], kinds) for mask in masks.values()))
        for row, picture in enumerate(shown.pictures(inputs[:4], side=max(inputs.shape[2:])) or ())
    )
    yield Gallery("Classes of pixels", ("image", *masks), rows)


def _painted(picture: Any, mask: Tensor, kinds: int) -> Any:
    of_class = mask == torch.arange(kinds)[:, None, None]
    return draw_segmentation_masks(torch.from_numpy(picture).permute(2, 0, 1), of_class).permute(1, 2, 0).numpy()


def _target(batch: Batch, ignore: int) -> Tensor:
    return classification.target(batch).masked_fill(classification.target(batch) == ignore, UNLABELLED)


def _labelled(batch: Batch, ignore: int) -> Tensor:
    return _target(batch, ignore) != UNLABELLED


def segmentation(ignore: int = 255) -> Task:
    """Return the task in which pixels of the class ``ignore`` have no label."""
    return Task(
        name="segmentation",
        output=classes_last,
        loss=pixel_cross_entropy,
        target=partial(_target, ignore=ignore),
        mask=partial(_labelled, ignore=ignore),
        metrics=overlaps,
        score=Score("mIoU"),
        guess=None,
        exhibit=exhibit,  # its softening and its checks are classification's, pixel by pixel
    )
