"""Be your own teacher.

Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self
Distillation", ICCV 2019, arXiv 1905.08094; the authors' code for the journal version, ArchipLab-LinfengZhang.

Where we differ from the authors' code: theirs has no T². For the features it has the norm of the whole batch's matrix,
which is not squared and grows with the batch. Its gradient is √(N·D) / (2 r) times that of our mean of squares, r being the
root of that mean: 90 times for N = 128 samples, D = 512 features and r = 1.4. It leaves out the feature term of the
second-deepest exit, though its comment speaks of the shallowest; ours has it for all exits, as the paper. The exits' layers
are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor, nn

from limbeck.core.layers import embedding
from limbeck.core.method import Distill
from limbeck.core.objective import M, Objective, S, Weight, Y, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Task
from limbeck.methods.fitnets import hint_distance
from limbeck.methods.kd import soft_target
from limbeck.nets.exits import EarlyExit, Exit, ExitsEnsemble, with_exits
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zhang2019be",
    title="Be Your Own Teacher: Improve the Performance of Convolutional Neural Networks via Self Distillation",
    authors="Zhang, Linfeng and Song, Jiebo and Gao, Anni and Chen, Jingwei and Bao, Chenglong and Ma, Kaisheng",
    venue="ICCV",
    year=2019,
    arxiv="1905.08094",
    matches="softened outputs and features",
    teacher="its own deepest layers",
)


class SelfDistill(Distill):
    """A network in training with its exits."""

    def __init__(self, student: nn.Module, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._student = [student]  # its parameters are the sections'

    def adding(self, other: Distill, hard: Weight | None = None) -> NoReturn:
        """Refuse: what another method reads of the student, the network in training has elsewhere."""
        raise ValueError(
            "byot trains its student as part of a network with exits, and takes no terms of another method"
        )

    def networks(self) -> dict[str, nn.Module]:
        """Return the plain network, each early exit as one of its own, the ensemble of all, and all with thresholds.

        An exit is sure of one class of several: without these there are no thresholds.
        """
        student = self.student
        assert isinstance(student, EarlyExit)
        early = {f"exit-{number}": student.up_to(number) for number in range(1, len(student.exits) + 1)}
        stopping = {"early-exit": student} if self.task.one_class else {}
        return {"student": self._student[0], **early, "ensemble": ExitsEnsemble(student), **stopping}


@ranged
def byot(
    student: nn.Module,
    *,
    exits: Sequence[str] | None = None,
    alpha: float = 0.3,
    feature: float = 0.03,
    temperature: float = 3.0,
    example: Any,
    task: Task = classification,
) -> SelfDistill:
    """Train a network with exits at its shallow layers, which learn from its deepest.

    L = CE(y, z_M) + Σ_{i<M} [(1 − α) CE(y, z_i) + α T² KL(p_M^T ‖ p_i^T) + λ mean((A_i F_i − F_M)²)], where F_M is what the
    network's own classifier is given, F_i an exit's bottleneck and A_i a linear map. The deepest exit is a constant as a
    teacher. With α = λ = 0 it is deep supervision: the control that a claim for self-distillation needs.

    Beside the student, which ends as the plain network that it was, come its exits, their ensemble, which averages logits,
    and where a sample has one class, a network that leaves at the first exit that is sure: `limbeck.EarlyExit`.

    Args:
        student: The network to train; its last layer is linear.
        exits: The layers after which an exit is; by default all resolutions of its maps (its blocks, or hidden layers) but
            the deepest.
        alpha: The share of the soft term at an exit, in [0, 1]; 0.3 as in the authors' code (the paper does not say).
        feature: λ, at least 0; 0.03 is the number of the authors' code, whose norm is another: there it is as strong as 2.7
            is here, with 128 samples and 512 features that differ by 1.4.
        temperature: T, in (0, 1000]; 3 as in the authors' code.
        example: A batch of inputs, (N, ...).
        task: How batches are fed and measured.
    """
    network = with_exits(student, example, exits, task)
    classifier = embedding(student, example, task)
    leave = network.exits[0]
    assert isinstance(leave, Exit)
    width = leave.fc.in_features
    last = S[f"sections.{len(network.exits)}.{classifier}"].via(Tensor.detach)

    def learn(index: int) -> Objective:
        leave, told = S[f"exits.{index}"], S[f"exits.{index}.bottleneck"].via(nn.Linear(width, width))
        name = f".{index + 1}"
        hard = (1 - alpha) * on(task.loss, leave, Y, name=f"hard{name}")
        softened = task.softened(leave, S.via(Tensor.detach))
        soft = alpha * on(soft_target, *softened, name=f"soft{name}", temperature=temperature, mask=M)
        return hard + soft + feature * on(hint_distance, told, last, name=f"feature{name}")

    objective = sum((learn(index) for index in range(len(network.exits))), task.hard)
    return SelfDistill(student, network, None, objective, task)
