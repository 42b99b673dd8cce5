"""Detection: hints, weighted soft labels and bounded regression.

Chen, Choi, Yu, Han, Chandraker, "Learning Efficient Object Detection Models with Knowledge Distillation", NIPS 2017. Here
the anchors' soft labels are of all anchors (the paper samples), and the bound is on the second stage's boxes.
"""

from __future__ import annotations

from typing import Any

import torch
from detection_task import PROPOSALS, SEEN, detection
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import Distill, S, T, Task, on
from limbeck.core.layers import shape_at
from limbeck.core.numerics import full_precision, same_shape
from limbeck.losses import hint as squared_error
from limbeck.nets.connectors import pointwise


@full_precision
def weighted_soft_cross_entropy(student: Tensor, teacher: Tensor, background: float = 1.5) -> Tensor:
    """−Σ_c w_c p_t(c) log p_s(c) of (P, K), class 0 the background of weight ``background``; mean over the proposals."""
    same_shape("class scores", student, teacher)
    shares = teacher.softmax(-1)
    shares = torch.cat([background * shares[..., :1], shares[..., 1:]], -1)
    return -(shares * student.log_softmax(-1)).sum(-1).mean()


@full_precision
def weighted_soft_objectness(student: list[Tensor], teacher: list[Tensor], background: float = 1.5) -> Tensor:
    """The same of two classes, object or not, over all anchors of all levels, each (N, A, H, W)."""
    for mine, theirs in zip(student, teacher, strict=True):
        same_shape("objectness, so anchors and strides,", mine, theirs)
    s, t = (torch.cat([level.flatten() for level in levels]) for levels in (student, teacher))
    share = t.sigmoid()
    return -(share * F.logsigmoid(s) + background * (1 - share) * F.logsigmoid(-s)).mean()


@full_precision
def bounded_regression(student: Tensor, teacher: Tensor, target: Tensor, margin: float = 0.0) -> Tensor:
    """‖R_s − y‖² where the student is not better than the teacher by ``margin``, else 0; mean over the boxes (P, 4)."""
    mine, theirs = ((offsets - target).square().sum(-1) for offsets in (student, teacher))
    return mine.where(mine + margin > theirs, 0.0).sum() / max(1, len(mine))


def bounded_boxes(
    student: Tensor, teacher: Tensor, proposals: list[Tensor], seen: Any, heads: Any, margin: float
) -> Tensor:
    """`bounded_regression` of the offsets (P, 4K), for each positive proposal's own class."""
    boxes = [own["boxes"] if len(own["boxes"]) else own["boxes"].new_zeros(1, 4) for own in seen[1]]
    labels = [own["labels"] if len(own["labels"]) else own["labels"].new_zeros(1) for own in seen[1]]
    matched, found = heads.assign_targets_to_proposals(proposals, boxes, labels)
    nearest = [own[rows.clamp(min=0)] for own, rows in zip(boxes, matched, strict=True)]
    target, of_class = torch.cat(heads.box_coder.encode(nearest, proposals)), torch.cat(found)
    rows = (of_class > 0).nonzero().flatten()
    mine, theirs = (each.view(len(of_class), -1, 4)[rows, of_class[rows]] for each in (student, teacher))
    return bounded_regression(mine, theirs, target[rows], margin)


def own(loss: Tensor) -> Tensor:
    """A loss that the network computes itself."""
    return loss


def chen(
    student: nn.Module,
    teacher: nn.Module,
    *,
    hard: float = 0.5,
    bounded: float = 0.5,
    margin: float = 0.0,
    background: float = 1.5,
    hint: float = 0.5,
    levels: tuple[str, ...],
    example: Any,
    task: Task = detection,
) -> Distill:
    """Distil a Faster R-CNN: the classes of both heads, the boxes of the second, and the levels of the pyramid."""
    box, rpn = "roi_heads.box_predictor", "rpn.head:0:"
    soft = on(weighted_soft_cross_entropy, S[f"{box}:0"], T[f"{box}:0"], name="soft", background=background)
    soft += on(weighted_soft_objectness, S[rpn], T[rpn], name="soft.rpn", background=background)
    regressed = S[f"{box}:1"], T[f"{box}:1"], S[PROPOSALS], S[SEEN]
    objective = (
        hard * (on(own, S[":loss_classifier"], name="classifier") + on(own, S[":loss_objectness"], name="objectness"))
        + on(own, S[":loss_box_reg"], name="boxes")
        + on(own, S[":loss_rpn_box_reg"], name="anchors")
        + (1 - hard) * soft
        + bounded * on(bounded_boxes, *regressed, name="bounded", heads=student.roi_heads, margin=margin)
    )
    for place in (f"backbone:{level}" for level in levels):
        c_s, c_t = (shape_at(net, place, example, task)[1] for net in (student, teacher))
        objective += hint * on(squared_error, S[place].via(pointwise(c_s, c_t)), T[place], name=f"hint.{place}")
    return Distill(student, teacher, objective, task)
