"""Jacobian matching.

Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv 1803.00443. No official code.

Who regresses the teacher's outputs at inputs with noise ξ ~ N(0, σ²I) matches outputs and Jacobians J = ∂z/∂x:
E ½‖Δz(x + ξ)‖² = ½‖Δz(x)‖² + σ²/2 · ‖ΔJ(x)‖² + O(σ⁴), and exactly so for affine networks. Here the noise is integrated,
not drawn: to draw it, regress the teacher on noisy images, as bench/jacobian_noise.py does. A whole Jacobian takes a
backward pass for each of its K rows, so `jacobian` has the paper's one row, and `jacobian_projection`, which is ours, a
random sum of all. Where the networks have other classes, `jacobian_attention` compares how an attention map depends on
the inputs.

Public code of others divides the labels' rows by their length too and takes the mean over their entries; ours are whole.
As in `gradient`, both networks run in full precision, and batch norm in training mixes the samples of the student.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from limbeck.core.distributed import of_update
from limbeck.core.layers import paired
from limbeck.core.numerics import same_shape, unit_rows
from limbeck.core.objective import S, T, X, Y, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.task import UNLABELLED, Task
from limbeck.methods.at import attention_map
from limbeck.methods.gradient import Gradient, derivative
from limbeck.methods.logits import logit_regression
from limbeck.nets.connectors import common_grid
from limbeck.nets.draws import Draws
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="srinivas2018knowledge",
    title="Knowledge Transfer with Jacobian Matching",
    authors="Srinivas, Suraj and Fleuret, François",
    venue="ICML",
    year=2018,
    arxiv="1803.00443",
    matches="Jacobians: how outputs depend on inputs",
    teacher="frozen network",
)


def label_jacobian(student: Tensor, teacher: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """‖∂z_s[y]/∂x − ∂z_t[y]/∂x‖²: the labels' rows, sum over an input's entries, mean over labelled samples.

    It is differentiated twice: z_s and z_t must have been computed from these ``inputs``, which require a gradient. The
    teacher's row is a constant. Without labels, give the teacher's own classes, ``teacher.argmax(1)``.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).
        inputs: x, (N, ...), with ``requires_grad_()`` before both forward passes.
        targets: Class indices, (N); -100 is "no label".
    """
    same_shape("logits", student, teacher)
    if student.ndim != 2 or targets.shape != student.shape[:1]:
        raise ValueError(
            "a label chooses a row of the Jacobian: logits must be (N, K) and targets class indices, (N), got "
            f"{tuple(student.shape)} and {tuple(targets.shape)}; jacobian_projection needs no labels"
        )
    labelled = targets != UNLABELLED
    index = torch.where(labelled, targets, 0).long().unsqueeze(1)
    chosen = torch.zeros_like(student, dtype=torch.float32).scatter_(1, index, labelled.float().unsqueeze(1))
    return of_update(_along(chosen, student, teacher, inputs) / labelled.sum().clamp(min=1), "labels")


def jacobian_projection(student: Tensor, teacher: Tensor, inputs: Tensor, signs: Tensor | None = None) -> Tensor:
    """‖J_sᵀ v − J_tᵀ v‖² with signs v = ±1 drawn for each sample, sum over an input's entries, mean over samples.

    As E v vᵀ = I, its expectation is ‖J_s − J_t‖², the sum over all rows, at the price of one. It needs no labels.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).
        inputs: x, (N, ...), with ``requires_grad_()`` before both forward passes.
        signs: v, (N, K); by default drawn from torch's generator.
    """
    same_shape("logits", student, teacher)
    if signs is None:
        signs = torch.empty_like(student, dtype=torch.float32, requires_grad=False).bernoulli_(0.5).mul_(2).sub_(1)
    if signs.shape != student.shape:
        raise ValueError(f"expected a sign for each logit, {tuple(student.shape)}, got {tuple(signs.shape)}")
    return _along(signs, student, teacher, inputs) / max(1, len(inputs))


def jacobian_attention(student: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
    """‖J_s / ‖J_s‖ − J_t / ‖J_t‖‖² of J = ∂A[i]/∂x, where the teacher's attention is greatest; mean over samples.

    A = mean_c F_c² is the attention map of `at`, and i the position of the teacher's maximum, for both networks. Lengths
    and numbers of classes do not matter; where grids differ the larger map is pooled to the smaller one. A Jacobian that
    is zero has no direction and no gradient.

    Args:
        student: Features, (N, C_s, H_s, W_s), from which it is differentiated twice.
        teacher: Features, (N, C_t, H_t, W_t).
        inputs: x, (N, ...), with ``requires_grad_()`` before both forward passes.
    """
    if len(student) != len(teacher):
        raise ValueError(f"student and teacher must look at the same samples, got {len(student)} and {len(teacher)}")
    maps = (attention_map(features).unsqueeze(1) for features in (student, teacher))
    a_s, a_t = (attention.flatten(1) for attention in common_grid(*maps))
    place = a_t.argmax(1, keepdim=True)
    j_s = derivative("student", a_s.gather(1, place).sum(), inputs)
    j_t = derivative("teacher", a_t.gather(1, place).sum(), inputs, constant=True)
    return (unit_rows(j_s.flatten(1)) - unit_rows(j_t.flatten(1))).square().sum() / max(1, len(inputs))


class Projection(nn.Module):
    """`jacobian_projection` along signs that are part of its state, see `Draws`.

    Their seed is that of torch's generator, from which nothing is drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws = Draws(torch.initial_seed() % 2**31)

    def forward(self, student: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
        """Return the loss of logits (N, K) and inputs (N, ...), along signs drawn anew."""
        signs = self.draws(
            lambda samples, generator: torch.randint(
                2, (samples, *student.shape[1:]), generator=generator, device=student.device
            ),
            len(student),
            student.device,
        )
        return jacobian_projection(student, teacher, inputs, 2 * signs.float() - 1)


@ranged
def jacobian(
    student: nn.Module,
    teacher: nn.Module,
    *,
    logits: float = 1.0,
    label: float = 0.01,
    projection: float = 0.0,
    attention: float = 0.0,
    layers: Sequence[tuple[str, str]] | None = None,
    example: Tensor | None = None,
    task: Task = classification,
) -> Gradient:
    """Let the student's outputs depend on its inputs as the teacher's do.

    L = CE(y, z_s) + logits · ½ ‖z_s − z_t‖² + label · ‖J_s[y] − J_t[y]‖² + projection · ‖J_sᵀ v − J_tᵀ v‖²
    + attention · Σ_j ‖J_s^j / ‖J_s^j‖ − J_t^j / ‖J_t^j‖‖². J = ∂z/∂x; J^j is that of the attention map of layers j at the
    teacher's maximum.

    A step costs two to three of `kd`, for its second derivatives.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        logits: Weight of the regression, with its sum over classes, at least 0; 1 is ours, the paper's weights are tuned.
        label: Weight of the labels' rows, with the sum over an input's entries and the mean over labelled samples, at least
            0; 0.01 is ours, the middle of the 0.0001 to 1 worth trying. A label chooses a row where a sample has one class:
            of several labels, or of values, ``label=0, projection=0.01``.
        projection: Weight of the random projection, in place of ``label`` or beside it, at least 0; σ²/2 · logits is
            distillation at inputs with noise of that σ; 0.
        attention: Weight of each pair's attention Jacobians, which lie between 0 and 4, with the mean over samples, at
            least 0; 0. It needs no common classes: transfer to another task leaves ``logits`` and ``label`` at 0. None is
            published.
        layers: Pairs of student and teacher layers for ``attention``; by default the deepest of `limbeck.pairs`.
        example: A batch of inputs, (N, ...), needed for ``attention`` where ``layers`` are not named.
        task: How batches are fed and measured.
    """
    refuse_all_zero(logits=logits, label=label, projection=projection, attention=attention)
    if layers is not None and attention == 0:
        raise ValueError("layers are for the attention's Jacobians, but attention is 0: give it a weight, attention=1")
    objective = task.hard + logits * on(logit_regression, S, T.via(Tensor.detach), name="logits")
    if label:
        objective += label * on(label_jacobian, *task.exclusive(S, T), X, Y, name="label")
    objective += projection * on(Projection(), S, T, X, name="projection")
    pairs = paired(student, teacher, layers, example, task, maps=True) if attention else []
    for s, t in pairs if layers is not None else pairs[-1:]:
        objective += attention * on(jacobian_attention, S[s], T[t], X, name=f"attention.{s}")
    return Gradient(student, teacher, objective, task)


def _along(v: Tensor, student: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
    """‖(J_s − J_t)ᵀ v‖², the sum over all samples."""
    j_s = _pulled_back("student", student, v, inputs)
    j_t = _pulled_back("teacher", teacher, v, inputs, constant=True)
    return (j_s - j_t).square().sum()


def _pulled_back(who: str, outputs: Tensor, v: Tensor, inputs: Tensor, *, constant: bool = False) -> Tensor:
    return derivative(
        who, (outputs.to(torch.promote_types(outputs.dtype, v.dtype)) * v).sum(), inputs, constant=constant
    )
