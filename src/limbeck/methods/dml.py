"""Deep mutual learning.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384; official code
YingZhangDUT/Deep-Mutual-Learning (TensorFlow 1).

We take the mean over the peers, 1/(n − 1), as the paper's equation does; the authors' code takes the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from limbeck.core.method import Method, Turn, parameters
from limbeck.core.numerics import full_precision
from limbeck.core.objective import Loss, S
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Batch, Task
from limbeck.methods.kd import soft_target
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zhang2018deep",
    title="Deep Mutual Learning",
    authors="Zhang, Ying and Xiang, Tao and Hospedales, Timothy M. and Lu, Huchuan",
    venue="CVPR",
    year=2018,
    arxiv="1706.00384",
    matches="outputs",
    teacher="peers, trained together",
)


class Mutual(Method):
    """Networks that teach each other: in turn, as the paper's Algorithm 1 has it, or all at once.

    Args:
        peers: The networks by name.
        mimic: Weight of the peers' term.
        alternate: Whether each learns from what those before it say after their update.
        ensemble: Whether the others teach with one voice, the mean of their probabilities.
        task: How batches are fed and measured.

    Raises:
        ValueError: Fewer than two networks, one that has nothing to train, or two that share a parameter.
    """

    def __init__(
        self,
        peers: dict[str, nn.Module],
        mimic: float = 1.0,
        *,
        alternate: bool = True,
        ensemble: bool = False,
        task: Task = classification,
    ) -> None:
        super().__init__()
        if len(peers) < 2:
            raise ValueError(f"mutual learning needs at least 2 networks, got {list(peers)}")
        self.peers, self.mimic, self.task = nn.ModuleDict(peers), mimic, task
        self.alternate, self.ensemble = alternate, ensemble
        self.outcomes = task.softened(S)[0].steps[-1]
        parameters(self)  # complains of networks that share any

    def players(self) -> dict[str, list[nn.Module]]:
        """Return every peer."""
        return {name: [net] for name, net in self.peers.items()}

    def networks(self) -> dict[str, nn.Module]:
        """Return every peer: any of them can be shipped."""
        return dict(self.peers.items())

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Update each peer on the others' predictions."""
        inputs, target, mask = self.task.inputs(batch), self.task.target(batch), self.task.mask(batch)
        outputs = {name: self.task.feed(net, inputs) for name, net in self.peers.items()}
        names = list(self.peers)
        for name in names:
            mine = outputs[name]
            terms = {"hard": Loss(self.task.loss(mine, target))}
            if self.mimic:  # of weight 0 it costs nothing
                others = [self.outcomes(outputs[other].detach()) for other in names if other != name]
                voices = [_mean(others)] if self.ensemble else others
                mine = self.outcomes(mine)
                divergences = [soft_target(mine, voice, temperature=1.0, mask=mask) for voice in voices]
                terms["mimic"] = Loss(torch.stack(divergences).mean(), self.mimic)
            yield Turn(name, terms)
            if self.mimic and self.alternate and name != names[-1]:  # the next peers learn from what this one says now
                outputs[name] = self._says(name, batch)

    @torch.no_grad()
    def _says(self, name: str, batch: Batch) -> Any:
        """Return a peer's output after its update; its batch-norm statistics see each batch once, not twice."""
        net = self.peers[name]
        before = {key: buffer.clone() for key, buffer in net.named_buffers()}
        output = self.task.feed(net, self.task.inputs(batch))
        for key, buffer in net.named_buffers():
            buffer.copy_(before[key])
        return output


@ranged
def dml(
    student: nn.Module,
    peers: nn.Module | Sequence[nn.Module],
    *,
    mimic: float = 1.0,
    alternate: bool = True,
    ensemble: bool = False,
    task: Task = classification,
) -> Mutual:
    """Let networks teach each other while they train.

    L_i = CE(y, z_i) + mimic · 1/(n − 1) Σ_{j≠i} KL(p_j ‖ p_i), at T = 1; the peers are constants in each other's loss and
    update in turn, each from the others' latest predictions. The labels' term is that of the labelled samples, the peers'
    that of all, so samples without a label teach too.

    Args:
        student: The network to ship.
        peers: The other networks, of the same classes and of any architecture; each needs its own initialisation.
        mimic: Weight of the peers' term, above 0; 1 as in the paper.
        alternate: Whether a peer that was updated answers the batch once more for those after it, as in the paper. Without,
            all learn from what was said before any update: an approximation that saves n − 1 forward passes.
        ensemble: Whether the others teach with one voice, KL(1/(n − 1) Σ_{j≠i} p_j ‖ p_i): the paper's DML_e, which it
            finds worse. It makes no difference for two networks.
        task: How batches are fed and measured.

    Raises:
        ValueError: No peer, one that has nothing to train, or networks that share a parameter.
    """
    others = [peers] if isinstance(peers, nn.Module) else list(peers)
    cohort = {"student": student} | {f"peer{i}": net for i, net in enumerate(others, 1)}
    return Mutual(cohort, mimic, alternate=alternate, ensemble=ensemble, task=task)


@full_precision
def _mean(outputs: list[Tensor]) -> Tensor:
    """The logits of the mean of probabilities, but for a constant."""
    return torch.stack([output.log_softmax(-1) for output in outputs]).logsumexp(0)
