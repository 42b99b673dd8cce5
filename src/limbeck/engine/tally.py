"""What a training logs, kept on the device until somebody asks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Sums of what each batch logged, and when a value first was not finite.

    Adding waits for nothing: the sums stay on the device, and one transfer answers each question.
    """

    def __init__(self) -> None:
        self._groups: dict[tuple[str, ...], list[Tensor]] = {}  # names -> sum, first bad step, latest
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, logs: Mapping[str, Tensor], step: int) -> None:
        """Take in one batch's scalars."""
        names = tuple(logs)
        values = torch.stack([value.float() for value in logs.values()])
        bad = torch.where(values.isfinite(), math.inf, float(step))
        if names not in self._groups:
            self._groups[names], self._counts[names] = [values.clone(), bad, values], 1
            return
        total, first, _ = (kept.to(values.device) for kept in self._groups[names])  # a checkpoint's come from the CPU
        self._groups[names] = [total.add_(values), torch.minimum(first, bad), values]
        self._counts[names] += 1

    def means(self) -> dict[str, float]:
        """Return each name's mean over the batches that logged it."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, (total, _, _) in self._groups.items():
            for name, value in zip(names, total.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + self._counts[names]
        return {name: value / counts[name] for name, value in sums.items()}

    def latest(self) -> dict[str, float]:
        """Return the last values."""
        return {
            name: value
            for names, (_, _, last) in self._groups.items()
            for name, value in zip(names, last.tolist(), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far."""
        return {"groups": list(self._groups.items()), "counts": list(self._counts.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._groups = {tuple(names): list(values) for names, values in state["groups"]}
        self._counts = {tuple(names): count for names, count in state["counts"]}

    def check(self) -> None:
        """Raise if a value was not finite.

        Raises:
            FloatingPointError: Names the term that broke first, and when.
        """
        firsts = [
            (step, name)
            for names, (_, first, _) in self._groups.items()
            for name, step in zip(names, first.tolist(), strict=True)
            if step < math.inf
        ]
        if firsts:
            step, name = min(firsts, key=lambda first: first[0])  # of those that broke together the term comes first
            raise FloatingPointError(
                f"{name!r} is not finite at batch {int(step)}: lower the learning rate or its weight, or clip the "
                "gradients (clip=1.0). A loss of your own must be 0, not 0/0, of a batch without labels"
            )
