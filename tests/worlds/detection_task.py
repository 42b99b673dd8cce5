"""Object detection, on torchvision's Faster R-CNN as it is.

In train mode it answers with its losses, which `limbeck.S` has as ``":loss_classifier"`` and so on; in eval mode with
boxes, labels and scores of each image. A teacher is asked about what the student saw: its images, and its sampled proposals
where the objective reads them. What the teacher would propose is never computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchvision.ops import box_iou
from torchvision.utils import draw_bounding_boxes

from limbeck.core.exhibits import Exhibit, Gallery, Shown
from limbeck.core.finding import Examined, Finding
from limbeck.core.task import Batch, Score, Task
from limbeck.core.trace import Trace

SEEN = "transform:"
"""The student's images, resized and normalised, with the targets on them."""
PROPOSALS = "roi_heads.box_roi_pool:in:1:"
"""The student's proposals, sampled for training: a tensor (P, 4) an image."""


def images_and_targets(batch: Batch) -> dict[str, Any]:
    """Feed both: a detector needs the targets in train mode, and does not look at them in eval mode."""
    return {"images": list(batch[0]), "targets": list(batch[1])}


def as_it_is(answer: Any) -> Any:
    """A detector's losses, or its boxes."""
    return answer


def sum_of_losses(losses: Mapping[str, Tensor], targets: Any) -> Tensor:
    """The network's own losses, each with weight 1, as torchvision trains them."""
    first, *rest = losses.values()
    return sum(rest, first)


def asked(net: nn.Module, inputs: Any, beside: Trace) -> None:
    """Run the parts of a detector on what the student saw, and proposed."""
    images, _ = beside[SEEN]
    levels = net.backbone(images.tensors)
    net.rpn.head(list(levels.values()))
    if PROPOSALS in beside:
        heads = net.roi_heads
        heads.box_predictor(heads.box_head(heads.box_roi_pool(levels, beside[PROPOSALS], images.image_sizes)))


class BestOverlap(Metric):
    """How well true boxes are met: the mean over them of the best IoU with a box found of the same class."""

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), "sum")
        self.add_state("boxes", torch.zeros(()), "sum")

    def update(self, answer: list[dict[str, Tensor]], target: list[dict[str, Tensor]]) -> None:
        for found, true in zip(answer, target, strict=True):
            same = true["labels"][:, None] == found["labels"][None]
            overlap = box_iou(true["boxes"], found["boxes"]) * same
            self.total += overlap.amax(1).sum() if overlap.numel() else 0.0
            self.boxes += len(true["boxes"])

    def compute(self) -> Tensor:
        return self.total / self.boxes.clamp(min=1)


def overlap(answer: Any) -> MetricCollection:
    """``IoU``; COCO's mAP is torchmetrics' ``MeanAveragePrecision``, which needs a backend."""
    return MetricCollection({"IoU": BestOverlap()})


def examine(setup: Examined) -> Iterator[Finding]:
    """Find boxes of the background, and boxes of no area."""
    boxes = [one for targets in setup.targets() for one in targets]
    if any(bool((one["labels"] < 1).any()) for one in boxes):
        yield Finding("labels", "failed", "class 0 is the background's: let the classes of boxes begin with 1")
    if any(bool((one["boxes"][:, 2:] <= one["boxes"][:, :2]).any()) for one in boxes):
        yield Finding("boxes", "failed", "a box has no area: boxes are (left, top, right, bottom), in pixels")


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show a few images with their true boxes, and with the surest that each network finds."""
    inputs, targets = shown.samples
    columns = {"true": targets, **shown.answers}
    rows = tuple(
        tuple(_drawn(image, found[row]["boxes"][:5]) for found in columns.values())
        for row, image in enumerate(inputs["images"][:4])
    )
    yield Gallery("Boxes", tuple(columns), rows)


def _drawn(image: Tensor, boxes: Tensor) -> Any:
    picture = (255 * image.clamp(0, 1)).byte()
    return (draw_bounding_boxes(picture, boxes, colors="red") if len(boxes) else picture).permute(1, 2, 0).numpy()


detection = Task(
    name="detection",
    inputs=images_and_targets,
    output=as_it_is,
    ask=asked,
    shows=(SEEN,),
    loss=sum_of_losses,
    outcomes=None,
    metrics=overlap,
    score=Score("IoU"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
