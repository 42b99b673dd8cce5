"""Born-again networks.

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born Again Neural Networks", ICML 2018, arXiv 1805.04770. No official
code.

CWTM and DKPP are the paper's two experiments that take the soft labels apart: the one keeps how sure the teacher is of each
sample and nothing else, the other keeps that and the sizes of the smaller probabilities, but not whose they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.copied import copied
from limbeck.core.distributed import gather
from limbeck.core.method import Distill, Method, Turn
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import M, Objective, S, T, Y, on
from limbeck.core.options import ranged, refuse_all_zero
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import UNLABELLED, Batch, Task, logits
from limbeck.methods.kd import soft_cross_entropy
from limbeck.methods.plain import plain
from limbeck.nets.anew import Anew, check_anew, start_anew
from limbeck.nets.draws import Draws
from limbeck.nets.ensemble import Ensemble
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="furlanello2018born",
    title="Born Again Neural Networks",
    authors="Furlanello, Tommaso and Lipton, Zachary C. and Tschannen, Michael and Itti, Laurent and Anandkumar, Anima",
    venue="ICML",
    year=2018,
    arxiv="1805.04770",
    matches="outputs",
    teacher="the former generation",
)

LABELLED = "generation-0"
"""The one that learns from the labels alone."""


def confidence_weighted(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """Σ_b w_b CE(y_b, z_b), w_b = max p_t(b) / Σ_u max p_t(u): the labels, weighted by how sure the teacher is (CWTM).

    Samples without a label have no part in it; it is 0 where none of the batch is labelled.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
    """
    same_shape("logits", student, teacher)
    return _weighted_by(student, confidence(teacher), targets)


@full_precision
def permuted_cross_entropy(student: Tensor, teacher: Tensor, draws: Tensor) -> Tensor:
    """CE(π(p_t), p_s), sum over classes, mean over every other position; π shuffles all but the largest probability (DKPP).

    With two classes there is nothing to shuffle.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        teacher: Logits of the same shape.
        draws: Random numbers, (N, ..., K − 1), whose order is that of the smaller probabilities.
    """
    same_shape("logits", student, teacher)
    p_t = teacher.softmax(-1)
    others = torch.arange(p_t.shape[-1] - 1, device=p_t.device)
    others = others + (others >= p_t.argmax(-1, keepdim=True))  # every class but the likeliest
    shuffled = p_t.scatter(-1, others, p_t.gather(-1, others.gather(-1, draws.argsort(-1))))
    return (shuffled * student.log_softmax(-1)).sum() / -max(1, student.shape[:-1].numel())


@full_precision
def confidence(logits: Tensor) -> Tensor:
    """Return the largest probability at each position, (N, ...), of logits (N, ..., K)."""
    return logits.softmax(-1).amax(-1)


class Permuted(nn.Module):
    """`permuted_cross_entropy` by numbers that are part of its state, see `Draws`.

    Their seed is that of torch's generator, from which nothing is drawn.
    """

    def __init__(self) -> None:
        super().__init__()
        self.draws = Draws(torch.initial_seed() % 2**31)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of logits (N, ..., K), in an order drawn anew."""
        shape = (*student.shape[1:-1], student.shape[-1] - 1)
        draws: Tensor = self.draws(
            lambda samples, generator: torch.rand(samples, *shape, generator=generator, device=student.device),
            len(student),
            student.device,
        )
        return permuted_cross_entropy(student, teacher, draws)


