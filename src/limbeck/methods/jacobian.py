"""Jacobian matching.

Srinivas, Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, arXiv 1803.00443. No official code.

To regress the teacher's outputs at inputs with noise ξ ~ N(0, σ²I) is to match outputs and Jacobians J = ∂z/∂x:
E ½‖Δz(x + ξ)‖² = ½‖Δz(x)‖² + σ²/2 · ‖ΔJ(x)‖² + O(σ⁴), and exactly so for affine networks. Here the noise is integrated,
not drawn. A whole Jacobian takes a backward pass for each of its K rows, so `jacobian` has the paper's one row, and
`jacobian_projection`, which is ours, a random sum of all.

Public code of others divides each Jacobian by its length and takes the mean over its entries; nothing of that is here.
As in `gradient`, both networks run in full precision, and batch norm in training mixes the samples of the student.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from limbeck.methods.gradient import Gradient, derivative
from limbeck.methods.logits import logit_regression
from limbeck.numerics import same_shape
from limbeck.objective import S, T, X, Y, on
from limbeck.paper import Paper
from limbeck.task import UNLABELLED, Task, classification

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
    return _along(chosen, student, teacher, inputs) / labelled.sum().clamp(min=1)


def jacobian_projection(student: Tensor, teacher: Tensor, inputs: Tensor) -> Tensor:
    """‖J_sᵀ v − J_tᵀ v‖² with signs v = ±1 drawn for each sample, sum over an input's entries, mean over samples.

    As E v vᵀ = I, its expectation is ‖J_s − J_t‖², the sum over all rows, at the price of one. It needs no labels.

    Args:
        student: Logits, (N, K).
        teacher: Logits, (N, K).
        inputs: x, (N, ...), with ``requires_grad_()`` before both forward passes.
    """
    same_shape("logits", student, teacher)
    signs = torch.empty_like(student, dtype=torch.float32, requires_grad=False).bernoulli_(0.5).mul_(2).sub_(1)
    return _along(signs, student, teacher, inputs) / max(1, len(inputs))


def jacobian(
    student: nn.Module,
    teacher: nn.Module,
    *,
    logits: float = 1.0,
    label: float = 0.01,
    projection: float = 0.0,
    task: Task = classification,
) -> Gradient:
    """Let the student's outputs depend on its inputs as the teacher's do.

    L = CE(y, z_s) + logits · ½ ‖z_s − z_t‖² + label · ‖J_s[y] − J_t[y]‖² + projection · ‖J_sᵀ v − J_tᵀ v‖². J = ∂z/∂x.

    A step costs two to three of `kd`, for its second derivatives.

    Args:
        student: The network to train.
        teacher: The network to learn from, of the same classes.
        logits: Weight of the regression, with its sum over classes; 1 is ours, the paper's weights are tuned.
        label: Weight of the labels' rows, with the sum over an input's entries and the mean over labelled samples; 0.01 is
            ours, the middle of the 0.0001 to 1 worth trying.
        projection: Weight of the random projection, in place of ``label`` or beside it; σ²/2 · logits is distillation at
            inputs with noise of that σ; 0.
        task: How batches are fed and measured.
    """
    objective = task.hard + logits * on(logit_regression, S, T.via(Tensor.detach), name="logits")
    objective += label * on(label_jacobian, S, T, X, Y, name="label")
    objective += projection * on(jacobian_projection, S, T, X, name="projection")
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
