"""Several networks that speak with one voice."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.frozen import Frozen, bare
from limbeck.core.numerics import full_precision
from limbeck.core.task import Task, logits


class Ensemble(nn.Module):
    """The mean prediction of several networks: a teacher anywhere a teacher is accepted.

    ``"arithmetic"``: T log Σ_m w_m softmax(z_m / T), whose softmax at the temperature T is the mean of the members'
    probabilities, over classes that exclude each other. ``"geometric"``: Σ_m w_m z_m, the mean of the answers as they are.
    Its softmax is the normalised geometric mean of the members' probabilities, whatever the temperature, and so is its
    sigmoid: take it for several labels a sample, and for values.
    Methods that match layers match those of its members: name them, ``layers=[("layer2", "members.0.layer2")]``, or they
    are one member's.

    Args:
        networks: The members, of the same classes in the same order. A `Frozen` one is fed and read as it says, so that
            members may differ in their inputs, outputs and classes; its layers keep their names.
        weights: One for each, normalised to sum 1; equal by default.
        mean: Which mean.
        temperature: T, at which probabilities are averaged. 1 averages what the members predict; to teach by softened
            probabilities, the method's own: ``kd(student, Ensemble(teachers, temperature=4.0), temperature=4.0)`` has
            Hinton's arithmetic mean of softened probabilities (arXiv 1503.02531).
        output: Finds a member's answer in what it returns. Where the student's is found elsewhere than in a tensor, say
            that these are answers already: ``Frozen(Ensemble(nets, output=scores), output=lambda answer: answer)``.

    Raises:
        ValueError: No network, weights that are not one each, ≥ 0 and not all 0, an unknown mean, T ≤ 0.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        weights: Sequence[float] | None = None,
        mean: str = "arithmetic",
        temperature: float = 1.0,
        output: Callable[[Any], Tensor] = logits,
    ) -> None:
        super().__init__()
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        if mean not in ("arithmetic", "geometric"):
            raise ValueError(f"mean must be 'arithmetic' or 'geometric', got {mean!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}")
        weights = [1.0] * len(networks) if weights is None else list(weights)
        if len(weights) != len(networks) or min(weights) < 0 or sum(weights) == 0:
            raise ValueError(f"expected {len(networks)} weights ≥ 0, not all 0, got {weights}")
        self.members, self.mean, self.temperature = nn.ModuleList(map(bare, networks)), mean, temperature
        self.output, self._asks = output, tuple(_asking(net, output) for net in networks)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean answer, (N, ..., K)."""
        return self._averaged(
            [
                self.output(net(*args, **kwargs)) if ask is None else ask(net, kwargs or args[0])
                for ask, net in zip(self._asks, self.members, strict=True)
            ]
        )

    @full_precision
    def _averaged(self, outputs: list[Tensor]) -> Tensor:
        if any(output.shape != outputs[0].shape for output in outputs):
            raise ValueError(
                f"members must give logits of the same classes, got shapes {[tuple(output.shape) for output in outputs]}"
            )
        if self.mean == "geometric":
            return torch.stack([w * z for w, z in zip(self.weights, outputs, strict=True)]).sum(0)
        shares = [math.log(w) if w else -math.inf for w in self.weights]
        terms = [(z / self.temperature).log_softmax(-1) + share for share, z in zip(shares, outputs, strict=True)]
        return self.temperature * torch.logsumexp(torch.stack(terms), 0)


def _asking(view: nn.Module, output: Callable[[Any], Tensor]) -> Callable[[nn.Module, Any], Any] | None:
    """Return how a member with a view of its own is asked: a function, so that copies of the ensemble share the view."""
    if not isinstance(view, Frozen):
        return None
    task = Task(output=view.output or output)
    return lambda net, inputs: view.translate(task.feed(net, view.inputs(inputs)))
