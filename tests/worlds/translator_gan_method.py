"""A generator that learns from the truth, from the blocks of a larger one, and against a discriminator (pix2pix).

Li, Lin, Ding, Liu, Zhu, Han, "GAN Compression: Efficient Architectures for Interactive Conditional GANs", CVPR 2020, arXiv
2003.08936: the distillation, without the search; with the hinge loss.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from map_critic import judged_by
from torch import Tensor, nn
from torch.nn import functional as F
from translation_task import translation

from limbeck import Distill, Loss, Method, S, T, Task, Turn, X, on
from limbeck.core.layers import shape_at
from limbeck.core.task import Batch
from limbeck.losses import hint
from limbeck.nets.connectors import pointwise


class Adversaries(Method):
    """A generator, and a discriminator of (image, translation)."""

    def __init__(self, distill: Distill, discriminator: nn.Module, adversarial: float) -> None:
        super().__init__()
        self.distill, self.discriminator, self.adversarial = distill, discriminator, adversarial
        self.task = distill.task

    def players(self) -> dict[str, list[nn.Module]]:
        """Return the generator and its discriminator."""
        return {**self.distill.players(), "discriminator": [self.discriminator]}

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Update the discriminator, then the generator against it."""
        scene = self.distill.scene(batch, progress)
        images, fake, real = X.read(scene), S.read(scene), self.task.target(batch)
        says_real, says_fake = self.discriminator(images, real), self.discriminator(images, fake.detach())
        yield Turn("discriminator", {"real": F.relu(1 - says_real).mean(), "fake": F.relu(1 + says_fake).mean()})
        fooled = Loss(-judged_by(self.discriminator)(images, fake).mean(), self.adversarial)
        yield Turn("student", {**self.distill.objective(scene), "fool": fooled})


def translator_gan(
    student: nn.Module,
    teacher: nn.Module | None,
    discriminator: nn.Module,
    *,
    layers: Sequence[tuple[str, str]] = (),
    reconstruction: float = 100.0,
    distillation: float = 1.0,
    adversarial: float = 1.0,
    example: Tensor,
    task: Task = translation,
) -> Adversaries:
    """Distil a conditional generator: L1 to the truth, the teacher's blocks through 1x1 convolutions, a discriminator.

    Without a teacher it is the GAN as it is, with which a comparison begins.
    """
    objective = reconstruction * task.hard
    for s, t in layers if teacher is not None else ():
        c_s, c_t = (shape_at(net, path, example, task)[1] for net, path in ((student, s), (teacher, t)))
        objective += distillation * on(hint, S[s].via(pointwise(c_s, c_t)), T[t], name=f"distill.{s}")
    return Adversaries(Distill(student, teacher, objective, task), discriminator, adversarial)
