"""Several labels a sample, each true or not: mean average precision, binary cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.batches import part
from limbeck.core.distributed import of_update
from limbeck.core.exhibits import Bars, Exhibit, Note, Shown, Table, names
from limbeck.core.finding import Examined, Finding
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.task import UNLABELLED, Score, Task
from limbeck.core.trace import describe

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

MOST_LABELS = 20  # told of one by one
LIKELY, FOUND = "Which labels they find likely", "What it finds, label by label"


@full_precision
def binary_cross_entropy(student: Tensor, targets: Tensor) -> Tensor:
    """−y log σ(z) − (1 − y) log(1 − σ(z)), mean over the known labels; 0 where none of the batch is known.

    Args:
        student: Logits, (N, K), one for each label.
        targets: 1 where a label is true, 0 where not, −100 where unknown, (N, K), of any type.
    """
    same_shape("labels", student, targets)
    loss, known = _each(student, targets)
    return of_update(loss.sum() / known.sum().clamp(min=1), "labels")


def _each(student: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of each label, 0 where it is unknown, and which are known, both (N, K)."""
    known = targets != UNLABELLED
    loss = F.binary_cross_entropy_with_logits(student, targets.where(known, 0).to(student.dtype), reduction="none")
    return loss.where(known, 0.0), known


def two_outcomes(answer: Tensor) -> Tensor:
    """Return the logits of a label being true and not, (N, K, 2): softmax((z, 0)) = (σ(z), 1 − σ(z)), at any temperature.

    So `limbeck.losses.soft_target` is the divergence of a Bernoulli distribution a label, mean over samples and labels.
    """
    return torch.stack([answer, torch.zeros_like(answer)], -1)


def precision(answer: Tensor) -> MetricCollection:
    """``mAP``, the mean over labels of average precision, macro ``F1`` at 0.5, and mean loss, of the known labels."""
    from torchmetrics import MetricCollection

    from limbeck.tasks.meters import MeanF1, MeanLoss, MeanPrecision

    labels = answer.shape[-1]
    return MetricCollection({"mAP": MeanPrecision(), "F1": MeanF1(labels), "loss": MeanLoss(binary_cross_entropy)})


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare targets with answers, and look at which labels are ever true."""
    target = setup.task.target(setup.batch)
    if not isinstance(target, Tensor):
        yield Finding("labels", "ok", f"not checked: they are {describe(target)}")
        return
    answers = {name: setup.answer(net) for name, net in setup.networks.items()}
    unlike = [found for name, answer in answers.items() if (found := _unlike(name, answer, target)) is not None]
    yield from unlike
    if unlike:
        return
    yield from _labels(torch.cat([targets.flatten(0, -2).cpu() for targets in setup.targets()]))
    teachers = {role: setup.answer(net) for role, net in setup.teachers.items()}
    yield from (_chances(name, answer) for name, answer in (answers | teachers).items() if _seem_chances(answer))


def _unlike(name: str, answer: Any, target: Tensor) -> Finding | None:
    """Find answers that are shaped unlike the targets."""
    if isinstance(answer, Tensor) and answer.shape == target.shape:
        return None
    message = f"the {name} answers with {describe(answer)}, but the targets are {describe(target)}"
    if target.ndim != 1:
        message += f": make it with {target.shape[-1] if target.ndim else 1} outputs, one a label"
    elif target.is_floating_point():
        message += ": a label a sample is (N, 1), target=lambda batch: batch[1].unsqueeze(-1)"
    else:
        message += (
            " of integers: a class a sample? task=limbeck.classification (--task classification). Several labels are "
            "(N, K), 1 where one is true, 0 where not"
        )
    return Finding(f"{name} outputs", "failed", message)


def _labels(labels: Tensor) -> Iterator[Finding]:
    """Look at all labels that there are, (N, K)."""
    known = labels != UNLABELLED
    wrong = known & ~((labels >= 0) & (labels <= 1))  # NaN too
    if bool(wrong.any()):
        message = (
            f"{int(wrong.sum())} of {labels.numel()} labels are neither true nor false, the first is "
            f"{float(labels[wrong][0]):g}: they must be 1, 0 or between, or {UNLABELLED} where one is unknown"
        )
        yield Finding("labels", "failed", message)
        return
    if not bool(known.any()):
        yield Finding("labels", "ok", "not checked: there are none")
        return
    share = labels.where(known, 0).double().sum(0) / known.sum(0).clamp(min=1)
    values = {"true, least": float(share.min()), "true, most": float(share.max()), "unknown": float((~known).sum())}
    if len(same := ((share == 0) | (share == 1)).nonzero().flatten().tolist()):
        message = (
            f"of {len(labels)} samples, the labels {same[:6]} are always true or never: nothing is to be learned of them, "
            "and a label that is never true has no average precision"
        )
        yield Finding("labels", "warning", message, values)
    else:
        message = (
            f"labels are true of {values['true, least']:.1%} to {values['true, most']:.1%} of {len(labels)} samples"
        )
        yield Finding("labels", "ok", message, values)


def _seem_chances(answer: Any) -> bool:
    """Whether answers lie in [0, 1], as many logits hardly do by accident."""
    return isinstance(answer, Tensor) and answer.numel() >= 32 and bool(((answer >= 0) & (answer <= 1)).all())


def _chances(name: str, answer: Tensor) -> Finding:
    message = (
        f"the {name} answers with {float(answer.min()):.3g} to {float(answer.max()):.3g}, as probabilities are: logits are "
        "meant. Leave out its last sigmoid, or undo it, limbeck.Frozen(teacher, output=torch.logit)"
    )
    return Finding(f"{name} answers", "warning", message)


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show which labels each network finds likely in telling samples, and how many of each label are found."""
    yield from _likely(shown)
    for name, net in shown.counted.items():
        yield from _found(name, net, shown)


