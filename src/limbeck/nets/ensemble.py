"""Several networks that speak with one voice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.frozen import Frozen, bare
from limbeck.core.numerics import full_precision
from limbeck.core.task import Task, logits
from limbeck.core.trace import describe


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
            that these are answers already: ``Frozen(Ensemble(nets, output=scores), output=lambda answer: answer)``. The
            same holds for maps of classes, (N, K, H, W), as an arithmetic mean needs the classes last:
            ``output=limbeck.segmentation().output``.

    Raises:
        TypeError: A member that is no network.
        ValueError: No network, a frozen one of another mode than "eval", weights that are not one each, finite, ≥ 0 and not
            all 0, an unknown mean, a T that is not positive and finite. When it is asked: members whose answers differ in
            shape, are no floating-point tensors, or have no classes.
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
        networks = list(networks) if isinstance(networks, Iterable) else [networks]
        if not networks:
            raise ValueError("an ensemble needs at least one network")
        for number, net in enumerate(networks):
            _check_member(number, net)
        if mean not in ("arithmetic", "geometric"):
            raise ValueError(f"mean must be 'arithmetic' or 'geometric', got {mean!r}")
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        weights = [1.0] * len(networks) if weights is None else [float(weight) for weight in weights]
        if len(weights) != len(networks) or not all(0 <= w < math.inf for w in weights) or sum(weights) == 0:
            raise ValueError(f"expected {len(networks)} weights ≥ 0, not all 0, got {weights}")
        self.members, self.mean, self.temperature = nn.ModuleList(map(bare, networks)), mean, temperature
        self.output, self._asks = output, tuple(_asking(net, output) for net in networks)
        self.weights = [weight / sum(weights) for weight in weights]

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the mean answer, (N, ..., K)."""
        return self._averaged([self._asked(number, args, kwargs) for number in range(len(self.members))])

    def _asked(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return a member's answer."""
        net, ask = self.members[number], self._asks[number]
        try:
            answer = self.output(net(*args, **kwargs)) if ask is None else ask(net, kwargs or args[0])
        except RuntimeError as error:
            kinds = [_kind(member) for member in self.members]
            if kinds[number] in (None, *kinds[:number]):
                raise
            raise ValueError(
                f"member {number}, {type(net).__name__}, has weights of {kinds[number]}, the first of {kinds[0]}, and "
                f"cannot be fed what that is: {error}. Convert it, or its inputs: Frozen(net, inputs=lambda x: x.to(...))"
            ) from error
        if not isinstance(answer, Tensor) or not answer.is_floating_point() or answer.ndim < 2:
            what = f"{answer.dtype} of shape {tuple(answer.shape)}" if isinstance(answer, Tensor) else describe(answer)
            raise ValueError(
                f"member {number}, {type(net).__name__}, gives {what}: expected logits or values, floats (N, ..., K); say "
                "where its answer is, output= or Frozen(net, output=...)"
            )
        return answer

    @full_precision
    def _averaged(self, outputs: list[Tensor]) -> Tensor:
        if any(output.shape != outputs[0].shape for output in outputs):
            raise ValueError(
                f"members must give logits of the same classes, got shapes {[tuple(output.shape) for output in outputs]}"
            )
        if self.mean == "arithmetic" and outputs[0].shape[-1] == 1:
            raise ValueError(
                "an arithmetic mean is one of probabilities over classes, and the members give one number each: take "
                "mean='geometric', the mean of the numbers, or members with an output for each class"
            )
        if self.mean == "arithmetic" and outputs[0].ndim == 4 and self.output is logits and not all(self._asks):
            raise ValueError(
                f"the members give answers of shape {tuple(outputs[0].shape)}, and an arithmetic mean needs the classes "
                "last: Frozen(Ensemble(nets, output=limbeck.segmentation().output), output=lambda answer: answer), or "
                "mean='geometric'"
            )
        if self.mean == "geometric":
            return torch.stack([w * z for w, z in zip(self.weights, outputs, strict=True)]).sum(0)
        shares = [math.log(w) if w else -math.inf for w in self.weights]
        terms = [(z / self.temperature).log_softmax(-1) + share for share, z in zip(shares, outputs, strict=True)]
        return self.temperature * torch.logsumexp(torch.stack(terms), 0)


def _check_member(number: int, net: Any) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(
            f"member {number} of an ensemble must be a network, got {type(net).__name__}: limbeck.SklearnTeacher makes one "
            "of a model of scikit-learn"
        )
    if isinstance(net, Frozen) and net.mode != "eval":
        raise ValueError(
            f"member {number} is frozen with mode={net.mode!r}, but all members run in one mode: freeze the ensemble, "
            f"Frozen(Ensemble(nets), mode={net.mode!r})"
        )


def _kind(net: nn.Module) -> str | None:
    """Return of which kind a member's weights are, and where; None if it has none."""
    return next((f"{one.dtype} on {one.device}" for one in net.parameters() if one.is_floating_point()), None)


def _asking(view: nn.Module, output: Callable[[Any], Tensor]) -> Callable[[nn.Module, Any], Any] | None:
    """Return how a member with a view of its own is asked: a function, so that copies of the ensemble share the view."""
    if not isinstance(view, Frozen):
        return None
    task = Task(output=view.output or output)
    return lambda net, inputs: view.translate(task.feed(net, view.inputs(inputs)))
