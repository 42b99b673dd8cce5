"""Gradient-based attention transfer.

Zagoruyko, Komodakis, "Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks
via Attention Transfer", ICLR 2017, arXiv 1612.03928, section 3.2. The official code has no gradients.

The gradients are those of the sum over samples, so that they do not shrink with the batch; both networks run in full
precision. In the student's batch norm, a sample's gradient depends on the others of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.layers import paired
from limbeck.core.method import Distill
from limbeck.core.objective import S, Scene, T, X, Y, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import UNLABELLED, Batch, Task
from limbeck.methods.at import attention_distance
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="zagoruyko2017paying",
    title="Paying More Attention to Attention: Improving the Performance of Convolutional Neural Networks via "
    "Attention Transfer",
    authors="Zagoruyko, Sergey and Komodakis, Nikos",
    venue="ICLR",
    year=2017,
    arxiv="1612.03928",
    matches="gradients of the loss, at the inputs and inside",
    teacher="frozen network",
)

FLIPPED, FLIPPED_X = S.of("flipped"), X.of("flipped_input")
"""The student's output for the mirrored inputs, and these."""


def gradient_attention(student: Tensor, teacher: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """‖∂CE(z_s, y)/∂x − ∂CE(z_t, y)/∂x‖², the sum over an input's entries, mean over samples.

    It is differentiated twice: z_s and z_t must have been computed from these ``inputs``, which require a gradient. The
    teacher's gradient is a constant. A sample without label has no gradient, and counts in the mean as 0: it is over all
    samples, where `limbeck.losses.jacobian` takes the mean over the labelled ones.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).
        inputs: x, (N, ...), with ``requires_grad_()`` before both forward passes.
        targets: Class indices, (N); -100 is "no label".
    """
    j_s = loss_gradient("student", student, targets, inputs)
    j_t = loss_gradient("teacher", teacher, targets, inputs, constant=True)
    return (j_s - j_t).square().sum() / len(inputs)


def feature_gradient(
    student: Tensor,
    teacher: Tensor,
    student_features: Tensor,
    teacher_features: Tensor,
    targets: Tensor,
    power: float = 2,
) -> Tensor:
    """`limbeck.losses.attention` of the gradients ∂CE/∂F: where a layer matters to the loss; it is differentiated twice.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).
        student_features: F_s, (N, C_s, H_s, W_s), from which the student's logits were computed.
        teacher_features: F_t, (N, C_t, H_t, W_t), from which the teacher's were; they must require a gradient too.
        targets: Class indices, (N); -100 is "no label".
        power: p of the attention maps.
    """
    j_s = loss_gradient("student", student, targets, student_features)
    j_t = loss_gradient("teacher", teacher, targets, teacher_features, constant=True)
    return attention_distance(j_s, j_t, power)


def gradient_symmetry(
    student: Tensor, inputs: Tensor, flipped: Tensor, flipped_inputs: Tensor, targets: Tensor
) -> Tensor:
    """‖J(x) − flip(J(flip(x)))‖² with J = ∂CE(z_s, y)/∂x: a mirrored image has mirrored gradients. There is no teacher.

    The sum over an input's entries, mean over samples; it is differentiated twice.

    Args:
        student: Logits for the inputs, (N, K).
        inputs: x, (N, C, H, W), with ``requires_grad_()`` before the forward pass.
        flipped: Logits for the mirrored inputs, (N, K).
        flipped_inputs: x mirrored along its last axis, from which ``flipped`` was computed.
        targets: Class indices, (N); -100 is "no label".
    """
    j = loss_gradient("student", student, targets, inputs)
    j_flipped = loss_gradient("student", flipped, targets, flipped_inputs)
    return (j - j_flipped.flip(-1)).square().sum() / len(inputs)


class Gradient(Distill):
    """A student that follows an objective in sight of gradients with respect to the inputs and all that is between.

    It is a `limbeck.Distill` whose objective may read `FLIPPED` and `FLIPPED_X` besides the usual places. The inputs must
    be one tensor.
    """

    shown = Distill.shown | {"flipped", "flipped_input"}
    differentiates_twice = True

    def scene(self, batch: Batch, progress: float = 0.0) -> Scene:
        """Return what the objective sees of a batch: every output depends on the scene's own inputs."""
        scene = self.read(batch, progress)
        given = scene["input"]
        if not isinstance(given, Tensor) or not given.is_floating_point():
            raise TypeError(
                "gradients with respect to the inputs need inputs that are one tensor of floating-point numbers"
            )
        x = scene["input"] = given.detach().requires_grad_()
        look, roles, paths = self.task.look, self.objective.roles(), self.objective.paths
        # by double backward, float16 would under- and overflow
        with torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            for role, teacher in self.teachers.items():
                if role in roles:
                    scene[role] = look(teacher, x, paths(role))
            scene["student"] = look(self.student, x, paths("student"))
            if "flipped" in roles:
                scene["flipped_input"] = x.flip(-1)
                scene["flipped"] = look(self.student, scene["flipped_input"], paths("student"))
        return scene


@ranged
def gradient(
    student: nn.Module,
    teacher: nn.Module,
    *,
    attention: float = 1.0,
    feature: float = 0.0,
    symmetry: float = 0.0,
    layers: Sequence[tuple[str, str]] | None = None,
    power: float = 2,
    example: Tensor | None = None,
    task: Task = classification,
) -> Gradient:
    """Let the student's loss depend on its inputs as the teacher's does.

    L = CE(y, z_s) + attention · ‖J_s − J_t‖² + feature · Σ_j mean (q_s^j − q_t^j)² + symmetry · ‖J_s − flip J_s(flip x)‖².
    J = ∂CE/∂x; q are the attention maps of ∂CE/∂F_j, each of length 1.

    A step costs two to three of `kd`, for its second derivatives; attention to activations (`at`) has none.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        attention: Weight of the inputs' gradients, the paper's β/2, with the sum over an input's entries and the mean over
            samples, at least 0; 1 is ours, none is published. Choose it so that the term is 10 to 30 % of the labels' at
            the start.
        feature: Weight of each pair's gradients, at least 0; 0, and at's 1000 is of the right order.
        symmetry: Weight of the flip symmetry, which needs no teacher but a second forward pass, at least 0; 0.
        layers: Pairs of student and teacher layers for ``feature``; by default the ends of the stages, paired by
            `limbeck.pairs`.
        power: p of the attention maps of ``feature``, above 0.
        example: A batch of inputs, (N, ...), needed for ``feature`` where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    refuse_all_zero(attention=attention, feature=feature, symmetry=symmetry)
    if layers is not None and feature == 0:
        raise ValueError("layers are for the gradients at features, but feature is 0: give it a weight, feature=1000")
    task.exclusive()  # the gradients are those of the cross-entropy
    objective = task.hard + attention * on(gradient_attention, S, T, X, Y, name="attention")
    for s, t in paired(student, teacher, layers, example, task, maps=True) if feature else ():
        places = S, T, S[s], T[t], Y
        objective += feature * on(feature_gradient, *places, name=f"feature.{s}", power=power)
    objective += symmetry * on(gradient_symmetry, S, X, FLIPPED, FLIPPED_X, Y, name="symmetry")
    return Gradient(student, teacher, objective, task)


def loss_gradient(who: str, outputs: Tensor, targets: Tensor, place: Tensor, *, constant: bool = False) -> Tensor:
    """∂ Σ CE / ∂place, which can be differentiated again unless it is to be a constant."""
    if outputs.ndim != 2 or targets.shape[:1] != outputs.shape[:1] or targets.ndim > 2:
        raise ValueError(
            f"the loss whose gradients are compared is that of one class a sample: logits (N, K) and targets (N), got "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}; at and jacobian compare features of anything"
        )
    with torch.autocast(outputs.device.type, enabled=False):
        wide = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss = F.cross_entropy(wide, targets, reduction="sum", ignore_index=UNLABELLED)
    return derivative(who, loss, place, constant=constant)


def derivative(who: str, total: Tensor, place: Tensor, *, constant: bool = False) -> Tensor:
    """∂ total / ∂place for a sum over samples, in full precision; differentiable again unless it is to be a constant."""
    slope: Tensor | None = None
    if total.requires_grad and place.requires_grad:
        with torch.autocast(total.device.type, enabled=False):
            (slope,) = torch.autograd.grad(
                total, place, create_graph=not constant, retain_graph=True, allow_unused=True
            )
    if slope is None:
        raise ValueError(
            f"the {who}'s outputs do not depend on the tensor given: call inputs.requires_grad_() before the forward pass, "
            "not under no_grad, and give the very tensor that the outputs were computed from"
        )
    return slope.to(torch.promote_types(slope.dtype, torch.float32))
