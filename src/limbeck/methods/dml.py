"""Deep mutual learning.

Zhang, Xiang, Hospedales, Lu, "Deep Mutual Learning", CVPR 2018, arXiv 1706.00384; official code
YingZhangDUT/Deep-Mutual-Learning (TensorFlow 1).

We take the mean over the peers, 1/(n − 1), as the paper's equation does; the authors' code takes the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from limbeck.method import Method, Turn
from limbeck.methods.kd import soft_target
from limbeck.objective import Loss
from limbeck.paper import Paper
from limbeck.task import Batch, Task, classification

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
    """Networks that teach each other in turn: the paper's Algorithm 1.

    Args:
        peers: The networks by name.
        mimic: Weight of the peers' term.
        task: How batches are fed and measured.
    """

    def __init__(self, peers: dict[str, nn.Module], mimic: float = 1.0, task: Task = classification) -> None:
        super().__init__()
        if len(peers) < 2:
            raise ValueError(f"mutual learning needs at least 2 networks, got {list(peers)}")
        self.peers, self.mimic, self.task = nn.ModuleDict(peers), mimic, task

    def players(self) -> dict[str, list[nn.Module]]:
        """Return every peer."""
        return {name: [net] for name, net in self.peers.items()}

    def networks(self) -> dict[str, nn.Module]:
        """Return every peer: any of them can be shipped."""
        return dict(self.peers.items())

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Update each peer on the others' latest predictions."""
        outputs = {name: self.task.look(net, batch)[""] for name, net in self.peers.items()}
        target = self.task.target(batch)
        names = list(self.peers)
        for name in names:
            mine, others = outputs[name], [outputs[other].detach() for other in names if other != name]
            hard = self.task.loss(mine, target)
            mimic = torch.stack([soft_target(mine, other, temperature=1.0) for other in others]).mean()
            yield Turn(name, {"hard": Loss(hard), "mimic": Loss(mimic, self.mimic)})
            if name != names[-1]:  # the next peers learn from what this one says now
                outputs[name] = self._says(name, batch)

    @torch.no_grad()
    def _says(self, name: str, batch: Batch) -> torch.Tensor:
        """Return a peer's output after its update; its batch-norm statistics see each batch once, not twice."""
        net = self.peers[name]
        before = {key: buffer.clone() for key, buffer in net.named_buffers()}
        output = self.task.look(net, batch)[""]
        for key, buffer in net.named_buffers():
            buffer.copy_(before[key])
        return output


def dml(
    student: nn.Module,
    peers: nn.Module | Sequence[nn.Module],
    *,
    mimic: float = 1.0,
    task: Task = classification,
) -> Mutual:
    """Let networks teach each other while they train.

    L_i = CE(y, z_i) + mimic · 1/(n − 1) Σ_{j≠i} KL(p_j ‖ p_i), at T = 1; the peers are constants in each other's loss and
    update in turn, each from the others' latest predictions.

    Args:
        student: The network to ship.
        peers: The other networks, of the same classes; each needs its own initialisation.
        mimic: Weight of the peers' term; 1 as in the paper.
        task: How batches are fed and measured.
    """
    others = [peers] if isinstance(peers, nn.Module) else list(peers)
    if any(other is student for other in others) or len({id(other) for other in others}) < len(others):
        raise ValueError("the same network plays twice: give each peer its own, with its own initialisation")
    return Mutual({"student": student} | {f"peer{i}": net for i, net in enumerate(others, 1)}, mimic, task)
