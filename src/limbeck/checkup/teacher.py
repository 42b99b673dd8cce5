"""What a teacher knows, and whether it answers the same twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from limbeck.checkup.data import channels, is_scaled
from limbeck.checkup.findings import Finding
from limbeck.checkup.setup import Setup
from limbeck.engine.learner import teachers_of
from limbeck.frozen import Frozen
from limbeck.method import Method
from limbeck.task import UNLABELLED, Batch, Task

LIFT = 0.1  # of accuracy, from which another order of classes or another scale of inputs is suspected


def teachers(setup: Setup, expect: float | None = None) -> Iterator[Finding]:
    """Look at each teacher's mode, at whether it answers the same twice, and at what it knows of the classes."""
    for role, teacher in teachers_of(setup.method):
        yield _mode(role, teacher)
        with torch.no_grad():
            yield from _repeats(role, teacher, setup.batch, setup.task)
            yield from _knows(role, teacher, setup, expect)


def scales(setup: Setup) -> Iterator[Finding]:
    """See whether a teacher is right more often on inputs scaled otherwise."""
    inputs = setup.task.inputs(setup.batch)
    for role, teacher in teachers_of(setup.method):
        if is_scaled(inputs) and setup.width(teacher) == setup.classes:
            yield _scale(role, teacher, setup, inputs)


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


def _repeats(role: str, teacher: Frozen, batch: Batch, task: Task) -> Iterator[Finding]:
    """Ask twice; compare answers and buffers."""
    buffers = {name: buffer.clone() for name, buffer in teacher.net.named_buffers()}
    first, second = (task.look(teacher, batch)[""].float() for _ in range(2))
    difference = float((first - second).abs().max() / first.abs().max().clamp(min=1e-12))
    values = {"largest relative difference": difference}
    if not difference < 1e-3:  # a GPU adds in any order; NaN fails too
        yield Finding(
            f"{role} determinism",
            "failed",
            f"the {role} answers the same batch differently the second time, by {difference:.1%}: something in it draws "
            "random numbers or counts, as F.dropout does without training=self.training",
            values,
        )
    else:
        yield Finding(f"{role} determinism", "ok", f"the {role} answers the same batch alike twice", values)
    changed = [name for name, buffer in teacher.net.named_buffers() if not torch.equal(buffer, buffers[name])]
    if changed:
        message = f"a pass through the {role} changes its buffers {changed[:4]}: its answers depend on what came before"
        yield Finding(f"{role} buffers", "failed", message)
    else:
        yield Finding(f"{role} buffers", "ok", f"a pass leaves the {role}'s buffers as they were")


def _knows(role: str, teacher: Frozen, setup: Setup, expect: float | None) -> Iterator[Finding]:
    """Measure the accuracy on validation data, or on training data where there is no other."""
    width, known = setup.width(teacher), setup.classes
    if width is None or width != known:  # where features are compared, it may know other classes
        message = f"not checked: the {role} has {width or 'no'} classes, and the data {known or 'none'}"
        yield Finding(f"{role} accuracy", "ok", message)
        return
    train, val, *_ = setup.loaders
    said, right = _answers(teacher, setup.some(train if val is None else val), setup.task)
    if not len(right):
        yield Finding(f"{role} accuracy", "ok", "not checked: there are no labels")
        return
    yield _accuracy(role, said, right, width, expect, "training" if val is None else "validation")
    yield _order(role, said, right, width)


def _answers(
    net: nn.Module, batches: Iterable[Batch], task: Task, scale: Callable[[Any], Any] = lambda inputs: inputs
) -> tuple[Tensor, Tensor]:
    """Return what a network says, and what is right, of every labelled sample."""
    said, right = [], []
    for batch in batches:
        target = task.target(batch)
        output = task.feed(net, scale(task.inputs(batch)))
        said.append(output.argmax(1)[target != UNLABELLED].cpu())
        right.append(target[target != UNLABELLED].cpu())
    return torch.cat(said), torch.cat(right)


