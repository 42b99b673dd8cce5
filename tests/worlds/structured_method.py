"""Structured distillation for segmentation: pixels, pairs of patches, and a critic that sees the whole.

Liu, Chen, Liu, Qin, Luo, Wang, "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, arXiv 1903.04197.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from map_critic import MapCritic, judged_by
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck import Distill, Loss, Method, S, T, Task, Turn, X, on
from limbeck.core.layers import shape_at
from limbeck.core.numerics import full_precision, unit_rows
from limbeck.core.task import Batch
from limbeck.losses import soft_target


@full_precision
def pairwise(student: Tensor, teacher: Tensor, grid: int = 2) -> Tensor:
    """Squared difference of cosines between patches of maps (N, C, H, W), pooled to a grid; mean over pairs and samples."""
    of_s, of_t = (F.adaptive_max_pool2d(maps, grid).flatten(2).transpose(1, 2) for maps in (student, teacher))
    mine, theirs = (unit_rows(rows) @ unit_rows(rows).transpose(1, 2) for rows in (of_s, of_t))
    return (mine - theirs).square().mean()


def gradient_penalty(critic: nn.Module, images: Tensor, real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """(|∇D| − 1)², ``share`` (N, 1, 1, 1) of the way from the fake maps to the real ones; mean over samples."""
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (slope,) = torch.autograd.grad(critic(images, between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


class Structured(Method):
    """A student that also plays against a critic, which tells its maps from the teacher's, given the image."""

    def __init__(self, distill: Distill, critic: nn.Module, holistic: float, penalty: float) -> None:
        super().__init__()
        self.distill, self.critic, self.holistic, self.penalty = distill, critic, holistic, penalty
        self.task = distill.task

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the student and its critic."""
        return {**self.distill.players(), "critic": [self.critic]}

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Update the critic, then the student against it."""
        scene = self.distill.scene(batch, progress)
        images, fake, real = X.read(scene), S.read(scene).movedim(-1, 1), T.read(scene).movedim(-1, 1)
        share = torch.rand(len(real), 1, 1, 1, dtype=real.dtype, device=real.device)
        told = {
            "student": self.critic(images, fake.detach()).mean(),
            "teacher": -self.critic(images, real).mean(),
            "penalty": Loss(gradient_penalty(self.critic, images, real, fake, share), self.penalty),
        }
        yield Turn("critic", told)
        fooled = Loss(-judged_by(self.critic)(images, fake).mean(), self.holistic)
        yield Turn("student", {**self.distill.objective(scene), "holistic": fooled})


def structured(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layers: tuple[str, str],
    pixelwise: float = 10.0,
    pairwise: float = 0.5,
    holistic: float = 0.1,
    penalty: float = 10.0,
    grid: int = 2,
    example: Any,
    task: Task,
) -> Structured:
    """Distil a segmenter's scores pixel by pixel, its features pair by pair, and its maps as a whole."""
    objective = task.hard + pixelwise * on(soft_target, *task.softened(S, T), name="pixelwise", temperature=1.0)
    objective += pairwise * on(_pairwise, S[layers[0]], T[layers[1]], name="pairwise", grid=grid)
    critic = MapCritic(example.shape[1] + shape_at(teacher, "", example, task)[-1])
    return Structured(Distill(student, teacher, objective, task), critic.to(example.dtype), holistic, penalty)


_pairwise = pairwise  # the paper's name is the weight's too
