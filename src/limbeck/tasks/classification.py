"""One class a sample: top-1 accuracy, cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.batches import part
from limbeck.core.distributed import of_update
from limbeck.core.exhibits import Bars, Exhibit, Matrix, Note, Shown, names
from limbeck.core.finding import Examined, Finding, Status, best_order, fits_better, in_order
from limbeck.core.numerics import full_precision
from limbeck.core.task import UNLABELLED, Score, Task, logits

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

UNSURE, MISTAKEN = 2, 2  # samples shown on which the teacher hesitates, and on which the student errs
A_CLASS = 10  # samples, of which one at least is of each class: ours
MOST_CLASSES = 1000  # beyond these a table of confusions is too large to keep, and to look at
KNOWN, CONFUSED = "What the teacher knows beyond the label", "What it confuses"


@full_precision
def cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy with the labels, mean over what is labelled; 0 where nothing of the batch is.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        targets: Class indices, (N) or (N, ...), where -100 is "no label"; or soft labels as the logits are shaped.
    """
    soft = targets.is_floating_point()
    if targets.shape != (student.shape if soft else student.shape[:-1]):
        raise ValueError(
            f"the labels of logits {tuple(student.shape)}, the classes last, are class indices "
            f"{tuple(student.shape[:-1])}, or soft labels as the logits are shaped; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    rows = targets.flatten(0, -2) if soft else targets.flatten()
    loss = F.cross_entropy(student.flatten(0, -2), rows, ignore_index=UNLABELLED)
    return of_update(torch.where((targets != UNLABELLED).any(), loss, 0.0), "labels")


def as_they_are(answer: Tensor) -> Tensor:
    """Return logits of classes, which exclude each other."""
    return answer


def top_1(answer: Tensor) -> MetricCollection:
    """Accuracy and mean loss over the labelled samples, or positions of (N, ..., K)."""
    from torchmetrics import MetricCollection

    from limbeck.tasks.meters import MeanLoss, Top1

    return MetricCollection({"accuracy": Top1(answer.shape[-1]), "loss": MeanLoss(cross_entropy)})


def one_of_k(answer: Tensor) -> float:
    """Return the accuracy of who guesses."""
    return 1 / answer.shape[-1]


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare labels with outputs, and the order of a teacher's classes with the data's."""
    target = setup.task.target(setup.batch)
    if (kind := _no_classes(target)) is not None:
        # a loss of the user's own may know what to make of them; softened classes do not
        own = setup.task.loss not in (cross_entropy, Task.loss) and not setup.teachers
        yield Finding("labels", "warning" if own else "failed", kind)
        return
    widths = {name: width for name, net in setup.networks.items() if (width := _width(setup, net, target)) is not None}
    if not widths:
        yield next(
            _not_last(setup, target), Finding("labels", "ok", "not checked: the targets are no classes of the outputs")
        )
        return
    known = setup.outputs or min(widths.values())
    found = [_labels(setup, widths), *(_outputs(name, width, setup.outputs or width) for name, width in widths.items())]
    yield from found
    if any(finding.status == "failed" for finding in found):
        return
    yield from _probabilities(setup)
    for role, teacher in setup.teachers.items():
        if _width(setup, teacher, target) == known:  # where features are compared, it may know other classes
            yield from _order(role, teacher, setup, known)


def _no_classes(target: Any) -> str | None:
    """Say of what other task targets are."""
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
    return (
        f"the targets are {target.dtype} of shape {tuple(target.shape)}, and classification has one class a sample, int64 "
        f"(N,): {what}"
    )


def _not_last(setup: Examined, target: Any) -> Iterator[Finding]:
    """Find answers with the classes on axis 1, (N, K, H, W), to targets (N, H, W)."""
    for name, net in setup.networks.items():
        answer = setup.answer(net)
        if not isinstance(answer, Tensor) or not isinstance(target, Tensor) or answer.ndim < 3:
            continue
        if answer.shape[:1] + answer.shape[2:] == target.shape:
            message = (
                f"the {name} answers with {tuple(answer.shape)}, the classes on axis 1, and they must come last: "
                "output=lambda out: limbeck.core.task.logits(out).movedim(1, -1), for teacher and student alike"
            )
            yield Finding(f"{name} outputs", "failed", message)


def _probabilities(setup: Examined) -> Iterator[Finding]:
    """Find answers that add up to 1: a softmax of them would be nearly uniform."""
    for name, net in (*setup.networks.items(), *setup.teachers.items()):
        answer = setup.answer(net)
        if not isinstance(answer, Tensor) or answer.shape[-1] < 2 or bool((answer < 0).any()):
            continue
        if bool(((answer.float().sum(-1) - 1).abs() < 1e-3).all()):
            message = (
                f"the {name} answers with probabilities, which add up to 1, where logits are meant: leave out its last "
                "softmax, or undo it, limbeck.Frozen(teacher, output=lambda p: p.clamp(min=1e-7).log())"
            )
            yield Finding(f"{name} answers", "warning", message)


def _width(setup: Examined, net: nn.Module, target: Any) -> int | None:
    """Return how many classes a network tells apart; None where its answers are no class scores for the targets."""
    answer = setup.answer(net)
    scores = isinstance(answer, Tensor) and isinstance(target, Tensor) and not target.is_floating_point()
    return int(answer.shape[-1]) if scores and answer.shape[:-1] == target.shape else None


def _labels(setup: Examined, widths: Mapping[str, int]) -> Finding:
    """Compare all labels with the classes that the data say they have, or else with those of the narrowest network."""
    targets = torch.cat([target.flatten().cpu() for target in setup.targets()])
    targets = targets[targets != UNLABELLED]
    if not len(targets):
        return Finding("labels", "ok", "not checked: there are none")
    name = min(widths, key=lambda name: widths[name])
    low, high, known = int(targets.min()), int(targets.max()), setup.outputs or widths[name]
    values = {"lowest": float(low), "highest": float(high), "classes": float(known)}
    message = f"labels lie between {low} and {high}, of {known} classes"
    if low == 1 and high == known - 1 and known > 2 and len(targets) >= A_CLASS * known:
        message += (
            ": they begin at 1, and class 0 has no sample. Count them from 0, targets - 1, and make the networks with "
            f"num_classes={high}"
        )
        return Finding("labels", "warning", message, values)
    if low >= 0 and high < known:
        return Finding("labels", "ok", message, values)
    if low == 1 and high == known and known > 1:
        message += (
            f": labels begin at 1, and classes are counted from 0. Subtract 1, targets - 1; {UNLABELLED} is no label"
        )
        return Finding("labels", "failed", message, values)
    if low >= 0 and setup.outputs is None:
        message = (
            f"labels lie between {low} and {high}: the {name} has {known} classes, but the data has {high + 1}. Make it "
            f"with num_classes={high + 1}; labels must be {UNLABELLED} where there is none"
        )
    else:
        message += f": they must lie between 0 and {known - 1}, or be {UNLABELLED} where there is none"
    return Finding("labels", "failed", message, values)


def _outputs(name: str, width: int, known: int) -> Finding:
    status: Status = "failed" if width < known else "warning" if width > known else "ok"
    message = (
        f"the {name} has {width} classes, as the data has"
        if width == known
        else f"the {name} has {width} classes, but the data has {known}: make it with num_classes={known}"
    )
    return Finding(f"{name} outputs", status, message, {"outputs": float(width), "classes": float(known)})


@torch.no_grad()
def _order(role: str, teacher: nn.Module, setup: Examined, width: int) -> Iterator[Finding]:
    """Find the order of classes that fits best on every other sample, and see whether it fits the others better."""
    said, right = _said(teacher, setup)
    if len(right) < 2:
        return
    confusion = torch.zeros(width, width).index_put_(
        (said[::2], right[::2]), torch.ones(len(said[::2])), accumulate=True
    )
    order = best_order(confusion)
    as_is, permuted = _share(said[1::2] == right[1::2]), _share(order[said[1::2]] == right[1::2])
    moved = (order != torch.arange(width)).nonzero().flatten().tolist()
    values = {"accuracy": as_is, "accuracy, permuted": permuted, "classes moved": float(len(moved))}
    if fits_better(permuted, as_is):
        which = ", ".join(f"{index} is {int(order[index])}" for index in moved[:4])
        message = (
            f"the {role}'s classes are permuted: with its output {which}{', …' if len(moved) > 4 else ''} its accuracy "
            f"rises from {as_is:.1%} to {permuted:.1%}. {in_order(order)}"
        )
        yield Finding(f"{role} classes", "failed", message, values)
    else:
        yield Finding(f"{role} classes", "ok", f"no other order of the {role}'s classes fits much better", values)


def _said(net: nn.Module, setup: Examined) -> tuple[Tensor, Tensor]:
    """Return what a network says, and what is right, at every labelled position."""
    said, right = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for batch in setup.held_out():
        target = setup.task.target(batch)
        answer = setup.task.feed(net, setup.task.inputs(batch))
        said.append(answer.argmax(-1)[target != UNLABELLED].cpu())
        right.append(target[target != UNLABELLED].cpu())
    return torch.cat(said), torch.cat(right)


def _share(right: Tensor) -> float:
    return float(right.float().mean())


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show soft labels of telling samples, where layers look at them, and what is confused."""
    yield from _soft_labels(shown)
    for name, net in shown.counted.items():
        yield from _confusions(name, net, shown)


def choose(teacher: Tensor, student: Tensor, targets: Tensor) -> dict[int, str]:
    """Choose telling samples among those that the teacher gets right, of different classes as far as there are.

    Args:
        teacher: Logits, (N, K).
        student: Logits, (N, K).
        targets: Classes, (N).

    Returns:
        Rows with why they were chosen, in the order they are shown: "sure" (the teacher), "unsure" (the teacher) and
        "mistaken" (the student).
    """
    right = teacher.argmax(1) == targets
    best = teacher.softmax(1).topk(min(2, teacher.shape[1])).values
    margin = best[:, 0] - best[:, -1]
    mistaken = right & (student.argmax(1) != targets)
    certainty = student.softmax(1).amax(1)
    chosen: dict[int, str] = {}
    for why, count, where, order in (
        ("sure", 1, right, -margin),
        ("mistaken", MISTAKEN, mistaken, -certainty),
        ("unsure", UNSURE, right, margin),
    ):
        rows = [row for row in order.argsort(stable=True).tolist() if where[row] and row not in chosen]
        seen = {int(targets[row]) for row in chosen}
        rows.sort(key=lambda row: int(targets[row]) in seen)  # a class that was not shown yet, if there is one
        chosen |= dict.fromkeys(rows[:count], why)
    return dict(sorted(chosen.items(), key=lambda item: ("sure", "unsure", "mistaken").index(item[1])))


def _soft_labels(shown: Shown) -> Iterator[Exhibit]:
    """Show what the teacher and its students answer to a few samples that the teacher gets right."""
    inputs, targets = shown.samples
    if "teacher" not in shown.networks or not _is_classes(targets):
        return
    shapes = {name: tuple(answer.shape[1:]) for name, answer in shown.answers.items()}
    if len({*shapes.values()}) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        yield Note(KNOWN, f"No examples: the networks do not answer with the same classes: {listed}.")
        return
    labelled = (targets != UNLABELLED).nonzero().flatten().tolist()
    answers = torch.stack([answer[labelled] for answer in shown.answers.values()])
    chosen = choose(answers[0], answers[1], targets[labelled]) if labelled else {}
    if not chosen:
        yield Note(KNOWN, f"No examples: of {len(labelled)} held-out samples with a class the teacher gets none right.")
        return
    rows = [labelled[row] for row in chosen]
    classes, takes = names(shown.classes, answers.shape[-1]), answers[1, list(chosen)].argmax(-1)
    captions = tuple(
        _words(why, classes[targets[row]], list(shown.networks)[1], classes[answer])
        for row, why, answer in zip(rows, chosen.values(), takes, strict=True)
    )
    yield Bars(
        KNOWN,
        tuple(shown.networks),
        classes,
        answers[:, list(chosen)].numpy(),
        F.one_hot(targets[rows], len(classes)).float().numpy(),
        shown.pictures(part(inputs, rows)) or (),
        captions,
        scale="softmax",
    )
    yield from shown.attention(rows, captions)


def _words(why: str, target: str, student: str, answer: str) -> str:
    if why == "mistaken":
        return f"{target}: the teacher is right, {student} says {answer}"
    return f"{target}: the teacher is right and {why}"


def _confusions(name: str, net: nn.Module, shown: Shown) -> Iterator[Exhibit]:
    """Count how many samples of each class a network takes for each other one, over all processes."""
    from torchmetrics.classification import MulticlassConfusionMatrix

    table = None
    for batch in shown.batches():
        target = shown.task.target(batch)
        if not _is_classes(target):
            return
        answer = shown.task.feed(net, shown.task.inputs(batch))
        if table is None:
            if answer.ndim != 2 or answer.shape[1] > MOST_CLASSES:
                return
            table = MulticlassConfusionMatrix(answer.shape[1], ignore_index=UNLABELLED).to(answer.device)
        table.update(answer, target)
    if table is not None:
        counts = table.compute().cpu().long()
        unit = "samples" if shown.pictures(part(shown.samples[0], slice(1))) is None else "images"
        yield Matrix(CONFUSED, names(shown.classes, len(counts)), counts.numpy(), unit, name)


def _is_classes(target: Any) -> bool:
    """Whether each sample has one class."""
    return isinstance(target, Tensor) and target.ndim == 1 and not target.is_floating_point()


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
