"""One class a sample: top-1 accuracy, cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.exhibits import Exhibit, Shown
from limbeck.finding import Examined, Finding, Status
from limbeck.numerics import full_precision
from limbeck.task import UNLABELLED, Score, Task, logits

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

LIFT = 0.1  # of accuracy, from which another order of classes is suspected


@full_precision
def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the labels, mean over what is labelled; 0 where nothing of the batch is.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        targets: Class indices, (N) or (N, ...), where -100 is "no label"; or soft labels as the logits are shaped.
    """
    soft = targets.is_floating_point()
    rows = targets.flatten(0, -2) if soft else targets.flatten()
    loss = F.cross_entropy(student.flatten(0, -2), rows, ignore_index=UNLABELLED)
    return torch.where((targets != UNLABELLED).any(), loss, 0.0)


def as_they_are(answer: Tensor) -> Tensor:
    """Return logits of classes, which exclude each other."""
    return answer


def top_1(answer: Tensor) -> MetricCollection:
    """Accuracy and mean loss over the labelled samples."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy

    from limbeck.tasks.meters import MeanLoss

    accuracy = MulticlassAccuracy(answer.shape[-1], average="micro", ignore_index=UNLABELLED)
    return MetricCollection({"accuracy": accuracy, "loss": MeanLoss(cross_entropy)})


def one_of_k(answer: Tensor) -> float:
    """Return the accuracy of who guesses."""
    return 1 / answer.shape[-1]


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare labels with outputs, and the order of a teacher's classes with the data's."""
    target = setup.task.target(setup.batch)
    if (kind := _no_classes(target)) is not None:
        yield kind
        return
    widths = {name: width for name, net in setup.networks.items() if (width := _width(setup, net, target)) is not None}
    if not widths:
        yield Finding("labels", "ok", "not checked: the targets are no classes of the outputs")
        return
    known = setup.outputs or min(widths.values())
    found = [_labels(setup, known), *(_outputs(name, width, setup.outputs or width) for name, width in widths.items())]
    yield from found
    if any(finding.status == "failed" for finding in found):
        return
    for role, teacher in setup.teachers.items():
        if _width(setup, teacher, target) == known:  # where features are compared, it may know other classes
            yield from _order(role, teacher, setup, known)


def _no_classes(target: Any) -> Finding | None:
    """Find targets that are of another task."""
    if not isinstance(target, Tensor) or not target.is_floating_point():
        return None
    if target.ndim == 2 and bool(torch.isin(target, target.new_tensor([0, 1, UNLABELLED])).all()):
        sums = target.where(target == 1, 0).sum(1)
        if bool((sums == 1).all()):
            return None  # one-hot: soft labels
        what = "several labels a sample? task=limbeck.multilabel (--task multilabel)"
    elif target.ndim == 2 and bool((target >= 0).all()) and bool(((target.sum(1) - 1).abs() < 1e-3).all()):
        return None  # soft or mixed labels
    else:
        what = "values? task=limbeck.regression (--task regression); soft labels add up to 1 in each row"
    message = (
        f"the targets are {target.dtype} of shape {tuple(target.shape)}, and classification has one class a sample, int64 "
        f"(N,): {what}"
    )
    return Finding("labels", "failed", message)


def _width(setup: Examined, net: nn.Module, target: Any) -> int | None:
    """Return how many classes a network tells apart; None where its answers are no class scores for the targets."""
    answer = setup.answer(net)
    scores = isinstance(answer, Tensor) and isinstance(target, Tensor) and not target.is_floating_point()
    return int(answer.shape[-1]) if scores and answer.shape[:-1] == target.shape else None


def _labels(setup: Examined, known: int) -> Finding:
    targets = torch.cat([target.flatten().cpu() for target in setup.targets()])
    targets = targets[targets != UNLABELLED]
    if not len(targets):
        return Finding("labels", "ok", "not checked: there are none")
    low, high = int(targets.min()), int(targets.max())
    values = {"lowest": float(low), "highest": float(high), "classes": float(known)}
    message = f"labels lie between {low} and {high}, of {known} classes"
    if low >= 0 and high < known:
        return Finding("labels", "ok", message, values)
    message += f": they must lie between 0 and {known - 1}, or be {UNLABELLED} where there is none"
    return Finding("labels", "failed", message, values)


def _outputs(name: str, width: int, known: int) -> Finding:
    status: Status = "failed" if width < known else "warning" if width > known else "ok"
    advice = "" if width == known else f": make it with num_classes={known}"
    message = f"the {name} has {width} classes, but the data has {known}{advice}"
    return Finding(f"{name} outputs", status, message, {"outputs": float(width), "classes": float(known)})


@torch.no_grad()
def _order(role: str, teacher: nn.Module, setup: Examined, width: int) -> Iterator[Finding]:
    """Find the order of classes that fits best on every other sample, and see whether it fits the others better."""
    from scipy.optimize import linear_sum_assignment

    said, right = _said(teacher, setup)
    if len(right) < 2:
        return
    confusion = torch.zeros(width, width).index_put_(
        (said[::2], right[::2]), torch.ones(len(said[::2])), accumulate=True
    )
    confusion += 1e-3 * torch.eye(width)  # classes that were not seen stay where they are
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    order = torch.empty(width, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    as_is, permuted = _share(said[1::2] == right[1::2]), _share(order[said[1::2]] == right[1::2])
    moved = (order != torch.arange(width)).nonzero().flatten().tolist()
    values = {"accuracy": as_is, "accuracy, permuted": permuted, "classes moved": float(len(moved))}
    # an untrained network gains a little too, but does not lose half of its errors
    if permuted - as_is > LIFT and 1 - permuted < (1 - as_is) / 2:
        which = ", ".join(f"{index} is {int(order[index])}" for index in moved[:4])
        message = (
            f"the {role}'s classes are permuted: with its output {which}{', …' if len(moved) > 4 else ''} its accuracy "
            f"rises from {as_is:.1%} to {permuted:.1%}. Put them into the data's order, as limbeck.Frozen(teacher, "
            "classes=...) does"
        )
        yield Finding(f"{role} classes", "failed", message, values)
    else:
        yield Finding(f"{role} classes", "ok", f"no other order of the {role}'s classes fits much better", values)


def _said(net: nn.Module, setup: Examined) -> tuple[Tensor, Tensor]:
    """Return what a network says, and what is right, at every labelled position."""
    said, right = [], []
    for batch in setup.held_out():
        target = setup.task.target(batch)
        answer = setup.task.feed(net, setup.task.inputs(batch))
        said.append(answer.argmax(-1)[target != UNLABELLED].cpu())
        right.append(target[target != UNLABELLED].cpu())
    return torch.cat(said), torch.cat(right)


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show soft labels, and what is confused."""
    yield from ()


classification = Task(
    name="classification",
    output=logits,
    loss=cross_entropy,
    outcomes=as_they_are,
    metrics=top_1,
    score=Score("accuracy"),
    guess=one_of_k,
    examine=examine,
    exhibit=exhibit,
)