def _share_right(said: Tensor, right: Tensor) -> float:
    return float((said == right).float().mean())


def _accuracy(role: str, said: Tensor, right: Tensor, width: int, expect: float | None, split: str) -> Finding:
    """Compare the accuracy with what is expected, or else with guessing, give or take two standard errors."""
    accuracy, n, guess = _share_right(said, right), len(right), 1 / width
    values = {"accuracy": accuracy, "samples": float(n), "chance": guess}
    measured = f"the {role} has accuracy {accuracy:.1%} on {n} {split} samples"
    advice = "check its weights, the order of its classes, and how its inputs were normalised"
    if expect is not None:
        values["expected"] = expect
        if accuracy < expect - 2 * _standard_error(expect, n):
            return Finding(f"{role} accuracy", "failed", f"{measured}, expected {expect:.1%}: {advice}", values)
    if accuracy <= guess + 2 * _standard_error(guess, n):
        message = f"{measured}, no better than chance: {advice}; as a control, an untrained teacher is right"
        return Finding(f"{role} accuracy", "warning", message, values)
    return Finding(f"{role} accuracy", "ok", measured, values)


def _standard_error(share: float, n: int) -> float:
    return math.sqrt(share * (1 - share) / n)


def _order(role: str, said: Tensor, right: Tensor, width: int) -> Finding:
    """Find the order of classes that fits best on every other sample, and see whether it fits the others better."""
    from scipy.optimize import linear_sum_assignment

    confusion = torch.zeros(width, width).index_put_(
        (said[::2], right[::2]), torch.ones(len(said[::2])), accumulate=True
    )
    confusion += 1e-3 * torch.eye(width)  # classes that were not seen stay where they are
    rows, columns = linear_sum_assignment(confusion.numpy(), maximize=True)
    order = torch.empty(width, dtype=torch.int64)
    order[torch.from_numpy(rows)] = torch.from_numpy(columns)
    as_is, permuted = _share_right(said[1::2], right[1::2]), _share_right(order[said[1::2]], right[1::2])
    moved = (order != torch.arange(width)).nonzero().flatten().tolist()
    values = {"accuracy": as_is, "accuracy, permuted": permuted, "classes moved": float(len(moved))}
    # an untrained network gains a little too, but does not lose half of its errors
    if permuted - as_is > LIFT and 1 - permuted < (1 - as_is) / 2:
        which = ", ".join(f"{index} is {int(order[index])}" for index in moved[:4])
        message = (
            f"the {role}'s classes are permuted: with its output {which}{', …' if len(moved) > 4 else ''} its accuracy "
            f"rises from {as_is:.1%} to {permuted:.1%}. Put them into the data's order"
        )
        return Finding(f"{role} classes", "failed", message, values)
    return Finding(f"{role} classes", "ok", f"no other order of the {role}'s classes fits much better", values)


@torch.no_grad()
def _scale(role: str, teacher: Frozen, setup: Setup, inputs: Tensor) -> Finding:
    train, val, *_ = setup.loaders
    accuracies = {}
    for name, scale in {"as they are": lambda inputs: inputs, **_usual_scales(inputs)}.items():
        said, right = _answers(teacher, setup.some(train if val is None else val, share=1 / 8), setup.task, scale)
        if not len(right):
            return Finding(f"{role} inputs", "ok", "not checked: there are no labels")
        accuracies[name] = _share_right(said, right)
    as_is = accuracies["as they are"]
    best = max(accuracies, key=lambda name: accuracies[name])
    if accuracies[best] - as_is > max(LIFT, 3 * _standard_error(0.5, len(right))):
        message = (
            f"the inputs are not normalised as the {role}'s were: {best} they lift its accuracy from {as_is:.1%} to "
            f"{accuracies[best]:.1%}"
        )
        return Finding(f"{role} inputs", "warning", message, accuracies)
    return Finding(f"{role} inputs", "ok", f"no other scale of the inputs suits the {role} much better", accuracies)


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
