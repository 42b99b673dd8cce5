"""What a training logs, kept on the device until somebody asks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class Tally:
    """Sums of what each batch logged, and what was logged since it was looked at.

    Adding waits for nothing, and computes a sum alone: all stays on the device, and one transfer answers each question.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}
        self._counts: dict[tuple[str, ...], int] = {}
        self._unseen: dict[tuple[str, ...], list[tuple[int, Tensor]]] = {}  # steps with their values, the latest always

    def add(self, logs: Mapping[str, Tensor], step: int) -> None:
        """Take in one batch's scalars."""
        names = tuple(logs)
        values = torch.stack([value.float() for value in logs.values()])
        if names in self._sums:
            self._sums[names] = self._sums[names].to(values.device).add_(values)  # a checkpoint's come from the CPU
        else:
            self._sums[names] = values.clone()
        self._counts[names] = self._counts.get(names, 0) + 1
        self._unseen.setdefault(names, []).append((step, values))

    def means(self) -> dict[str, float]:
        """Return each name's mean over the batches that logged it."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for names, total in self._sums.items():
            for name, value in zip(names, total.tolist(), strict=True):
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + self._counts[names]
        return {name: value / counts[name] for name, value in sums.items()}

    def latest(self) -> dict[str, float]:
        """Return the last values."""
        return {
            name: value
            for names, rows in self._unseen.items()
            for name, value in zip(names, rows[-1][1].tolist(), strict=True)
        }

    def state_dict(self) -> dict[str, Any]:
        """Return what was taken in so far."""
        return {"sums": list(self._sums.items()), "counts": list(self._counts.items())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._sums = {tuple(names): total for names, total in state["sums"]}
        self._counts = {tuple(names): count for names, count in state["counts"]}

    def check(self) -> None:
        """Raise if a value was not finite.

        Raises:
            FloatingPointError: Names the term that broke first, and when.
        """
        broken: list[tuple[int, str]] = []
        for names, rows in self._unseen.items():
            steps, values = zip(*rows, strict=True)
            broken += [(steps[row], names[at]) for row, at in (~torch.stack(values).isfinite()).nonzero().tolist()]
            self._unseen[names] = rows[-1:]
        if broken:
            step, name = min(broken, key=lambda first: first[0])  # of those that broke together the term comes first
            raise FloatingPointError(
                f"{name!r} is not finite at batch {step}: lower the learning rate or its weight, or clip the "
                "gradients (clip=1.0). A loss of your own must be 0, not 0/0, of a batch without labels"
            )