def telling(targets: Tensor, teacher: Tensor | None, student: Tensor) -> list[int]:
    """Choose samples: up to two in which the teacher is closer to the truth than the student, and two with most labels.

    No two have the same labels, as far as there are others.

    Args:
        targets: As of `binary_cross_entropy`.
        teacher: Logits, (N, K), if somebody teaches; without one the student's worst samples are taken.
        student: Logits, (N, K).
    """
    gap = _loss(student, targets) - (0.0 if teacher is None else _loss(teacher, targets))
    best = _loss(student if teacher is None else teacher, targets)
    many = _true(targets).sum(1) - best / (1 + best)  # of as many the clearest
    labels = [tuple(row) for row in _true(targets).tolist()]
    chosen: list[int] = []
    for order, where in ((gap, gap > 0), (many, many > -1)):
        rows = [row for row in order.argsort(descending=True, stable=True).tolist() if where[row] and row not in chosen]
        for _ in range(min(2, len(rows))):
            seen = {labels[row] for row in chosen}
            chosen.append(min(rows, key=lambda row: labels[row] in seen))
            rows.remove(chosen[-1])
    return chosen


def _likely(shown: Shown) -> Iterator[Exhibit]:
    inputs, targets = shown.samples
    answers = dict(shown.answers)
    if not isinstance(targets, Tensor) or any(answer.shape != targets.shape for answer in answers.values()):
        shapes = ", ".join(f"{name} {describe(answer)}" for name, answer in answers.items())
        yield Note(LIKELY, f"No examples: answers and targets differ in shape: {shapes}, targets {describe(targets)}.")
        return
    if targets.ndim != 2:
        return
    student = next(name for name in answers if name != "teacher")
    rows = telling(targets, answers.get("teacher"), answers[student])
    labels, targets = names(shown.classes, targets.shape[1]), targets[rows]
    values = torch.stack([answer[rows] for answer in answers.values()])
    compared = {name: answers[name][rows] for name in ("teacher", student) if name in answers}
    captions = tuple(
        _words(labels, targets[row], {name: answer[row] for name, answer in compared.items()})
        for row in range(len(rows))
    )
    yield Bars(
        LIKELY,
        tuple(answers),
        labels,
        values.numpy(),
        torch.where(targets == UNLABELLED, torch.nan, _true(targets).float()).numpy(),
        shown.pictures(part(inputs, rows)) or (),
        captions,
        scale="sigmoid",
    )
    yield from shown.attention(rows, captions)


def _words(labels: tuple[str, ...], target: Tensor, answers: Mapping[str, Tensor]) -> str:
    """Say what is true of a sample, and how many labels networks get wrong."""
    true = [labels[index] for index in _true(target).nonzero().flatten().tolist()]
    said = ", ".join(true[:3]) + (f" and {len(true) - 3} more" if len(true) > 3 else "")
    wrong = {name: int(((answer > 0) != _true(target))[target != UNLABELLED].sum()) for name, answer in answers.items()}
    told = [f"{name} {f'has {count} wrong' if count else 'is right'}" for name, count in wrong.items()]
    return f"{said or 'nothing is true'}: {', '.join(told)}"


def _found(name: str, net: nn.Module, shown: Shown) -> Iterator[Exhibit]:
    """Tell what became of each label in all held-out data, over all processes."""
    from torchmetrics.classification import MultilabelAveragePrecision, MultilabelConfusionMatrix

    meters = None
    for batch in shown.batches():
        answer, target = shown.task.feed(net, shown.task.inputs(batch)), shown.task.target(batch)
        if not isinstance(target, Tensor) or target.ndim != 2 or answer.shape != target.shape:
            return
        if meters is None:
            of = {"num_labels": answer.shape[1], "ignore_index": UNLABELLED, "validate_args": False}
            meters = [MultilabelConfusionMatrix(**of), MultilabelAveragePrecision(**of, average=None)]
            meters = [meter.to(answer.device) for meter in meters]
        true = torch.where(target == UNLABELLED, UNLABELLED, _true(target).long())
        for meter in meters:
            meter.update(answer.float().sigmoid(), true)
    if meters is None:
        return
    counts, precisions = (meter.compute().cpu() for meter in meters)
    labels = names(shown.classes, len(counts))
    wrong = (counts[:, 0, 1] + counts[:, 1, 0]).argsort(descending=True, stable=True).tolist()[:MOST_LABELS]
    rows = []
    for index in wrong:
        (_, alarms), (missed, hits) = counts[index].tolist()
        average = f"{100 * float(precisions[index]):.1f}" if hits + missed else "–"
        rows.append((labels[index], *map(str, (hits + missed, hits, missed, alarms)), average))
    few = f" Of {len(labels)} labels these have most errors." if len(labels) > len(rows) else ""
    words = f"The {name} on the held-out data, at a probability of one half; labels with most errors first.{few}"
    header = ("label", "true in", "found", "missed", "false alarms", "average precision, %")
    yield Table(FOUND, header, tuple(rows), words)


def _loss(answer: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of the known labels of each sample, (N)."""
    loss, known = _each(answer, targets)
    return loss.sum(1) / known.sum(1).clamp(min=1)


def _true(targets: Tensor) -> Tensor:
    """Return which labels are true; what is unknown is not."""
    return targets >= 0.5


multilabel = Task(
    name="multilabel",
    loss=binary_cross_entropy,
    outcomes=two_outcomes,
    metrics=precision,
    score=Score("mAP"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
