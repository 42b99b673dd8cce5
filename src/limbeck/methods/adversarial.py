"""Conditional adversarial distillation.

Xu, Hsu, Huang, "Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional
Adversarial Networks", arXiv 1709.00513. No official code; the loss weights and the critic's width are not published.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.frozen import frozen
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import Loss, S, T, Weight, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import Batch, Task
from limbeck.nets.critic import Critic, judged_by
from limbeck.tasks.classification import classification, cross_entropy

PAPER = Paper(
    key="xu2017training",
    title="Training Shallow and Thin Networks for Acceleration via Knowledge Distillation with Conditional Adversarial "
    "Networks",
    authors="Xu, Zheng and Hsu, Yen-Chang and Huang, Jiawei",
    venue="ICLR Workshop",
    year=2018,
    arxiv="1709.00513",
    matches="logits, as a critic sees them",
    teacher="frozen network",
)


@full_precision
def absolute_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |z_s − z_t| over all elements."""
    same_shape("logits", student, teacher)
    return (student - teacher).abs().mean()


class Adversarial(Method):
    """A student that also plays against a critic, which tells its logits from the teacher's.

    Args:
        distill: What the student learns besides.
        critic: Scores logits: ("teacher" or not, class).
        adversarial: Weight of fooling it and of being classified by it.
    """

    def __init__(self, distill: Distill, critic: nn.Module, adversarial: float = 0.1) -> None:
        super().__init__()
        self.distill, self.critic, self.adversarial = distill, critic, adversarial
        self.task = distill.task

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student and its critic."""
        return {**self.distill.players(), "critic": [self.critic]}

    def adding(self, other: Distill, hard: Weight | None = None) -> Adversarial:
        """Return it with the terms of another method for the student."""
        return Adversarial(self.distill.adding(other, hard), self.critic, self.adversarial)

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Update the critic, then the student against it, one to one."""
        scene = self.distill.scene(batch, progress)
        z_s, z_t, y = S.read(scene), T.read(scene), self.task.target(batch)

        tells_t, names_t = self.critic(z_t)
        tells_s, names_s = self.critic(z_s.detach())
        yield Turn(
            "critic",
            {
                "teacher": Loss(_says(tells_t, 1.0)),
                "student": Loss(_says(tells_s, 0.0)),
                "label": Loss(cross_entropy(names_t, y) + cross_entropy(names_s, y)),
            },
        )

        tells, names = judged_by(self.critic)(z_s)
        game = {
            "fool": Loss(_says(tells, 1.0), self.adversarial),
            "label": Loss(cross_entropy(names, y), self.adversarial),
        }
        yield Turn("student", {**self.distill.objective(scene), **game})


@ranged
def adversarial(
    student: nn.Module,
    teacher: nn.Module,
    *,
    num_classes: int | None = None,
    absolute: float = 1.0,
    adversarial: float = 0.1,
    width: int = 64,
    depth: int = 2,
    example: Tensor | None = None,
    task: Task = classification,
) -> Adversarial:
    """Let the student fool a critic that tells its logits from the teacher's.

    Critic: BCE(D(z_t), 1) + BCE(D(z_s), 0) + CE(D_y(z_t), y) + CE(D_y(z_s), y).
    Student: CE(y, z_s) + absolute · mean |z_s − z_t| + adversarial · (BCE(D(z_s), 1) + CE(D_y(z_s), y)).

    The adversarial part alone performs poorly: it matches distributions, not samples. The absolute error couples these. It
    is a mean over classes, where the paper has a sum.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        num_classes: K, at least 2; found from ``example`` if not given.
        absolute: Weight of the absolute error, at least 0; 1 is ours.
        adversarial: Weight of the game, above 0; 0.1 is ours. The paper's weights are not published.
        width: Of the critic's hidden layers, at least 1; 64 is ours: a strong critic saturates.
        depth: Number of the critic's hidden layers, at least 1; 2, so three linear layers as in the paper.
        example: A batch of inputs, (N, ...), to find K.
        task: How batches are fed and measured.
    """
    if num_classes is None:
        if example is None:
            raise ValueError("the critic needs the number of classes: pass num_classes=K or example=inputs")
        with torch.no_grad():
            num_classes = task.feed(frozen(teacher), example).shape[-1]
    follow = task.hard + absolute * on(absolute_error, *task.exclusive(S, T), name="absolute")
    return Adversarial(Distill(student, teacher, follow, task), Critic(num_classes, width, depth), adversarial)


@full_precision
def _says(score: Tensor, real: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, real))
