"""Label smoothing: the control that tells regularisation from knowledge.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna, "Rethinking the Inception Architecture for Computer Vision", CVPR 2016,
arXiv 1512.00567, section 7.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.distributed import of_update
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, Y, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.task import UNLABELLED, Task
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="szegedy2016rethinking",
    title="Rethinking the Inception Architecture for Computer Vision",
    authors="Szegedy, Christian and Vanhoucke, Vincent and Ioffe, Sergey and Shlens, Jon and Wojna, Zbigniew",
    venue="CVPR",
    year=2016,
    arxiv="1512.00567",
    matches="smoothed labels: a control",
    teacher="nobody",
)


@full_precision
def label_smoothing(student: Tensor, targets: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with smoothed labels, q'(k) = (1 − ε) δ_ky + ε/K, mean over the labelled samples.

    It is distillation at T = 1 from a uniform teacher. The uniform part covers the true class too, as in the paper
    and in torch; Tf-KD's code spreads ε over the K − 1 wrong classes, which is ours at ε·K/(K − 1).

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
        smoothing: ε in [0, 1].
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must lie in [0, 1], got {smoothing}")
    share = smoothing / student.shape[-1]
    return of_update(two_valued(student, targets, 1 - smoothing + share, share), "labels")


def two_valued(logits: Tensor, targets: Tensor, label: float, other: float) -> Tensor:
    """Return −Σ_k q(k) log p(k), mean over the labelled samples: q(k) is ``label`` of the label's class, else ``other``.

    torch's own label smoothing takes twice the time.
    """
    if targets.is_floating_point() or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets must be class indices of shape {tuple(logits.shape[:-1])}, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}: mixed or soft labels are not smoothed further"
        )
    labelled = targets != UNLABELLED
    q = torch.full_like(logits, other).scatter_(-1, targets.where(labelled, 0).unsqueeze(-1), label)
    q *= labelled.unsqueeze(-1)
    return -(q * F.log_softmax(logits, -1)).sum() / labelled.sum().clamp(min=1)


@ranged
def ls(student: nn.Module, *, smoothing: float = 0.1, task: Task = classification) -> Distill:
    """Train the student on smoothed labels: what a gain must beat before it is called knowledge.

    L = (1 − ε) CE(y, z_s) + ε CE(uniform, z_s).

    Args:
        student: The network to train.
        smoothing: ε, in (0, 1]; 0.1 as in the paper's section 7.
        task: How batches are fed and measured.
    """
    return Distill(
        student, None, on(label_smoothing, *task.exclusive(S), Y, name="smoothed", smoothing=smoothing), task
    )