class Generation(Method):
    """One generation: it learns the former one's outputs, and votes with those that learned before it.

    Args:
        distill: How this generation learns.
        ancestors: The generations before it by name, trained, from the first one that was trained here on.
    """

    def __init__(self, distill: Distill, ancestors: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.distill, self.task = distill, distill.task
        self._ancestors = ancestors

    def players(self) -> dict[str, list[nn.Module]]:
        """Return this generation."""
        return self.distill.players()

    def networks(self) -> dict[str, nn.Module]:
        """Return this generation, those before it, and the ensemble of all that learned from another."""
        student, born = self.distill.student, [net for name, net in self._ancestors.items() if name != LABELLED]
        as_they_are = self.task.one_class and self.task.output is logits  # of maps the classes are not last
        mean = "arithmetic" if as_they_are else "geometric"
        ensemble = {"ensemble": Ensemble([*born, student], mean=mean)} if born else {}
        return {"student": student, **self._ancestors, **ensemble}

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Learn from the former generation."""
        return self.distill.step(batch, progress)


@ranged
def ban(
    student: nn.Module,
    teacher: nn.Module | None = None,
    *,
    generations: int = 3,
    soft: float = 1.0,
    hard: float = 0.0,
    cwtm: float = 0.0,
    dkpp: float = 0.0,
    anew: Anew | None = None,
    task: Task = classification,
) -> Iterator[Stage]:
    """Train a network again and again, each time from scratch and from its former self.

    Generation 0 is the teacher, or is trained on the labels. Generation k starts anew and descends
    L = soft · CE(p_{k−1}, p_k) + hard · CE(y, z_k) + cwtm · Σ_b w_b CE(y_b, z_k) + dkpp · CE(π(p_{k−1}), p_k), at T = 1
    and by default by the first term alone. w_b is the former generation's confidence, max p_{k−1}, as a share of the
    batch's; π shuffles all but the largest probability of each sample, anew at every step. The ensemble averages the
    probabilities of the generations from 1 on, and their logits where a sample has several labels. Accuracy rises at first
    and then saturates: in half of the paper's rows a later generation is worse.

    All generations share the epochs given to `fit` equally; for the paper's schedule give as many times more.

    Args:
        student: The network; every generation starts from a fresh initialisation of it. It ends as the last generation;
            those before it are in the result as ``generation-0``, ``generation-1`` and so on, since the last need not be
            the best.
        teacher: Generation 0; trained first if not given.
        generations: How many to train after it, at least 1; 3 as in the paper's tables.
        soft: Weight of the former generation's outputs, at least 0; 1 as in the paper. 0 for CWTM or DKPP alone.
        hard: Weight of the labels (BAN+L), at least 0; 0 as in the paper's main results.
        cwtm: Weight of the labels, each weighted by the former generation's confidence, at least 0; 0. The paper's CWTM is
            ``soft=0, cwtm=1``. On several devices the weights are those of the global batch.
        dkpp: Weight of the permuted outputs, at least 0; 0. The paper's DKPP is ``soft=0, dkpp=1``.
        anew: Makes the network with its own initialisation, ``anew=lambda: resnet18(num_classes=10)``, from which each
            generation starts; by default the ``reset_parameters`` of its modules, which in torchvision's and timm's
            networks draw otherwise. By a network's name it is given.
        task: How batches are fed and measured.

    Raises:
        ValueError: No generation, no term, or a network that does not start anew: a parameter that no
            ``reset_parameters`` sets, or the same weights every time; another network from ``anew``; or a teacher that
            is the student itself.
    """
    refuse_all_zero(soft=soft, hard=hard, cwtm=cwtm, dkpp=dkpp)
    if student is teacher:
        raise ValueError(
            "the teacher is the student itself, which starts anew: pass copy.deepcopy(student), or no teacher, so that "
            "generation 0 is trained"
        )
    # whatever is refused, before a generation has trained
    check_anew(student, anew)
    outputs = task.softened(S, T) if soft else ()
    sure = (*task.exclusive(S.via(gather), T.via(confidence, gather)), Y.via(gather)) if cwtm else ()
    shuffled = task.exclusive(S, T) if dkpp else ()
    share = 1 / (generations + (teacher is None))
    ancestors: dict[str, nn.Module] = {}
    if teacher is None:
        yield Stage(plain(student, task=task), share, name=LABELLED)
        teacher = ancestors[LABELLED] = copied(student)
    learn: Objective = hard * task.hard
    if soft:
        learn = soft * on(soft_cross_entropy, *outputs, name="soft", temperature=1.0, mask=M) + learn
    if cwtm:
        learn += cwtm * on(_weighted_by, *sure, name="cwtm")
    if dkpp:  # its draws are part of a run's state
        learn += dkpp * on(Permuted(), *shuffled, name="dkpp")
    for generation in range(1, generations + 1):
        start_anew(student, anew)
        yield Stage(
            Generation(Distill(student, teacher, learn, task), dict(ancestors)), share, name=f"generation-{generation}"
        )
        teacher = ancestors[f"generation-{generation}"] = copied(student)


@full_precision
def _weighted_by(student: Tensor, confidence: Tensor, targets: Tensor) -> Tensor:
    """The labels' cross-entropy, each weighted by its share of the labelled samples' confidence."""
    if student.shape[:-1] != confidence.shape:
        raise ValueError(
            f"expected logits (N, K) and a confidence of each sample, got {tuple(student.shape)} and "
            f"{tuple(confidence.shape)}"
        )
    sure = confidence.where(targets != UNLABELLED, 0.0)
    hard = F.cross_entropy(student.flatten(0, -2), targets.flatten(), ignore_index=UNLABELLED, reduction="none")
    return (sure.flatten() * hard).sum() / sure.sum().clamp(min=1e-12)
