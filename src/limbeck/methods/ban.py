"""Born-again networks.

Furlanello, Lipton, Tschannen, Itti, Anandkumar, "Born Again Neural Networks", ICML 2018, arXiv 1805.04770. No official
code.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import nn

from limbeck.method import Distill, Method, Turn
from limbeck.methods.kd import soft_cross_entropy
from limbeck.methods.plain import plain
from limbeck.nets.ensemble import Ensemble
from limbeck.objective import S, T, on
from limbeck.paper import Paper
from limbeck.stage import Stage
from limbeck.task import Batch, Task, classification

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


class Generation(Method):
    """One generation: it learns the former one's outputs, and votes with those before it.

    Args:
        distill: How this generation learns.
        ancestors: The generations before it, trained.
    """

    def __init__(self, distill: Distill, ancestors: list[nn.Module]) -> None:
        super().__init__()
        self.distill, self.task = distill, distill.task
        self._ancestors = ancestors

    def players(self) -> dict[str, list[nn.Module]]:
        """Return this generation."""
        return self.distill.players()

    def networks(self) -> dict[str, nn.Module]:
        """Return this generation and, from the second on, the ensemble of all of them."""
        student = self.distill.student
        if not self._ancestors:
            return {"student": student}
        return {"student": student, "ensemble": Ensemble([*self._ancestors, student])}

    def step(self, batch: Batch, progress: float = 0.0) -> Iterator[Turn]:
        """Descend the cross-entropy with the former generation."""
        return self.distill.step(batch, progress)


def ban(
    student: nn.Module,
    teacher: nn.Module | None = None,
    *,
    generations: int = 3,
    hard: float = 0.0,
    task: Task = classification,
) -> Iterator[Stage]:
    """Train a network again and again, each time from scratch and from its former self.

    Generation 0 is the teacher, or is trained on the labels. Generation k starts anew and descends CE(p_{k−1}, p_k), at
    T = 1 and without labels. The ensemble averages the generations' probabilities. Accuracy rises at first and then
    saturates: in half of the paper's rows a later generation is worse.

    All generations share the epochs given to `fit` equally; for the paper's schedule give as many times more.

    Args:
        student: The network; every generation starts from a fresh initialisation of it. It ends as the last generation.
        teacher: Generation 0; trained first if not given.
        generations: How many to train after it; 3 as in the paper's tables.
        hard: Weight of the labels (BAN+L); 0 as in the paper's main results.
        task: How batches are fed and measured.
    """
    if generations < 1:
        raise ValueError(f"generations must be at least 1, got {generations}")
    start_anew(copy.deepcopy(student))  # a network that cannot is told so before a generation has trained
    share = 1 / (generations + (teacher is None))
    if teacher is None:
        yield Stage(plain(student, task=task), share, name="generation-0")
        teacher = copy.deepcopy(student)
    ancestors: list[nn.Module] = []
    for generation in range(1, generations + 1):
        start_anew(student)
        learn = on(soft_cross_entropy, S, T, name="soft", temperature=1.0) + hard * task.hard
        yield Stage(
            Generation(Distill(student, teacher, learn, task), ancestors), share, name=f"generation-{generation}"
        )
        teacher = copy.deepcopy(student)
        ancestors = [*ancestors, teacher]


def start_anew(net: nn.Module) -> None:
    """Initialise a network in place, by the ``reset_parameters`` of its modules, inner ones first.

    Raises:
        ValueError: A parameter that none of them sets, so that generations would pass it on; the network is as before.
    """
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(torch.nan)
    net.apply(_reset)
    if stuck := [name for name, p in net.named_parameters() if p.isnan().any()]:
        net.load_state_dict(before)
        raise ValueError(
            f"{type(net).__name__} has parameters that no reset_parameters() touches: {stuck[:4]}. "
            "Give the module that owns them a reset_parameters method, so that a generation can start anew"
        )


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
