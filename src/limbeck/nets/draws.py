"""Random numbers for a loss that draws at every call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from limbeck.core.distributed import place


class Draws(nn.Module):
    """Numbers for each sample, anew at each call: they depend on a seed and on how often it was called, both its state.

    So a run that goes on draws what it would have drawn, and two processes draw as one.

    Args:
        seed: In [0, 2³¹).
    """

    runs_as_written = True
    """A term that holds it is not compiled: the number of calls is another in each."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed, self.calls = seed, 0

    def forward(
        self, draw: Callable[[int, torch.Generator], Tensor], samples: int, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return this process's rows of ``draw(of the global batch, generator)``, which has every world-th sample."""
        rank, world = place()
        generator = torch.Generator(device).manual_seed(self.seed * 2**31 + self.calls)
        self.calls += 1
        return draw(samples * world, generator)[rank::world]

    def get_extra_state(self) -> Tensor:
        """Return the seed and the number of calls: on the CPU, as the next call depends on them."""
        return torch.tensor([self.seed, self.calls])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.seed, self.calls = state.tolist()
