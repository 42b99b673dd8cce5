"""Values: root-mean-square error, squared error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from limbeck.core.batches import part
from limbeck.core.distributed import of_update
from limbeck.core.exhibits import Exhibit, Gallery, Note, Scatter, Shown
from limbeck.core.finding import Examined, Finding
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.task import Score, Task
from limbeck.core.trace import describe

if TYPE_CHECKING:
    from torchmetrics import MetricCollection


FAR, NEAR = 10.0, 0.05
"""Targets of a mean or deviation beyond `FAR`, or a deviation below `NEAR`, do not suit the usual learning rates: ours."""
FEW = 20  # different whole numbers may be classes
MOST_OUTPUTS, WORST = 4, 4  # shown: outputs, and samples that the student is furthest off
PREDICTED, OFF = "What they predict", "Where it is furthest off"


@full_precision
def squared_error(student: Tensor, targets: Tensor) -> Tensor:
    """(s − y)², mean over the known values; 0 where none of the batch is known.

    Args:
        student: Predictions, (N, M).
        targets: The true values, NaN where unknown, (N, M), or (N) where M is 1.
    """
    targets = as_wide(targets, student)
    same_shape("values", student, targets)
    known = ~targets.isnan()
    error = F.mse_loss(student, targets.to(student.dtype).where(known, student.detach()), reduction="sum")
    return of_update(error / known.sum().clamp(min=1), "labels")


def as_wide(targets: Tensor, answer: Tensor) -> Tensor:
    """Return targets (N) as (N, 1) where the answers are: (N, 1) − (N) would be a table of all pairs."""
    return targets.unsqueeze(-1) if answer.shape == (*targets.shape, 1) else targets


def errors(answer: Tensor) -> MetricCollection:
    """``RMSE``, ``MAE`` and ``R2`` of the known values, R² about each output's own mean, and mean loss."""
    from torchmetrics import MetricCollection

    from limbeck.tasks.meters import AbsoluteError, Determination, MeanLoss, RootMeanSquare

    loss = MeanLoss(squared_error, counted=lambda target: (~target.isnan()).sum())
    return MetricCollection({"RMSE": RootMeanSquare(), "MAE": AbsoluteError(), "R2": Determination(), "loss": loss})


def examine(setup: Examined) -> Iterator[Finding]:
    """Compare targets with answers, and look at their values and scale."""
    target = setup.task.target(setup.batch)
    if not isinstance(target, Tensor):
        yield Finding("targets", "ok", f"not checked: they are {describe(target)}")
        return
    answers = {name: setup.answer(net) for name, net in setup.networks.items()}
    unlike = [found for name, answer in answers.items() if (found := _unlike(name, answer, target)) is not None]
    yield from unlike
    if not unlike:
        values = torch.cat([_columns(targets).cpu() for targets in setup.targets()])
        yield from _values(values, answers, put_away=setup.outputs is not None)
        if not target.is_floating_point() and len(kinds := torch.unique(values)) <= FEW:
            message = (
                f"the targets are {target.dtype}, {len(kinds)} different whole numbers: are they classes? "
                "task=limbeck.classification (--task classification). Values are best floating-point numbers"
            )
            yield Finding("targets kind", "warning", message, {"different": float(len(kinds))})


def _unlike(name: str, answer: Any, target: Tensor) -> Finding | None:
    """Find answers that are shaped unlike the targets."""
    if isinstance(answer, Tensor) and answer.shape == as_wide(target, answer).shape:
        return None
    message = f"the {name} answers with {describe(answer)}, but the targets are {describe(target)}"
    if not target.is_floating_point() and target.ndim == 1:
        message += ": a class a sample? task=limbeck.classification (--task classification)"
    else:
        message += f": make it with {1 if target.ndim < 2 else target.shape[-1]} outputs, a value each, or say task="
    return Finding(f"{name} outputs", "failed", message)


def _columns(targets: Tensor) -> Tensor:
    """Return targets as rows, (..., M), a column each output."""
    return targets.reshape(len(targets), -1) if targets.ndim < 3 else targets.flatten(0, -2)


def _values(values: Tensor, answers: Mapping[str, Tensor], *, put_away: bool) -> Iterator[Finding]:
    """Look at all values that targets have, (N, M)."""
    values = values.double()
    missing, n = int(values.isnan().sum()), values.numel()
    if missing == n:
        yield Finding(
            "targets", "failed", "the targets are all NaN: no value is known" if n else "there are no targets"
        )
        return
    if bool(values.isinf().any()):
        yield Finding(
            "targets", "failed", f"{int(values.isinf().sum())} of {n} targets are infinite: leave them out, or clip"
        )
        return
    known = f"{n - missing} of {n} targets are known" if missing else f"all of {n} targets are numbers"
    if missing and not put_away:
        known += ", the others are NaN and do not count: leave such samples out unless that is meant"
    counts = {"targets": float(n), "NaN": float(missing)}
    yield Finding("targets", "warning" if missing and not put_away else "ok", known, counts)
    if len(values) > 1:
        # of each output: torch has no deviation that leaves NaN out
        mean = values.nanmean(0)
        std = (values - mean).square().nanmean(0).sqrt()
        yield _scale(mean[mean.isfinite()], std[mean.isfinite()], answers)


