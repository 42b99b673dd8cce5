"""Stages of a method, and weights that change while it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from limbeck.core.method import Make, Method


@dataclass(frozen=True)
class Stage:
    """One part of a method that trains in several.

    A staged method is a generator of stages: the code after a ``yield`` runs when that stage has been trained.

    Args:
        method: What is trained.
        share: This stage's part of the epochs given to `fit`, in (0, 1].
        trains: The modules whose parameters train, all of the players' by default. What lies outside stays as it is,
            its batch-norm statistics too.
        optimizer: Makes the optimizer of this stage in place of the one given to `fit`.
        name: What logs call it.
    """

    method: Method
    share: float = 1.0
    trains: Sequence[nn.Module] | None = None
    optimizer: Make | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}")


def linear(start: float, end: float) -> Callable[[float], float]:
    """Return a weight that goes from ``start`` to ``end`` linearly over the training progress."""
    return lambda progress: start + (end - start) * progress


def rising(warmup: float) -> Callable[[float], float]:
    """Return a factor that goes from 1/20 to 1 in the first ``warmup`` of the training, and stays there.

    1/20 is the first of 20 epochs of warm-up, as ReviewKD and DKD have it: a weight of 0 would leave the term out.

    Args:
        warmup: A share of the training, in (0, 1].
    """
    return lambda progress: min(1.0, 1 / 20 + progress / warmup)
