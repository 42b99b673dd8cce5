"""On-the-fly native ensemble.

Lan, Zhu, Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018, arXiv 1806.04606; official code
Lan1991Xu/ONE_NeurIPS2018 (PyTorch 0.2).

The authors' code adds 1e-7 to the targets of the KL, which a log-softmax does not need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from torch import Tensor, nn

from limbeck.core.layers import stages
from limbeck.core.method import Distill
from limbeck.core.objective import M, S, Weight, Y, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.methods.kd import soft_target
from limbeck.nets.anew import Anew
from limbeck.nets.branches import with_branches
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="lan2018knowledge",
    title="Knowledge Distillation by On-the-Fly Native Ensemble",
    authors="Lan, Xu and Zhu, Xiatian and Gong, Shaogang",
    venue="NeurIPS",
    year=2018,
    arxiv="1806.04606",
    matches="softened outputs",
    teacher="its own branches, as an ensemble",
)


class OnTheFly(Distill):
    """A network in training with its branches."""

    def __init__(self, student: nn.Module, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._student = [student]  # its parameters are the first branch's and the trunk's

    def adding(self, other: Distill, hard: Weight | None = None) -> NoReturn:
        """Refuse: what another method reads of the student, the network in training has elsewhere."""
        raise ValueError(
            "one trains its student as part of a network with branches, and takes no terms of another method"
        )

    def networks(self) -> dict[str, nn.Module]:
        """Return the plain network, which is the first branch, and the gated ensemble."""
        return {"student": self._student[0], "ensemble": self.student}


@ranged
def one(
    student: nn.Module,
    *,
    layer: str | None = None,
    branches: int = 3,
    temperature: float = 3.0,
    warmup: float = 80 / 300,
    gate: bool = True,
    anew: Anew | None = None,
    example: Any,
    task: Task = classification,
) -> OnTheFly:
    """Train a network with copies of its deeper part, which it learns from as an ensemble.

    L = Σ_i CE(y, z_i) + CE(y, z_e) + r T² Σ_i KL(p_e^T ‖ p_i^T), where a gate mixes the branches' logits into
    z_e = Σ_i g_i z_i. The ensemble is a constant in the KL: it learns from the labels. The factor r rises as
    exp(−5 (1 − progress / warmup)²) to 1.

    The student is the first branch, and ends as the plain network that it was; the ensemble comes beside it. For a fair
    control train `plain` as long as this takes: three branches cost about half as much again.

    Args:
        student: The network to train.
        layer: The last layer that all branches share; by default the last but one resolution of the network's maps (the
            last but one block, or hidden layer), since the paper copies the last block.
        branches: How many in all, the student's own among them, at least 2; 3 as in the paper. The others start anew.
        temperature: T, in (0, 1000]; 3 as in the paper.
        warmup: Share of the training in which r rises, in [0, 1]; 80 of 300 epochs as in the authors' code. The paper has
            no r.
        gate: Learn the branches' shares from what the trunk shows, as the paper does. False gives all the same share,
            the paper's control: it lost 0.6 points by it (ResNet-110, CIFAR-100).
        anew: Makes the network with its own initialisation, ``anew=lambda: resnet18(num_classes=10)``, from which the
            other branches start; by default the ``reset_parameters`` of their modules, which in torchvision's and timm's
            networks draw otherwise. limbeck gives it where the network is named by a string.
        example: A batch of inputs, (N, ...).
        task: How batches are fed and measured.
    """
    layer = shared_layer(student, example, task) if layer is None else layer
    ensemble = with_branches(student, example, layer, branches, gate, anew)

    def learn(index: int) -> Any:
        branch = S[f"branches.{index}"]
        return on(task.loss, branch, Y, name=f"hard.{index + 1}") + ramp(warmup) * on(
            soft_target,
            *task.softened(branch, S.via(Tensor.detach)),
            name=f"soft.{index + 1}",
            temperature=temperature,
            mask=M,
        )

    objective = task.hard + sum(learn(index) for index in range(branches))
    return OnTheFly(student, ensemble, None, objective, task)


def ramp(warmup: float) -> Callable[[float], float]:
    """Return r of the training progress: exp(−5 (1 − progress / warmup)²), and 1 from ``warmup`` on."""
    if not 0 < warmup <= 1:
        raise ValueError(f"warmup is a share of the training and must lie in (0, 1], got {warmup}")
    return lambda progress: math.exp(-5 * max(0.0, 1 - progress / warmup) ** 2)


def shared_layer(net: nn.Module, example: Any, task: Task = classification) -> str:
    """Return the last layer but one of those worth matching: what is deeper is the last block."""
    found = [stage.path for stage in stages(net, example, task)]
    if len(found) < 2:
        raise ValueError(
            f"{type(net).__name__} has no two stages to share the first of: name the layer, layer='layer2'"
        )
    return found[-2]
