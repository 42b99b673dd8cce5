"""What stands before and behind a network that is fed the rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Encode(nn.Module):
    """Rows as a network wants them: numbers standardised, categories one-hot.

    It is the student's first layer, and is saved with it: teacher and student are fed the same rows.

    Args:
        categories: For each column its number of categories, 0 for a column of numbers.
        mean: Of each column; 0 by default. What a column of categories has does not matter.
        std: Likewise; 1 by default. A constant column has std 0 and becomes 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, categories: Sequence[int], mean: Tensor | None = None, std: Tensor | None = None) -> None:
        super().__init__()
        self.categories = tuple(categories)
        self.numbers = [index for index, count in enumerate(self.categories) if not count]
        mean = torch.zeros(len(self.categories)) if mean is None else mean.float()
        std = torch.ones(len(self.categories)) if std is None else std.float()
        for name, values in (("mean", mean), ("std", std)):
            if values.shape != (len(self.categories),):
                raise ValueError(f"{name}: expected one for each of {len(self.categories)} columns, got {values.shape}")
        self.register_buffer("mean", mean[self.numbers])
        self.register_buffer("scale", std[self.numbers].where(std[self.numbers] > 0, 1.0))

    @property
    def width(self) -> int:
        """How many values a row becomes."""
        return len(self.numbers) + sum(self.categories)

    def forward(self, rows: Tensor) -> Tensor:
        """Map rows (N, D), categories as their numbers from 0 on, to (N, width): the numbers, then the categories.

        Raises:
            ValueError: Rows of another width.
        """
        if rows.shape[-1] != len(self.categories):
            raise ValueError(f"expected rows of {len(self.categories)} columns, got shape {tuple(rows.shape)}")
        parts = [(rows[:, self.numbers] - self.mean) / self.scale]
        for index, count in enumerate(self.categories):
            if count:
                parts.append(F.one_hot(rows[:, index].long(), count).to(rows.dtype))
        return torch.cat(parts, 1)


class Rescale(nn.Module):
    """Predictions in the unit of the values: mean + std · z. A network's own outputs begin about 0, prices do not.

    It is the student's last layer, and is saved with it.

    Args:
        mean: Of each value, (M).
        std: Likewise; of a constant value 0, which is then all that is predicted.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("std", std.float())

    def forward(self, outputs: Tensor) -> Tensor:
        """Map outputs (N, M) to values (N, M)."""
        return self.mean + self.std * outputs