def _scale(mean: Tensor, std: Tensor, answers: Mapping[str, Tensor]) -> Finding:
    """See whether some output never varies, or is of a size that no network begins with."""
    if len(still := (std <= 1e-6 * mean.abs()).nonzero().flatten()):
        which = "the targets are" if len(std) == 1 else f"the targets of {len(still)} of {len(std)} outputs are"
        message = f"{which} always the same, {float(mean[still[0]]):.4g}: there is nothing to learn of them"
        return Finding("targets scale", "warning", message)
    widest, narrowest = float(std.max()), float(std.min())
    furthest = float(mean[mean.abs().argmax()])
    numbers = {"mean, furthest from 0": furthest, "std, largest": widest, "std, smallest": narrowest}
    fits = abs(furthest) <= FAR and narrowest >= NEAR and widest <= FAR
    sizes = [float(answer.double().square().mean().sqrt()) for answer in answers.values()]
    unit = max(abs(furthest), widest)
    if fits or all(unit / 3 <= size <= 3 * unit for size in sizes):
        return Finding("targets scale", "ok", "targets and answers are of one size", numbers)
    message = (
        f"the targets have a mean of {furthest:.3g} and deviations of {narrowest:.3g} to {widest:.3g}, and networks begin "
        "with about 0 and 1: the usual learning rates will not do. Standardise them, (y - mean) / std; or let the "
        "network's last layer put on their unit, limbeck.nets.tabular.Rescale(mean, std), and train with Adam"
    )
    return Finding("targets scale", "warning", message, numbers)


def exhibit(shown: Shown) -> Iterator[Exhibit]:
    """Show predictions over the truth, and of images those that the student is furthest off."""
    inputs, targets = shown.samples
    networks, answers = tuple(shown.answers), list(shown.answers.values())
    truths = as_wide(targets, answers[0]) if isinstance(targets, Tensor) else targets
    if not isinstance(truths, Tensor) or any(answer.shape != truths.shape for answer in answers):
        shapes = ", ".join(f"{name} {describe(answer)}" for name, answer in shown.answers.items())
        yield Note(
            PREDICTED, f"No examples: answers and targets differ in shape: {shapes}, targets {describe(targets)}."
        )
        return
    if truths.ndim != 2:
        return
    truths, values = truths.float(), torch.stack(answers)
    labels = _labels(shown, truths.shape[1])
    few = f" The first {MOST_OUTPUTS} of {len(labels)} outputs." if len(labels) > MOST_OUTPUTS else ""
    for column, label in enumerate(labels[:MOST_OUTPUTS]):
        known = truths[:, column].isfinite()
        words = f"{int(known.sum())} samples, spread over the held-out data.{few}"
        if bool(known.any()):
            ours = truths[known, column].numpy(), values[:, known, column].numpy()
            yield Scatter(PREDICTED, networks, *ours, label=label, words=words)
    student = next(index for index, name in enumerate(networks) if name != "teacher")
    rows = furthest(values[student], truths)
    pictures = shown.pictures(part(inputs, rows))
    if pictures is not None and rows:
        captions = tuple(_words(networks, truths[row], values[:, row]) for row in rows)
        words = (
            f"Of {len(truths)} samples, spread over the held-out data, those that {networks[student]} is furthest off."
        )
        yield Gallery(OFF, ("",), tuple((picture,) for picture in pictures), captions, words=words)
        yield from shown.attention(rows, captions)


def furthest(answer: Tensor, truths: Tensor) -> list[int]:
    """Return the rows with the largest mean error of the known values, each output by its own deviation."""
    spread = (truths - truths.nanmean(0)).square().nanmean(0).sqrt().clamp_min(1e-12)
    error = ((answer - truths).abs() / spread).nanmean(1)
    rows = error.nan_to_num(-1.0).argsort(descending=True, stable=True).tolist()
    return [row for row in rows[:WORST] if not error[row].isnan()]


def _words(networks: tuple[str, ...], truth: Tensor, values: Tensor) -> str:
    """Say what is true of a sample and what each network predicts, of the first outputs."""
    told = {"true": truth, **dict(zip(networks, values, strict=True))}
    numbers = {name: ", ".join(f"{value:.3g}" for value in of[:3].tolist()) for name, of in told.items()}
    return "; ".join(f"{name} {number}" for name, number in numbers.items()).replace("-", "−")


def _labels(shown: Shown, count: int) -> tuple[str, ...]:
    if len(shown.classes) == count:
        return shown.classes
    return ("value",) if count == 1 else tuple(f"output {index}" for index in range(count))


regression = Task(
    name="regression",
    loss=squared_error,
    outcomes=None,
    metrics=errors,
    score=Score("RMSE", unit="", best="lowest"),
    guess=None,
    examine=examine,
    exhibit=exhibit,
)
