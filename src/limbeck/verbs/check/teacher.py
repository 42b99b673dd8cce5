"""What a teacher knows, and whether it answers the same twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from limbeck.core.batches import tensors
from limbeck.core.finding import Finding, no_better
from limbeck.core.frozen import Frozen, frozen
from limbeck.core.method import Method
from limbeck.core.task import Batch, Score
from limbeck.data.cache import Brought
from limbeck.measure.evaluate import Measurement
from limbeck.verbs.check.data import channels, is_scaled
from limbeck.verbs.check.setup import Setup

LIFT = 0.1  # of a score that is a share, from which another scale of inputs is suspected
KNOWS = 0.6  # of the way from guessing to being right, from which a student was trained before


def teachers(setup: Setup, expect: float | None = None) -> Iterator[Finding]:
    """Look at each teacher's mode, at whether it answers the same twice, and at how good it is."""
    for role, teacher in setup.teachers.items():
        yield _mode(role, teacher)
        yield from _repeats(role, teacher, setup)
        yield _knows(role, teacher, setup, expect)
    asked = isinstance(setup.loaders.train.answers, Brought)  # then they are compared with what the teacher says
    for role in setup.task.traces(setup.batch):
        if not asked or role not in setup.teachers:
            yield from _kept(role, setup)


def scales(setup: Setup) -> Iterator[Finding]:
    """See whether a network is right more often on inputs scaled otherwise: a teacher, or a student that was trained."""
    inputs = setup.task.inputs(setup.batch)
    if not is_scaled(inputs):
        return
    for role, teacher in setup.teachers.items():
        yield _scale(role, teacher, setup, inputs)
    for name, student in setup.networks.items():
        found = _scale(name, frozen(student), setup, inputs)
        guess = found.values.get("chance", 1.0)
        # one that was not trained yet may be luckier at another scale, but not right most of the time
        if found.status != "ok" and max(found.values.values()) > guess + KNOWS * (1 - guess):
            yield found


def bystanders(method: Method) -> Iterator[Finding]:
    """Find layers in train mode that no player trains: of teachers of a user's own method that were not frozen."""
    played = {module for modules in method.players().values() for root in modules for module in root.modules()}
    loose = [
        name
        for name, module in method.named_modules()
        if module.training and module not in played and isinstance(module, (_BatchNorm, _DropoutNd))
    ]
    if loose:
        yield Finding(
            "modes",
            "failed",
            f"nobody trains {loose[:4]}, and yet they are in train mode: wrap the network in limbeck.Frozen, or name it "
            "among the players",
        )


def _mode(role: str, teacher: Frozen) -> Finding:
    if teacher.mode == "eval":
        return Finding(f"{role} mode", "ok", f"the {role} is in eval mode")
    what = "the batch's own statistics" if teacher.mode == "batch_stats" else "dropout and the batch's own statistics"
    return Finding(
        f"{role} mode",
        "warning" if teacher.mode == "batch_stats" else "failed",
        f"the {role} is in {teacher.mode} mode: it uses {what}, and is not what was measured. Let it be frozen in eval "
        "mode, limbeck.Frozen(teacher)",
    )


def _repeats(role: str, teacher: Frozen, setup: Setup) -> Iterator[Finding]:
    """Ask twice, and compare the answers. Buffers stay as they are: a frozen network writes to copies."""
    first, second = (tensors(setup.asked(teacher)) for _ in range(2))
    difference = max(
        (
            float((one.float() - other.float()).abs().max() / one.float().abs().max().clamp(min=1e-12))
            if one.shape == other.shape
            else math.inf
            for one, other in zip(first, second, strict=True)
            if one.numel()
        ),
        default=0.0,
    )
    values = {"largest relative difference": difference}
    if math.isnan(difference):
        message = (
            f"the {role}'s answers to a batch are NaN: its inputs are, or something in it divides by 0 or overflows"
        )
        yield Finding(f"{role} answers", "failed", message)
    elif not difference < 1e-3:  # a GPU adds in any order
        yield Finding(
            f"{role} determinism",
            "failed",
            f"the {role} answers the same batch differently the second time, by {difference:.1%}: something in it draws "
            "random numbers or counts, as F.dropout does without training=self.training",
            values,
        )
    else:
        yield Finding(f"{role} determinism", "ok", f"the {role} answers the same batch alike twice", values)


def _kept(role: str, setup: Setup) -> Iterator[Finding]:
    """Measure answers that batches bring along: of samples in another order they are those of who guesses."""
    task, measurement, title = setup.task, Measurement(setup.task), f"{role} kept answers"
    for batch in setup.some(setup.loaders.train, share=1 / 8):
        answer, target = task.traces(batch).get(role, {}).get(""), task.target(batch)
        if not isinstance(answer, Tensor):
            return
        measurement.add(answer, target)
    if not measurement.samples or measurement.guess is None:
        return
    value, n = measurement.compute()[task.score.name], measurement.samples
    values = {task.score.name: value, "samples": float(n), "chance": measurement.guess}
    measured = f"the {role}'s answers that batches bring along have {task.score.name} {_shown(task.score, value)}"
    if no_better(task.score, value, measurement.guess, n):
        message = (
            f"{measured} on {n} training samples, no better than chance: they are of other samples, or in another order, "
            "as where they were kept while a loader shuffled. Keep them by the samples' ids"
        )
        yield Finding(title, "failed", message, values)
    else:
        yield Finding(title, "ok", measured, values)


