"""How alike two layers see the same samples: centred kernel alignment with a linear kernel.

It compares what samples are similar to each other, and so layers of any two widths; rotations and scales of either do not
matter. 1 is the same up to these, 0 is unrelated.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from limbeck.core.numerics import full_precision

FEWEST = 4
"""Samples that the unbiased estimate needs."""


def cka(student: Tensor, teacher: Tensor) -> float:
    """Return the linear CKA of all samples at once, ‖Yᵀ X‖² / (‖Xᵀ X‖ ‖Yᵀ Y‖) of centred features, in [0, 1].

    Norms are Frobenius'. Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019,
    arXiv 1905.00414. It is biased: where features outnumber samples, unrelated layers seem alike; `MinibatchCKA` is not,
    and needs but a batch at a time. nan where a layer is the same for all samples.

    Args:
        student: X, (N, ...); all but the first axis are features.
        teacher: Y, (N, ...).

    Raises:
        ValueError: Fewer than two samples, or not as many in both.
    """
    x, y = _features(student, teacher, fewest=2)
    return float(_product(x, y) / (_product(x, x) * _product(y, y)).sqrt())


class MinibatchCKA(Metric):
    """The linear CKA of two layers over a data set, batch by batch, by unbiased estimates.

    Σ HSIC₁(K, L) / √(Σ HSIC₁(K, K) · Σ HSIC₁(L, L)), where K = X Xᵀ and L = Y Yᵀ are a batch's, and sums run over batches,
    each weighted by its samples (in the paper all have as many). HSIC₁ is the unbiased estimate of Song et al. 2012, here
    as the mean product of K and L, U-centred. Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same
    Things?", ICLR 2021, arXiv 2010.15327.

    Since HSIC₁ is unbiased, unrelated layers may give a little less than 0. Batches of fewer than four samples say nothing
    and are left out. It is a metric of torchmetrics: among several processes it sums over all.

    Example:
        >>> measure, draw = MinibatchCKA(), torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     features = torch.randn(16, 8, generator=draw)
        ...     measure.update(features, -2 * features)
        >>> round(float(measure.compute()), 4)
        1.0
    """

    full_state_update = False
    higher_is_better = True
    products: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("products", torch.zeros(3), dist_reduce_fx="sum")

    def update(self, student: Tensor, teacher: Tensor) -> None:
        """Take in what both layers show of a batch.

        Args:
            student: X, (N, ...); all but the first axis are features.
            teacher: Y, (N, ...).

        Raises:
            ValueError: Not as many samples in both.
        """
        x, y = _features(student, teacher, fewest=1)
        if len(x) >= FEWEST:
            of_x, of_y = _centred_gram(x), _centred_gram(y)
            products = (of_x * of_y).sum(), (of_x * of_x).sum(), (of_y * of_y).sum()
            self.products += torch.stack(products) / (len(x) - 3)  # N HSIC₁, which is the sum / (N (N − 3))

    def compute(self) -> Tensor:
        """Return the CKA; nan where a layer was the same for all samples, or no batch had four."""
        cross, student, teacher = self.products.unbind()
        return cross / (student * teacher).sqrt()


@full_precision
def _features(student: Tensor, teacher: Tensor, fewest: int) -> tuple[Tensor, Tensor]:
    """Return both as rows, each feature with mean 0: CKA does not see means, rounding does."""
    if len(student) != len(teacher) or len(student) < fewest:
        raise ValueError(
            f"expected the same samples in both layers, {fewest} or more, got {len(student)} of the student and "
            f"{len(teacher)} of the teacher"
        )
    x, y = student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)
    return x - x.mean(0), y - y.mean(0)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """The sum of products of X Xᵀ and Y Yᵀ, by whichever matrices are smaller."""
    if len(x) < min(x.shape[1], y.shape[1]):
        return ((x @ x.T) * (y @ y.T)).sum()
    return (y.T @ x).square().sum()


def _centred_gram(x: Tensor) -> Tensor:
    """X Xᵀ, U-centred: off the diagonal, which is 0, every row and column sums to 0 (Székely & Rizzo 2014)."""
    n = len(x)
    gram = (x @ x.T).fill_diagonal_(0)
    rows = gram.sum(1)
    centred = gram - (rows[:, None] + rows) / (n - 2) + gram.sum() / ((n - 1) * (n - 2))
    return centred.fill_diagonal_(0)
