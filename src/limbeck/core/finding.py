"""What a check found, and what it may look at."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from limbeck.core.task import Score, Task

Status = Literal["ok", "warning", "failed"]

BEYOND = 1000
"""Times the loss of who guesses, from which a network has diverged, whatever its losses in training."""
LISTED = 30
"""Classes whose order is written out."""
LIFT = 0.1
"""Of the share that is right, from which another order of classes is suspected."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: Of the check: ``"teacher accuracy"``, ``"balance"``.
        status: ``"failed"`` is a mistake, ``"warning"`` most likely one; what could not be checked is ``"ok"`` and says so.
        message: In words, with what to do.
        values: The numbers behind it.
    """

    name: str
    status: Status
    message: str
    values: dict[str, float] = field(default_factory=dict)


class Examined(Protocol):
    """A set-up under examination, as `limbeck.Task.examine` sees it. Looking changes nothing of the user's own."""

    @property
    def task(self) -> Task:
        """The task."""

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """The networks that training is for, by name."""

    @property
    def teachers(self) -> Mapping[str, nn.Module]:
        """The frozen teachers, by role; none where they shall not be asked."""

    @property
    def outputs(self) -> int | None:
        """How many outputs the data say that a network needs, if they do."""

    @property
    def batch(self) -> Any:
        """A training batch with a label in it, where the networks are."""

    def answer(self, net: nn.Module) -> Any:
        """Return what a network answers to ``batch``, where the network is, in eval mode and without gradients."""

    def targets(self) -> Iterator[Any]:
        """Yield the targets of all splits: those of data by name all, those of a loader of the user's own a few."""

    def held_out(self, share: float = 1.0) -> Iterator[Any]:
        """Yield batches of validation data, or of training data where there is no other; a share of what one look takes."""


def no_better(score: Score, value: float, guess: float, samples: int) -> bool:
    """Whether a score is that of who guesses, give or take two standard errors where it is a share.

    Args:
        score: What is measured.
        value: What was reached.
        guess: The score of who guesses.
        samples: On how many it was measured.
    """
    error = math.sqrt(guess * (1 - guess) / samples) if score.unit == "%" else 0.0
    return score.gain(value, guess) <= 2 * error


def beside_guessing(score: Score, value: float, guess: float, samples: int, of: str = "samples") -> str:
    """Return in words how who is `no_better` stands beside guessing: a value above it, of a few samples, tells nothing.

    Args:
        score: What is measured.
        value: What was reached.
        guess: The score of who guesses.
        samples: On how many it was measured.
        of: What these are.
    """
    reached = f"{score.name} {score.show(value)}, where guessing has {score.show(guess)}, on {samples} {of}"
    if score.gain(value, guess) > 0:
        return f"cannot be told from guessing: {reached}, which are too few to tell"
    return f"is no better than chance: {reached}"


def learned_nothing(name: str, score: Score, value: float, guess: float | None, samples: int) -> Finding | None:
    """Return what to say of a network that is no better than guessing after its training; None where it learned something.

    Args:
        name: Of the network.
        score: What is measured.
        value: What it reached on held-out samples.
        guess: The score of who guesses, if there is such a thing.
        samples: On how many it was measured.
    """
    if guess is None or not samples or not no_better(score, value, guess, samples):
        return None
    message = (
        f"after the training the {name} {beside_guessing(score, value, guess, samples)}. Look at its losses in "
        "metrics.csv: where they do not fall, take another learning rate, or ask `limbeck check`; where they do, held-out "
        "samples are prepared or labelled otherwise"
    )
    return Finding(f"{name} {score.name}", "warning", message, {score.name: value, "chance": guess})


def diverged(name: str, loss: float, guess: float | None) -> Finding | None:
    """Return what to say of a network whose loss on held-out samples is far beyond that of who guesses; None of others.

    Args:
        name: Of the network.
        loss: The mean cross-entropy.
        guess: The share of answers that are right by chance, 1/K of K classes.
    """
    if guess is None or not 0 < guess < 1 or loss <= BEYOND * -math.log(guess):
        return None
    message = (
        f"after the training the {name}'s loss on held-out samples is {loss:.3g}, where guessing has "
        f"{-math.log(guess):.3g}: its answers in eval mode are out of all proportion, whatever its accuracy. Often batch "
        "norm has not yet seen enough batches: train longer. Else lower the learning rate, or clip the gradients (clip=1)"
    )
    return Finding(f"{name} loss", "warning", message, {"loss": loss, "chance": -math.log(guess)})


def best_order(confusion: Tensor) -> Tensor:
    """Return which class each answer most likely means, int64 (K): the order in which most answers are right.

    Args:
        confusion: How often a class is answered (row) where another is right (column), (K, K), on the CPU. A class that was
            not seen stays where it is.
    """
    from scipy.optimize import linear_sum_assignment

    _, columns = linear_sum_assignment((confusion + 1e-3 * torch.eye(len(confusion))).numpy(), maximize=True)
    return torch.from_numpy(columns)  # the rows are sorted, and all of them are there


def in_order(order: Tensor) -> str:
    """Say how a teacher's classes are put into the data's order.

    Args:
        order: Which class each of its outputs means, int64 (K), as `best_order` finds it.
    """
    classes = order.argsort().tolist()
    listed = f"[{','.join(map(str, classes))}]" if len(classes) <= LISTED else "..."
    return (
        f"Put them into the data's order: --teacher-classes {listed}, or in Python limbeck.Frozen(teacher, "
        f"classes={listed.replace(',', ', ')})"
    )


def fits_better(permuted: float, as_is: float) -> bool:
    """Whether another order of classes is right so much more often that the classes are permuted.

    An untrained network gains a little too, but does not lose half of its errors.
    """
    return permuted - as_is > LIFT and 1 - permuted < (1 - as_is) / 2
