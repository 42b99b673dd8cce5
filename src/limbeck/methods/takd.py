"""Teacher assistants.

Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh, "Improved Knowledge Distillation via Teacher Assistant", AAAI
2020, arXiv 1902.03393; official code imirzadeh/Teacher-Assistant-Knowledge-Distillation.

Each step of the chain is `limbeck.kd` with its reduction; the authors' code divides the soft term by the number of
classes besides.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import pairwise

from torch import nn

from limbeck.core.copied import copied
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.methods.kd import kd
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="mirzadeh2020improved",
    title="Improved Knowledge Distillation via Teacher Assistant",
    authors="Mirzadeh, Seyed Iman and Farajtabar, Mehrdad and Li, Ang and Levine, Nir and Matsukawa, Akihiro and "
    "Ghasemzadeh, Hassan",
    venue="AAAI",
    year=2020,
    arxiv="1902.03393",
    matches="softened outputs",
    teacher="an assistant, taught by the teacher",
)


@ranged
def takd(
    student: nn.Module,
    teacher: nn.Module,
    assistants: nn.Module | Sequence[nn.Module],
    *,
    temperature: float = 4.0,
    alpha: float = 0.9,
    task: Task = classification,
) -> Iterator[Stage]:
    """Distil through assistants of sizes in between: teacher → assistant → … → student, each from the one before alone.

    At every step L = α T² KL(p_before^T ‖ p_next^T) + (1 − α) CE(y, z_next). An assistant is best where its accuracy lies
    half-way between the teacher's and the student's, which is not half-way in depth.

    All steps share the epochs given to `fit` equally: the fair rival is `limbeck.kd` with as many in all.

    Args:
        student: The network to ship.
        teacher: The network that the first assistant learns from.
        assistants: One or several, from the largest to the smallest. Copies of them are trained, so that they stay as they
            are.
        temperature: T of every step, in (0, 1000]; 4 as in `limbeck.kd` (the authors search it for each pair).
        alpha: The share of the soft term, in (0, 1]; 0.9 as in `limbeck.kd` (the authors search it for each pair).
        task: How batches are fed and measured.
    """
    chain = [assistants] if isinstance(assistants, nn.Module) else list(assistants)
    if not chain:
        raise ValueError("a chain needs an assistant at least: without one it is limbeck.kd")
    if student is teacher:
        raise ValueError("the student is the teacher itself: a chain leads from one network to a smaller one")
    if any(one is other for one in chain for other in (student, teacher)):
        raise ValueError("an assistant is the student or the teacher itself: give a network of a size in between")
    if len({id(one) for one in chain}) < len(chain):
        raise ValueError("the same assistant stands twice in the chain: each step needs a network of its own")
    _warn_of_a_step_up([teacher, *chain, student])
    chain = [*map(copied, chain), student]
    names = [*(f"assistant-{number}" for number in range(1, len(chain))), "student"]
    before = teacher
    for number, (name, net) in enumerate(zip(names, chain, strict=True), 1):
        step = kd(net, before, temperature=temperature, alpha=alpha, task=task)
        # a run that is resumed starts those that wait from the same weights, as they are kept with it
        step.add_module("waiting", nn.ModuleList(chain[number:]))
        yield Stage(step, 1 / len(chain), name=name)
        before = net


def _warn_of_a_step_up(chain: Sequence[nn.Module]) -> None:
    sizes = [sum(p.numel() for p in net.parameters()) for net in chain]
    for before, (larger, smaller) in enumerate(pairwise(sizes)):
        if 0 < larger < smaller:  # a model of scikit-learn has no parameters
            what = "the student" if before == len(sizes) - 2 else f"assistant {before + 1}"
            warnings.warn(
                f"{what} has {smaller:,} parameters and learns from a network of {larger:,}: assistants are named from the "
                "largest to the smallest",
                stacklevel=3,
            )
