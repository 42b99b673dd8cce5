"""Teacher-free knowledge distillation: from one's former self, or from a teacher that is written down; and the two
experiments that led to it, with a teacher who is weaker than the student and with one who is badly trained.

Yuan, Tay, Li, Wang, Feng, "Revisiting Knowledge Distillation via Label Smoothing Regularization", CVPR 2020,
arXiv 1909.11723. Authors' code: github.com/yuanli2333/Teacher-free-Knowledge-Distillation.

The code differs from the paper: its divergences are means over the classes too, which a multiplier of 1 to 100 mostly
undoes, and its virtual teacher is another one, see `virtual_teacher`. Its α and multiplier m are weights of 1 − α and
α·m/K here: of the labels, and of `soft_target` or of `virtual_teacher` in mode "code".
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from limbeck.core.copied import copied
from limbeck.core.distributed import of_update
from limbeck.core.frozen import bare
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision
from limbeck.core.objective import S, Y, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage
from limbeck.core.task import UNLABELLED, Task
from limbeck.methods.kd import check_temperature, kd
from limbeck.methods.ls import two_valued
from limbeck.methods.plain import plain
from limbeck.nets.anew import Anew, check_anew, start_anew, undrawn
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="yuan2020revisiting",
    title="Revisiting Knowledge Distillation via Label Smoothing Regularization",
    authors="Yuan, Li and Tay, Francis E. H. and Li, Guilin and Wang, Tao and Feng, Jiashi",
    venue="CVPR",
    year=2020,
    arxiv="1909.11723",
    matches="softened outputs",
    teacher="the former self",
)
PAPER_OF = {
    "tfkd_reg": {"matches": "the outputs of one who is always right: a control", "teacher": "a virtual network"},
    "rekd": {"matches": "softened outputs: a control", "teacher": "a weaker network"},
    "dekd": {"matches": "softened outputs: a control", "teacher": "a badly trained network"},
}
"""What is otherwise than in `PAPER`, of methods other than `tfkd_self`."""
MODES = ("paper", "code")


@full_precision
def virtual_teacher(
    student: Tensor, targets: Tensor, temperature: float = 20.0, correct: float = 0.99, mode: str = "paper"
) -> Tensor:
    """KL from a teacher that gives the label a probability and every other class the same, mean over labelled samples.

    With p_d(y) = a and p_d(k) = (1 − a)/(K − 1) elsewhere:

    - "paper": T² KL(p_d^T ‖ p_s^T), where p_d^T ∝ p_d^(1/T) as if log p_d were logits; the paper does not say.
    - "code": KL(softmax(p_d/T) ‖ p_s). Probabilities pass for logits, the student is not softened, and there is no T².

    Either target has but two values, so this is `label_smoothing` less a constant. At T = 20, a = 0.99 and K = 100 the
    label's is 0.0157 and 0.0105: hardly more than uniform.

    Args:
        student: Logits, (N, K) or (N, ..., K), the classes last.
        targets: Class indices, (N) or (N, ...); -100 is "no label".
        temperature: T > 0.
        correct: a in (1/K, 1), so that the virtual teacher is always right.
        mode: "paper" or "code".
    """
    _check(temperature, correct, mode)
    classes = student.shape[-1]
    if correct * classes <= 1:
        raise ValueError(f"correct must be above 1/K = {1 / classes:.4g} for {classes} classes, got {correct}")
    wrong = (1 - correct) / (classes - 1)
    gap = (math.log(correct / wrong) if mode == "paper" else correct - wrong) / temperature
    label = 1 / (1 + (classes - 1) * math.exp(-gap))
    other = label * math.exp(-gap)
    entropy = -math.log(label) + (classes - 1) * other * gap
    softening = temperature if mode == "paper" else 1.0
    divergence = two_valued(student / softening, targets, label, other) - entropy
    return of_update(torch.where((targets != UNLABELLED).any(), softening**2 * divergence, 0.0), "labels")


@ranged
def tfkd_reg(
    student: nn.Module,
    *,
    temperature: float = 20.0,
    correct: float = 0.99,
    alpha: float = 0.1,
    mode: str = "paper",
    task: Task = classification,
) -> Distill:
    """Distil a virtual teacher that is always right and otherwise knows nothing.

    L = (1 − α) CE(y, z_s) + α T² KL(p_d^T ‖ p_s^T).

    It is label smoothing in another coat: compare it with `ls`, and call a gain over both knowledge.

    Args:
        student: The network to train.
        temperature: T softens the virtual teacher, and in the paper's mode the student, in (0, 1000]; 20 as in the authors'
            code.
        correct: a, the virtual teacher's probability of the label, in (0, 1); 0.99 as in the authors' code, the paper has
            0.9 or more.
        alpha: The share of the virtual teacher, in (0, 1]; 0.1 as in the authors' code, where m = 100 undoes the mean over
            classes.
        mode: "paper" or "code", see `limbeck.losses.virtual_teacher`.
        task: How batches are fed and measured.
    """
    _check(temperature, correct, mode)
    options = {"temperature": temperature, "correct": correct, "mode": mode}
    virtual = on(virtual_teacher, *task.exclusive(S), Y, name="virtual", **options)
    return Distill(student, None, (1 - alpha) * task.hard + alpha * virtual, task)


@ranged
def tfkd_self(
    student: nn.Module,
    *,
    temperature: float = 20.0,
    alpha: float = 0.95,
    anew: Anew | None = None,
    task: Task = classification,
) -> Iterator[Stage]:
    """Train a network on the labels, then again from scratch with its former self as the teacher.

    L = (1 − α) CE(y, z_s) + α T² KL(p_pre^T ‖ p_s^T), in the second half of the epochs given to `fit`.

    It is ``kd(student, former)`` for those who have the former self. A fair control trains `plain` as long as both halves.

    Args:
        student: The network. It ends as the second one; its first weights are those of the first.
        temperature: T softens both outputs, in (0, 1000]; 20 as in the authors' configurations, but for ResNet-18's 6.
        alpha: The share of the former self, in (0, 1]; 0.95 as in the authors' code for small networks. Its mean over K =
            100 classes makes that 0.0095 beside 0.05 for the labels there, and with ResNet-18's multiplier of 50 0.475.
        anew: Makes the network with its own initialisation, as for `limbeck.ban`.
        task: How batches are fed and measured.
    """
    task.softened(S)  # complains before the first stage
    with undrawn(student):  # a network that cannot start anew is told so before it has trained; nothing is drawn
        check_anew(student, anew)
    yield Stage(plain(student, task=task), 0.5, name="former-self")
    former = copied(student)
    start_anew(student, anew)
    yield Stage(kd(student, former, temperature=temperature, alpha=alpha, task=task), 0.5, name="self")


@ranged
def rekd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    temperature: float = 20.0,
    alpha: float = 0.6,
    task: Task = classification,
) -> Distill:
    """Let a small network teach a larger one: reversed distillation, a control.

    L = (1 − α) CE(y, z_s) + α T² KL(p_t^T ‖ p_s^T), which is `kd`. What the student gains here, it does not owe to a
    teacher who knows better.

    Args:
        student: The larger network, to train.
        teacher: The smaller one, trained.
        temperature: T, in (0, 1000]; 20 as in the authors' configurations, which we could confirm for some pairs only.
        alpha: The share of the soft term, in (0, 1]; 0.6 as in the same.
        task: How batches are fed and measured.
    """
    sizes = [sum(p.numel() for p in net.parameters()) for net in (student, bare(teacher))]
    if sizes[0] < sizes[1]:
        raise ValueError(
            f"in reversed distillation the teacher is the smaller one, but the student has {sizes[0]:,} parameters and the "
            f"teacher {sizes[1]:,}: swap them, or take limbeck.kd"
        )
    return kd(student, teacher, temperature=temperature, alpha=alpha, task=task)


@ranged
def dekd(
    student: nn.Module,
    teacher: nn.Module,
    *,
    schooling: float = 0.05,
    temperature: float = 20.0,
    alpha: float = 0.6,
    task: Task = classification,
) -> Iterator[Stage]:
    """Learn from a teacher who has hardly been trained: defective distillation, a control.

    A copy of the teacher learns the labels for a part of the epochs given to `fit`, an epoch at least; then the student
    learns by L = (1 − α) CE(y, z_s) + α T² KL(p_t^T ‖ p_s^T), which is `kd`.

    Args:
        student: The network to train.
        teacher: The network to train badly; a copy of it is trained, from the weights that it has.
        schooling: The teacher's part of the epochs, in (0, 1). The paper's poorest teachers had 1 of 200 epochs, others 50;
            0.05 is ours.
        temperature: As for `rekd`, in (0, 1000].
        alpha: As for `rekd`, in (0, 1].
        task: How batches are fed and measured.
    """
    task.softened(S)  # complains before the first stage
    poor = copied(bare(teacher)).requires_grad_()  # which a frozen one does not
    lesson = plain(poor, task=task)
    lesson.add_module("waiting", nn.ModuleList([student]))  # a resumed run starts it from the same weights
    yield Stage(lesson, schooling, name="poor-teacher")
    yield Stage(kd(student, poor, temperature=temperature, alpha=alpha, task=task), 1 - schooling, name="student")


def _check(temperature: float, correct: float, mode: str) -> None:
    check_temperature(temperature)
    if not 0 < correct < 1:
        raise ValueError(f"correct is the virtual teacher's probability of the label, in (1/K, 1), got {correct}")
    if mode not in MODES:
        raise ValueError(f"mode must be 'paper' or 'code', got {mode!r}")