def _knows(role: str, teacher: Frozen, setup: Setup, expect: float | None) -> Finding:
    """Compare the score on held-out data with what is expected, or else with guessing."""
    score = setup.task.score
    if why := _unlike(role, teacher, setup):
        return Finding(f"{role} {score.name}", "ok", f"not checked: {why}")
    value, n, guess = _score(teacher, setup, setup.held_out())
    if not n:
        return Finding(f"{role} {score.name}", "ok", "not checked: there are no labels")
    values = {score.name: value, "samples": float(n)} | ({} if guess is None else {"chance": guess})
    split = "training" if setup.loaders.val is None else "validation"
    measured = f"the {role} has {score.name} {_shown(score, value)} on {n} {split} samples"
    advice = "check its weights, the order of its outputs, and how its inputs were normalised"
    if expect is not None:
        values["expected"] = expect
        if score.gain(value, expect) < -_tolerance(score, expect, n):
            message = f"{measured}, expected {_shown(score, expect)}: {advice}"
            return Finding(f"{role} {score.name}", "failed", message, values)
    if guess is not None and no_better(score, value, guess, n):
        above = score.gain(value, guess) > 0
        chance = "no better than chance" + " as far as so few samples tell" * above
        message = f"{measured}, {chance}: {advice}; as a control, an untrained teacher is right"
        return Finding(f"{role} {score.name}", "warning", message, values)
    return Finding(f"{role} {score.name}", "ok", measured, values)


def _unlike(role: str, teacher: Frozen, setup: Setup) -> str | None:
    """Say why a teacher's answers are no answers to these targets, where features are compared and it may know others."""
    mine, theirs = setup.answer(next(iter(setup.networks.values()))), setup.answer(teacher)
    if isinstance(mine, Tensor) and isinstance(theirs, Tensor) and mine.shape[1:] != theirs.shape[1:]:
        here, there = (", ".join(map(str, each.shape[1:])) for each in (mine, theirs))
        return f"the {role} has answers of shape (N, {there}), and the student of shape (N, {here})"
    return None


def _score(
    net: nn.Module, setup: Setup, batches: Iterable[Batch], scale: Callable[[Any], Any] = lambda inputs: inputs
) -> tuple[float, int, float | None]:
    """Return the score, on how many labelled samples, and that of who guesses."""
    task, measurement = setup.task, Measurement(setup.task)
    with torch.no_grad():
        for batch in batches:
            measurement.add(task.feed(net, scale(task.inputs(batch))), task.target(batch))
    n = measurement.samples
    return (measurement.compute()[task.score.name] if n else math.nan), n, measurement.guess


def _shown(score: Score, value: float) -> str:
    return f"{value:.1%}" if score.unit == "%" else score.show(value)


def _tolerance(score: Score, value: float, n: int) -> float:
    """Two standard errors of a share; 5 % of anything else, which is ours."""
    return 2 * _standard_error(value, n) if score.unit == "%" else 0.05 * abs(value)


def _standard_error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _scale(role: str, teacher: Frozen, setup: Setup, inputs: Tensor) -> Finding:
    title, score = f"{role} inputs", setup.task.score
    if why := _unlike(role, teacher, setup):
        return Finding(title, "ok", f"not checked: {why}")
    reached, n, guess = {}, 0, None
    for name, scale in {"as they are": lambda inputs: inputs, **_usual_scales(inputs)}.items():
        reached[name], n, guess = _score(teacher, setup, setup.held_out(share=1 / 8), scale)
        if not n:
            return Finding(title, "ok", "not checked: there are no labels")
    as_is = reached["as they are"]
    best = max(reached, key=lambda name: score.gain(reached[name], as_is))
    enough = max(LIFT, 3 * _standard_error(0.5, n)) if score.unit == "%" else abs(as_is) / 2
    if score.gain(reached[best], as_is) > enough:
        message = (
            f"the inputs are not normalised as the {role}'s were: {best} they bring its {score.name} from "
            f"{_shown(score, as_is)} to {_shown(score, reached[best])}"
        )
        return Finding(title, "warning", message, reached | ({} if guess is None else {"chance": guess}))
    return Finding(title, "ok", f"no other scale of the inputs suits the {role} much better", reached)


def _usual_scales(inputs: Tensor) -> dict[str, Callable[[Any], Any]]:
    """Return the usual ways to scale inputs, each as a function of inputs like these."""
    mean, std = channels(inputs)
    std = std.where(std > 0, 1.0)
    low, high = inputs.min(), inputs.max()

    def unit(x: Tensor) -> Tensor:
        return (x - low) / (high - low).clamp(min=1e-12)

    return {
        "standardised to mean 0 and std 1": lambda x: (x - mean) / std,
        "scaled to [0, 1]": unit,
        "scaled to [-1, 1]": lambda x: 2 * unit(x) - 1,
        "scaled to [0, 255]": lambda x: 255 * unit(x),
    }
