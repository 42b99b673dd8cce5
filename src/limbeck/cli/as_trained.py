"""Data for networks that have learned: prepared as they were in their training, or else with a word about it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence

from jsonargparse import Namespace

from limbeck import zoo
from limbeck.cli.case import Case
from limbeck.data import Data

TOGETHER = (("size", "in_memory"), ("mean", "std"))
"""Options of which one alone would not do."""
NEAR = 0.01
"""Differences of means and standard deviations that no network minds: two to three levels of a pixel."""


def as_trained(leaf: Namespace, names: Iterable[str]) -> Namespace:
    """Return a command's options, with what it does not say of inputs as the networks' own training had it.

    Args:
        leaf: The options.
        names: Of the networks, whose runs or files say how their inputs were prepared. The first that does counts.
    """
    said = leaf.clone()
    for name in names:
        was = zoo.trained_on(name)
        if was.data != leaf.data:
            continue
        for together in TOGETHER:
            if any(said[key] is not None for key in together):
                continue
            for key in together:
                said[key] = was.options.get(key)
            if "size" in together and said.size is not None:
                warnings.warn(
                    f"images have the size that {name} was trained with, {said.size}: --size says another one",
                    stacklevel=2,
                )
    return said


def tell_of_other_inputs(name: str, case: Case) -> None:
    """Warn that a network is fed otherwise than in its training."""
    was = zoo.trained_on(name)
    if was.shape and case.shape and was.shape != case.shape:
        warnings.warn(
            f"{name} was trained on inputs of shape {was.shape}, and here they are {case.shape}: --size says the size of "
            "images",
            stacklevel=3,
        )
    if isinstance(case.data, Data) and not (_near(was.mean, case.data.mean) and _near(was.std, case.data.std)):
        warnings.warn(
            f"{name} was trained on inputs normalised by mean {_short(was.mean)} and std {_short(was.std)}, and here it is "
            f"mean {_short(case.data.mean)} and std {_short(case.data.std)}: --mean and --std say them",
            stacklevel=3,
        )


def _near(was: Sequence[float], now: Sequence[float]) -> bool:
    """Whether two of one length are nearly alike; where one is not known, nothing differs."""
    pairs = zip(was, now, strict=True) if len(was) == len(now) else ()
    return all(math.isclose(one, other, rel_tol=NEAR, abs_tol=NEAR) for one, other in pairs)


def _short(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:.4g}' for value in values)}]"
