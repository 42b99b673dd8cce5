"""Factor transfer.

Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, arXiv 1802.04977;
official code Jangho-Kim/Factor-Transfer-pytorch.

Like the authors' code we train the paraphraser by the absolute error, where the paper writes a squared norm. A factor that
is all zero has no direction and gets no gradient, where theirs has one of 1e12. Factors of two sizes are pooled to the
smaller one, as in RepDistiller; the authors' are always of one size. RepDistiller's "FT" compares attention maps of the
factors, which is another loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.frozen import frozen
from limbeck.core.layers import paired, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.nets.connectors import common_grid
from limbeck.nets.translator import Paraphraser, translator
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="kim2018paraphrasing",
    title="Paraphrasing Complex Network: Network Compression via Factor Transfer",
    authors="Kim, Jangho and Park, SeongUk and Kwak, Nojun",
    venue="NeurIPS",
    year=2018,
    arxiv="1802.04977",
    matches="factors of the last features",
    teacher="frozen network",
)


@full_precision
def factor_distance(student: Tensor, teacher: Tensor, p: float = 1) -> Tensor:
    """Distance of the factors, each sample's divided by its length: (mean_i |u_s − u_t|^p)^(1/p), mean over samples.

    u = vec(F) / ‖F‖₂. With p = 1 it is the mean of |u_s − u_t| over all elements. The p-th power's mean over a factor's D
    elements, not its sum: the paper's norm is D^(1/p) times as much. Of factors that are maps of two sizes, the larger are
    first pooled to the smaller grid, by the mean.

    Args:
        student: Factors, (N, ...), flattened per sample.
        teacher: Factors of the same shape; of maps, (N, C, H, W), the sizes may differ.
        p: Which norm, at least 1; 1 as in the authors' code.
    """
    _check_power(p)
    if student.ndim == teacher.ndim == 4:
        student, teacher = common_grid(student, teacher)
    same_shape("factors", student, teacher)
    difference = _directions(student) - _directions(teacher)
    if p == 1:
        return difference.abs().mean()
    norms: Tensor = torch.linalg.vector_norm(difference, p, dim=1)
    return norms.mean() / math.pow(difference.shape[1], 1 / p)


@ranged
def ft(
    student: nn.Module,
    teacher: nn.Module,
    *,
    layer: tuple[str, str] | None = None,
    factor: float = 500.0,
    rate: float = 0.5,
    p: float = 1,
    paraphraser_share: float = 0.1,
    example: Tensor,
    task: Task = classification,
) -> Iterator[Stage]:
    """Let the student find the factors into which a paraphraser puts the teacher's features.

    Stage 1, without labels and without the student: mean |P(x_t) − x_t|, which trains the paraphraser P alone.
    Stage 2: CE(y, z_s) + factor · mean |u(translator(x_s)) − u(P.encoder(x_t))|, with the paraphraser frozen.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        layer: The student's and the teacher's layer, maps; by default the last pair of `limbeck.pairs`.
        factor: Weight of the factors, above 0; 500 as in the authors' code, with its mean over all elements.
        rate: Factors for each of the teacher's channels, the paper's k, above 0; 0.5 as in its experiments.
        p: Norm of the difference, see `limbeck.losses.factor`, at least 1; 1 as in the authors' code.
        paraphraser_share: Stage 1's part of the epochs, in (0, 1); 0.1 is ours, the authors' code has 5 before 164,
            RepDistiller 30 before 240.
        example: A batch of inputs, (N, ...), from which paraphraser and translator get their channels.
        task: How batches are fed and measured.
    """
    _check_power(p)
    s, t = paired(student, teacher, None if layer is None else [layer], example, task, maps=True)[-1]
    of_student, of_teacher = shape_at(student, s, example, task), shape_at(teacher, t, example, task)
    factors = max(1, round(rate * of_teacher[1]))
    paraphraser = Paraphraser(of_teacher[1], factors)
    restore = on(full_precision(F.l1_loss), T[t].via(paraphraser), T[t], name="paraphrase")
    yield Stage(Distill(student, teacher, restore, task), paraphraser_share, trains=[restore], name="paraphraser")

    translated = S[s].via(translator(of_student[1], factors))
    paraphrased = T[t].via(frozen(paraphraser.encoder))
    follow = task.hard + factor * on(factor_distance, translated, paraphrased, name="factor", p=p)
    yield Stage(Distill(student, teacher, follow, task), 1 - paraphraser_share, name="factors")


def _directions(factors: Tensor) -> Tensor:
    vectors = factors.flatten(1)
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / lengths.where(lengths > 1e-12, torch.inf)


def _check_power(p: float) -> None:
    if p < 1:
        raise ValueError(f"p is the power of a norm and must be at least 1, got {p}")
