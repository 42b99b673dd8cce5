"""FitNets: hints for thin deep nets.

Romero, Ballas, Ebrahimi Kahou, Chassang, Gatta, Bengio, "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550;
official code adri-romsor/FitNets (Theano).

We train the paper's two stages; RepDistiller and mdistiller train a single joint one under this name. The soft term is
their cross-entropy without T², written with our canonical reduction: λ/T² times `soft_cross_entropy`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from limbeck.core.frozen import frozen
from limbeck.core.layers import layers, pairs, shape_at
from limbeck.core.method import Distill
from limbeck.core.numerics import full_precision, same_shape
from limbeck.core.objective import M, S, T, on
from limbeck.core.options import ranged
from limbeck.core.paper import Paper
from limbeck.core.stage import Stage, linear
from limbeck.core.task import Task
from limbeck.core.trace import submodules
from limbeck.methods.kd import soft_cross_entropy
from limbeck.nets.connectors import regressor
from limbeck.tasks.classification import classification

PAPER = Paper(
    key="romero2015fitnets",
    title="FitNets: Hints for Thin Deep Nets",
    authors="Romero, Adriana and Ballas, Nicolas and Ebrahimi Kahou, Samira and Chassang, Antoine and Gatta, Carlo "
    "and Bengio, Yoshua",
    venue="ICLR",
    year=2015,
    arxiv="1412.6550",
    matches="a hidden layer, then softened outputs",
    teacher="frozen network",
)


@full_precision
def hint_distance(student: Tensor, teacher: Tensor, reduction: str = "mean") -> Tensor:
    """Squared error of a regressed guided layer against its hint.

    Args:
        student: r(v_g(x)), any shape (N, ...).
        teacher: u_h(x), of the same shape.
        reduction: ``"mean"`` over all elements, independent of the map's size; ``"paper"``: ½ Σ ‖u_h − r(v_g)‖², mean over
            samples, which is C·H·W/2 times the former.
    """
    same_shape("hint and regressed guided layer", student, teacher)
    if reduction == "mean":
        return F.mse_loss(student, teacher)
    if reduction == "paper":
        return 0.5 * (student - teacher).square().sum() / len(student)
    raise ValueError(f"reduction must be 'mean' or 'paper', got {reduction!r}")


@ranged
def fitnets(
    student: nn.Module,
    teacher: nn.Module,
    *,
    hint: str | None = None,
    guided: str | None = None,
    temperature: float = 3.0,
    soft: tuple[float, float] = (4.0, 1.0),
    reduction: str = "mean",
    hint_share: float = 0.5,
    example: Tensor,
    task: Task = classification,
) -> Iterator[Stage]:
    """Train the student's lower half to predict the teacher's middle layer, then all of it with soft targets.

    Stage 1, up to the guided layer and without labels: mean((u_h(x) − r(v_g(x)))²). Stage 2: CE(y, z_s) +
    λ CE(p_t^T, p_s^T).

    With batch norm and skip connections the hint gains little, often less than `kd`; it is for nets that hardly train.

    Args:
        student: The network to train.
        teacher: The network to learn from.
        hint: The teacher's layer to learn from; by default the middle pair of `limbeck.pairs`.
        guided: The student's layer that learns; likewise.
        temperature: T of stage 2, in (0, 1000]; 3 as in the authors' configurations.
        soft: λ at the start and at the end of stage 2, linear between, at least 0; 4 and 1 as in the authors' code for
            CIFAR. It weighs the cross-entropy without T².
        reduction: That of stage 1's loss, see `limbeck.losses.hint`. The mean, so that a learning rate means the same for
            maps of any size: the paper's sum is C·H·W/2 times as large, and at stage 2's rate kills the regressor's ReLU
            (a resnet8 on CIFAR-10 ended at 18 %). The authors' code sums over one axis, and takes the mean over the others.
        hint_share: Stage 1's part of the epochs, in (0, 1); a half is ours, the authors trained each until it stopped
            improving.
        example: A batch of inputs, (N, ...), from which the regressor gets its shape.
        task: How batches are fed and measured.
    """
    outputs = task.softened(S, T)  # complains before the first stage
    guided, hint = _places(student, teacher, guided, hint, example, task)
    predicted = S[guided].via(_regressor(student, teacher, guided, hint, example, task))
    learn_hint = Distill(
        student, teacher, on(hint_distance, predicted, T[hint], name="hint", reduction=reduction), task
    )
    upto = _upto(student, guided, example, task)
    yield Stage(learn_hint, hint_share, trains=[*upto, learn_hint.objective], name="hint")

    without_t2 = on(soft_cross_entropy, *outputs, name="soft", temperature=temperature, mask=M)
    everything = task.hard + linear(soft[0] / temperature**2, soft[1] / temperature**2) * without_t2
    yield Stage(Distill(student, teacher, everything, task), 1 - hint_share, name="knowledge")


def _places(
    student: nn.Module, teacher: nn.Module, guided: str | None, hint: str | None, example: Tensor, task: Task
) -> tuple[str, str]:
    """The named layers, or the middle pair."""
    if guided is not None and hint is not None:
        return guided, hint
    found = pairs(student, teacher, example, task)
    if not found:
        raise ValueError("found no layers to pair: name them, hint='teacher.layer', guided='student.layer'")
    middle = found[(len(found) - 1) // 2]
    return guided or middle[0], hint or middle[1]


def _regressor(
    student: nn.Module, teacher: nn.Module, guided: str, hint: str, example: Tensor, task: Task
) -> nn.Module:
    shapes = shape_at(student, guided, example, task), shape_at(teacher, hint, example, task)
    with torch.no_grad():
        target = task.look(frozen(teacher), example, [hint])[hint]
    return regressor(*shapes, rectified=bool((target >= 0).all()))


def _upto(student: nn.Module, guided: str, example: Tensor, task: Task) -> list[nn.Module]:
    """What the hint can teach: the modules that have finished once the guided layer has, and what else it is made of."""
    path, modules = guided.split(":")[0], submodules(student)
    order = [layer.path for layer in layers(student, example, task)]
    finished = [modules[done] for done in order[: order.index(path) + 1]]
    known = {id(p) for module in finished for p in module.parameters()}
    # what belongs to a module that goes on (a position embedding, a class token), or that is called once more
    others = [p for p in _behind(_shown(student, guided, example, task)) if id(p) not in known]
    return [*finished, nn.ParameterList(others)]


def _shown(student: nn.Module, guided: str, example: Tensor, task: Task) -> Tensor:
    """What the guided layer shows, with its graph; the student stays as it was."""
    modes = [(module, module.training) for module in student.modules()]
    student.eval()
    try:
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            shown: Tensor = task.look(student, example, [guided])[guided]
    finally:
        for module, mode in modes:
            module.training = mode
    return shown


def _behind(value: Tensor) -> list[nn.Parameter]:
    """The parameters that a tensor was computed of."""
    found, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [earlier for earlier, _ in node.next_functions]
    leaves = [getattr(node, "variable", None) for node in found]
    return [leaf for leaf in leaves if isinstance(leaf, nn.Parameter)]
