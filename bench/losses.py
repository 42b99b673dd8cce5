"""Time and peak memory, forward and backward, of every loss: beside torchdistill's, and beside the paper's formula.

    pip install --no-deps torchdistill==1.1.5
    python bench/losses.py               # prints the table, and writes it into docs/performance.md
    python bench/losses.py --methods     # a step of each method relative to kd's, into docs/performance.csv

All that a row compares runs in one process, on the same random tensors, and in turn: A B ... B A. A ratio is that of two
samples of one round, of this thread's CPU time (others may use the machine); a cell is the median over the rounds. "Ours
again" is our loss a second time: what the machine alone does to a ratio. Memory is the most that the allocator held above
the start, the gradient of the student's tensors included; it does not depend on how busy the machine is.

"The formula" is what one writes who reads the paper and knows torch. Before anything is timed, its value and its gradient
must be ours, and torchdistill's too where that means the same quantity.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import gc
import inspect
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

import torch
from marks import write_between
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import limbeck
from limbeck import losses
from limbeck.core import files
from limbeck.core.method import assign, parameters
from limbeck.core.numerics import unit_rows
from limbeck.methods.crd import Contrast
from limbeck.methods.vid import Gaussian

DOCS = Path(__file__).parents[1] / "docs"
CLASSES, DIMENSIONS = 100, 256
MAPS = ((16, 32), (64, 16), (256, 8))
"""Channels and side of the student's and of the teacher's maps, from shallow to deep."""

Run = Callable[[], Tensor]


@dataclass(frozen=True)
class Row:
    """A loss, and what it is compared with.

    Args:
        loss: Its name.
        inputs: What it is given.
        leaves: What gets a gradient.
        ours: Returns our loss.
        formula: Returns the paper's.
        peer: Returns torchdistill's, if it has one.
        factor: Ours over the peer's.
        other: How the peer's quantity differs from ours, if it does: then there is no factor.
    """

    loss: str
    inputs: str
    leaves: Sequence[Tensor]
    ours: Run
    formula: Run
    peer: Run | None = None
    factor: float = 1.0
    other: str = ""


# what is compared ----------------------------------------------------------------------------------------------------


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape).requires_grad_()


def torchdistill(
    loss: str,
    student: Sequence[Any],
    teacher: Sequence[Any],
    prepare: Callable[[nn.Module], object] = id,
    more: Sequence[Any] = (),
    **options: Any,
) -> Run | None:
    """Return torchdistill's loss of what the modules "0", "1", ... of both networks gave out; None without torchdistill.

    What is callable is made anew each time.
    """
    try:
        from torchdistill.losses import mid_level
    except ImportError:
        return None
    criterion = getattr(mid_level, loss)(**options)
    prepare(criterion)

    def shown(modules: Sequence[Any]) -> dict[str, dict[str, Any]]:
        values = [value() if callable(value) else value for value in modules]
        return {str(at): {"input": value, "output": value} for at, value in enumerate(values)}

    return lambda: criterion(shown(student), shown(teacher), *more)


def of_pairs(name: str, count: int) -> dict[str, Any]:
    """Return torchdistill's configuration of as many pairs of layers."""
    places = [{"path": str(at), "io": "output"} for at in range(count)]
    return {name: {place["path"]: {"student": place, "teacher": place} for place in places}}


AT_0 = {
    "student_module_path": "0",
    "student_module_io": "output",
    "teacher_module_path": "0",
    "teacher_module_io": "output",
}


def of_logits(batch: int) -> Iterator[Row]:
    """Losses of logits."""
    s, t, y = leaf(batch, CLASSES), torch.randn(batch, CLASSES), torch.randint(CLASSES, (batch,))
    row = partial(Row, inputs=f"{batch}x{CLASSES}", leaves=[s])
    softmax, log_softmax = partial(torch.softmax, dim=1), partial(torch.log_softmax, dim=1)
    smooth, right, warm = 0.1, 0.99, 20.0
    temperature = 4.0

    def kl(p: Tensor, log_q: Tensor) -> Tensor:
        return (p * (p.log() - log_q)).sum(1).mean()

    def soft() -> Tensor:
        return temperature**2 * kl(softmax(t / temperature), log_softmax(s / temperature))

    def crossed() -> Tensor:
        return -(temperature**2) * (softmax(t / temperature) * log_softmax(s / temperature)).sum(1).mean()

    def hot() -> Tensor:
        return F.one_hot(y, CLASSES)

    def virtual() -> Tensor:
        p = right * hot() + (1 - right) / (CLASSES - 1) * (1 - hot())
        return warm**2 * kl(softmax(p.log() / warm), log_softmax(s / warm))

    def binary(z: Tensor) -> Tensor:
        p = softmax(z / temperature).gather(1, y[:, None])
        return torch.cat([p, 1 - p], 1)

    def without_label(z: Tensor) -> Tensor:
        return z[hot() == 0].view(batch, CLASSES - 1) / temperature

    def target() -> Tensor:
        return temperature**2 * kl(binary(t), binary(s).log())

    def others() -> Tensor:
        return temperature**2 * kl(softmax(without_label(t)), log_softmax(without_label(s)))

    def related(over: int) -> Tensor:
        a, b = (p - p.mean(over, keepdim=True) for p in (softmax(s / temperature), softmax(t / temperature)))
        correlation = (a * b).sum(over) / ((a**2).sum(over).sqrt() * (b**2).sum(over).sqrt())
        return temperature**2 * (1 - correlation.mean())

    yield row(
        "soft_target",
        ours=lambda: losses.soft_target(s, t, temperature),
        formula=soft,
        peer=torchdistill("KDLoss", [s], [t], **AT_0, temperature=temperature, alpha=0),
        factor=temperature**2,
    )
    yield row("soft_cross_entropy", ours=lambda: losses.soft_cross_entropy(s, t, temperature), formula=crossed)
    yield row("dkd_target", ours=lambda: losses.dkd_target(s, t, y), formula=target)
    yield row("dkd_others", ours=lambda: losses.dkd_others(s, t, y), formula=others)
    yield row("dkd", ours=lambda: losses.dkd(s, t, y), formula=lambda: target() + 8 * others())
    yield row("dist_inter", ours=lambda: losses.dist_inter(s, t, temperature), formula=lambda: related(1))
    yield row("dist_intra", ours=lambda: losses.dist_intra(s, t, temperature), formula=lambda: related(0))
    yield row(
        "dist",
        ours=lambda: losses.dist(s, t, temperature=temperature),
        formula=lambda: related(1) + related(0),
        peer=torchdistill("DISTLoss", [s], [t], **AT_0, tau=temperature),
    )
    yield row(
        "logit_regression",
        ours=lambda: losses.logit_regression(s, t),
        formula=lambda: 0.5 * ((s - t) ** 2).sum(1).mean(),
    )
    yield row("absolute_error", ours=lambda: losses.absolute_error(s, t), formula=lambda: (s - t).abs().mean())
    yield row(
        "cross_entropy",
        ours=lambda: losses.cross_entropy(s, y),
        formula=lambda: -log_softmax(s).gather(1, y[:, None]).mean(),
    )
    yield row(
        "label_smoothing",
        ours=lambda: losses.label_smoothing(s, y, smooth),
        formula=lambda: -(((1 - smooth) * hot() + smooth / CLASSES) * log_softmax(s)).sum(1).mean(),
    )
    yield row("virtual_teacher", ours=lambda: losses.virtual_teacher(s, y, warm, right), formula=virtual)


def of_embeddings(batch: int) -> Iterator[Row]:
    """Losses of embeddings, one vector a sample."""
    s, t = leaf(batch, DIMENSIONS), torch.randn(batch, DIMENSIONS)
    row = partial(Row, inputs=f"{batch}x{DIMENSIONS}", leaves=[s])
    peer = partial(torchdistill, student=[s], teacher=[t])
    relations = {"student_output_path": "0", "teacher_output_path": "0", "reduction": "mean"}
    off_diagonal = ~torch.eye(batch, dtype=torch.bool)

    def unit(x: Tensor) -> Tensor:
        return x / x.norm(dim=-1, keepdim=True)

    def distances(x: Tensor) -> Tensor:
        # of all pairs i ≠ j: the root has no derivative at 0
        squares = ((x[:, None] - x[None]) ** 2).sum(2)
        return torch.zeros_like(squares).masked_scatter(off_diagonal, squares[off_diagonal].sqrt())

    def relative(x: Tensor) -> Tensor:
        d = distances(x)
        return d / (d.sum() / (batch * (batch - 1)))

    def cosines(x: Tensor) -> Tensor:
        sides = F.normalize(x[None] - x[:, None], dim=2)
        return sides @ sides.mT

    def neighbours(x: Tensor) -> Tensor:
        p = 1 + unit(x) @ unit(x).T
        return p / p.sum(1, keepdim=True)

    def congruence(x: Tensor) -> Tensor:
        exponents = 0.8 * unit(x) @ unit(x).T
        return math.exp(-0.8) * (1 + exponents + exponents**2 / 2)

    yield row(
        "rkd_distance",
        ours=lambda: losses.rkd_distance(s, t),
        formula=lambda: F.smooth_l1_loss(relative(s), relative(t)),
        peer=peer("RKDLoss", dist_factor=1, angle_factor=0, **relations),
    )
    yield row(
        "rkd_angle",
        ours=lambda: losses.rkd_angle(s, t),
        formula=lambda: F.smooth_l1_loss(cosines(s), cosines(t)),
        peer=peer("RKDLoss", dist_factor=0, angle_factor=1, **relations),
    )
    yield row(
        "probability",
        ours=lambda: losses.probability(s, t),
        formula=lambda: (neighbours(t) * (neighbours(t) / neighbours(s)).log()).mean(),
        peer=peer("PKTLoss", **AT_0),
    )
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    linear = {"student_linear_path": "0", "teacher_linear_path": "0", "reduction": "batchmean"}
    yield row(
        "correlation",
        ours=lambda: losses.correlation(s, t),
        formula=lambda: (congruence(s) - congruence(t)).square().mean(),
        peer=peer("CCKDLoss", kernel_config=kernel, **linear),
        other="a norm, not its square, of embeddings of any length",
    )
    yield row(
        "embedding_cosine",
        ours=lambda: losses.embedding_cosine(s, t),
        formula=lambda: (1 - F.cosine_similarity(s, t, dim=1)).mean(),
    )
    yield row(
        "embedding_squared",
        ours=lambda: losses.embedding_squared(s, t),
        formula=lambda: ((unit(s) - unit(t)) ** 2).sum(1).mean(),
    )


def of_maps(batch: int) -> Iterator[Row]:
    """Losses of feature maps: of all three, or of the last."""
    maps_s = [leaf(batch, channels, side, side) for channels, side in MAPS]
    maps_t = [torch.randn_like(maps) for maps in maps_s]
    s, t = maps_s[-1], maps_t[-1]
    row = partial(Row, inputs=f"{batch} of all three maps", leaves=maps_s)
    last = partial(Row, inputs=f"{batch}x{MAPS[-1][0]}x{MAPS[-1][1]}²", leaves=[s])
    single = partial(torchdistill, student=[s], teacher=[t])
    every = partial(torchdistill, student=maps_s, teacher=maps_t)

    def summed(loss: Callable[[Tensor, Tensor], Tensor]) -> Run:
        return lambda: sum(map(loss, maps_s, maps_t), torch.zeros(()))

    def attention(a: Tensor, b: Tensor) -> Tensor:
        q, p = (F.normalize((x**2).mean(1).flatten(1)) for x in (a, b))
        return ((q - p) ** 2).mean()

    def selectivity(a: Tensor, b: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        f, g = (F.normalize(x.flatten(2), dim=2) for x in (a, b))
        return (kernel(g, g).mean((1, 2)) + kernel(f, f).mean((1, 2)) - 2 * kernel(f, g).mean((1, 2))).mean()

    def squared_products(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.mT) ** 2

    def products(x: Tensor, y: Tensor) -> Tensor:
        return x @ y.mT

    def gaussian(a: Tensor, b: Tensor) -> Tensor:
        f, g = (F.normalize(x.flatten(2), dim=2) for x in (a, b))
        width = 2 * (torch.cdist(f, g) ** 2).mean().detach()
        kernels = [torch.exp((2 * x @ y.mT - 2) / width) for x, y in ((g, g), (f, f), (f, g))]  # ‖x‖ = ‖y‖ = 1
        return kernels[0].mean() + kernels[1].mean() - 2 * kernels[2].mean()

    def flow(x: Tensor) -> Tensor:
        return x.flatten(2) @ x.flatten(2).mT / x[0, 0].numel()

    def similarity(x: Tensor) -> Tensor:
        return F.normalize(x.flatten(1) @ x.flatten(1).T)

    def boundary(a: Tensor, b: Tensor) -> Tensor:
        active, other = (b > 0).float(), (b <= 0).float()
        return (active * F.relu(1 - a) ** 2 + other * F.relu(1 + a) ** 2).sum() / batch

    def partial_distance(a: Tensor, b: Tensor, margin: float = -0.5) -> Tensor:
        goal = torch.maximum(b, torch.tensor(margin))
        counts = ~((a <= goal) & (goal <= 0))
        return ((a - goal) ** 2 * counts).sum() / batch

    def pyramid(a: Tensor, b: Tensor) -> Tensor:
        total, weight = ((a - b) ** 2).mean(), 1.0
        for level in (level for level in (4, 2, 1) if level < a.shape[2]):
            weight /= 2
            pooled = (F.adaptive_avg_pool2d(x, level) for x in (a, b))
            total = total + weight * F.mse_loss(*pooled)
        return total / (2 - weight)

    def channelwise(a: Tensor, b: Tensor) -> Tensor:
        p, log_q = torch.softmax(b.flatten(2) / 4, 2), torch.log_softmax(a.flatten(2) / 4, 2)
        return 16 * (p * (p.log() - log_q)).sum(2).mean()

    def directions(x: Tensor) -> Tensor:
        return x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True)

    yield last(
        "hint",
        ours=lambda: losses.hint(s, t),
        formula=lambda: ((s - t) ** 2).mean(),
        peer=torchdistill("SimpleLossWrapper", [s], [t], more=[None], low_level_loss=nn.MSELoss(), **mse_places()),
    )
    yield row(
        "attention",
        ours=summed(losses.attention),
        formula=summed(attention),
        peer=every("ATLoss", **of_pairs("at_pairs", 3)),
    )
    for kernel, function in (("linear", products), ("poly", squared_products)):
        yield row(
            f"neuron_selectivity, {kernel}",
            ours=summed(partial(losses.neuron_selectivity, kernel=kernel)),
            formula=summed(partial(selectivity, kernel=function)),
        )
    yield row(
        "neuron_selectivity, gaussian",
        ours=summed(partial(losses.neuron_selectivity, kernel="gaussian")),
        formula=summed(gaussian),
    )
    ends = [f"{net}_{end}" for net in ("student", "teacher") for end in ("first", "second")]
    flows = {at: {end: {"path": at, "io": "output"} for end in ends} for at in ("0", "1", "2")}
    yield row(
        "fsp",
        ours=summed(lambda a, b: losses.fsp((a, a), (b, b))),
        formula=summed(lambda a, b: ((flow(a) - flow(b)) ** 2).sum((1, 2)).mean()),
        peer=every("FSPLoss", fsp_pairs=flows),
        other="the lengths of the difference's columns, not their squares",
    )
    yield last(
        "similarity",
        ours=lambda: losses.similarity(s, t),
        formula=lambda: ((similarity(s) - similarity(t)) ** 2).mean(),
        peer=single("SPKDLoss", student_output_path="0", teacher_output_path="0", reduction="batchmean"),
        other="rows divided by the sum of their absolute values, not by their length",
    )
    yield last(
        "factor",
        ours=lambda: losses.factor(s, t),
        formula=lambda: (directions(s) - directions(t)).abs().mean(),
        peer=single("FTLoss", paraphraser_path="0", translator_path="0"),
    )
    yield row(
        "activation_boundary",
        ours=summed(losses.activation_boundary),
        formula=summed(boundary),
        peer=every("AltActTransferLoss", **of_pairs("feature_pairs", 3), margin=1.0, reduction="mean"),
    )
    yield row(
        "margin_relu",
        ours=summed(partial(losses.margin_relu, margin=-0.5)),
        formula=summed(partial_distance),
    )
    yield row(
        "review",
        ours=summed(losses.review),
        formula=summed(pyramid),
        peer=summed_peer("HierarchicalContextLoss", maps_s, maps_t),
    )
    yield last("channelwise", ours=lambda: losses.channelwise(s, t), formula=lambda: channelwise(s, t))
    yield last(
        "masked_generative",
        ours=lambda: losses.masked_generative(s, t),
        formula=lambda: ((s - t) ** 2).sum() / batch,
    )

    ours = Gaussian(MAPS[-1][0])

    def variance() -> Tensor:
        return (F.softplus(ours.log_scale) + ours.floor).view(1, -1, 1, 1)

    yield Row(
        "Gaussian (vid)",
        last.keywords["inputs"],
        [s, ours.log_scale],
        ours=lambda: ours(s, t),
        formula=lambda: (0.5 * ((t - s) ** 2 / variance() + variance().log())).mean(),
        peer=torchdistill("VIDLoss", [lambda: (s, variance())], [t], **of_pairs("feature_pairs", 1)),
    )


def mse_places() -> dict[str, Any]:
    """Return torchdistill's configuration of one place in both networks, for losses of torch."""
    return {
        "input": {"is_from_teacher": False, "module_path": "0", "io": "output"},
        "target": {"is_from_teacher": True, "module_path": "0", "io": "output"},
    }


def summed_peer(loss: str, maps_s: Sequence[Tensor], maps_t: Sequence[Tensor]) -> Run | None:
    """Return the sum of one of torchdistill's losses over pairs of maps."""
    each = [torchdistill(loss, [(a, None)], [b], **AT_0) for a, b in zip(maps_s, maps_t, strict=True)]
    return (lambda: sum((one() for one in each if one), torch.zeros(()))) if all(each) else None


def of_weights() -> Iterator[Row]:
    """Losses of weights: there is no batch."""
    s, t = leaf(64, 32, 3, 3), torch.randn(128, 64, 3, 3)
    rows, columns = leaf(128, 64), leaf(64, 32)
    yield Row(
        "weight_matching",
        "64x32x3² to 128x64x3²",
        [s, rows, columns],
        ours=lambda: losses.weight_matching(s, t, rows, columns),
        formula=lambda: ((torch.einsum("ab,bcij,dc->adij", rows, s, columns) - t) ** 2).mean(),
    )


def of_gradients(batch: int) -> Iterator[Row]:
    """Losses of derivatives; the two networks' forward passes are part of them."""
    student, teacher = (
        nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.Softplus(), nn.Flatten(), nn.Linear(256 * width, CLASSES))
        for width in (8, 16)
    )
    teacher.requires_grad_(False)
    x, y = torch.randn(batch, 3, 32, 32).requires_grad_(), torch.randint(CLASSES, (batch,))
    signs = torch.randint(2, (batch, CLASSES)) * 2.0 - 1
    row = partial(Row, inputs=f"{batch}x3x32², {CLASSES} classes", leaves=list(student.parameters()))

    def slope(total: Tensor, place: Tensor) -> Tensor:
        return torch.autograd.grad(total, place, create_graph=True)[0]

    def of_loss(net: nn.Module, inputs: Tensor) -> Tensor:
        return slope(F.cross_entropy(net(inputs), y, reduction="sum"), inputs)

    def of_label(net: nn.Module) -> Tensor:
        return slope(net(x).gather(1, y[:, None]).sum(), x)

    def of_signs(net: nn.Module) -> Tensor:
        return slope((net(x) * signs).sum(), x)

    def of_attention(net: nn.Module, place: Tensor) -> Tensor:
        j = slope(attention_of(net).gather(1, place).sum(), x).flatten(1)
        return j / j.norm(dim=1, keepdim=True)

    def attention_of(net: nn.Module) -> Tensor:
        return (net[0](x) ** 2).mean(1).flatten(1)

    def difference(j_s: Tensor, j_t: Tensor) -> Tensor:
        return ((j_s - j_t) ** 2).flatten(1).sum(1).mean()

    def attention_formula() -> Tensor:
        place = attention_of(teacher).argmax(1, keepdim=True)
        return difference(of_attention(student, place), of_attention(teacher, place).detach())

    def at_features(features: Tensor, net: nn.Module) -> Tensor:
        return slope(F.cross_entropy(net[1:](features), y, reduction="sum"), features)

    def feature_formula() -> Tensor:
        maps = [at_features(net[0](x), net) for net in (student, teacher)]
        q_s, q_t = (F.normalize((j**2).mean(1).flatten(1)) for j in maps)
        return ((q_s - q_t.detach()) ** 2).mean()

    def feature() -> Tensor:
        f_s, f_t = student[0](x), teacher[0](x)
        return losses.feature_gradient(student[1:](f_s), teacher[1:](f_t), f_s, f_t, y)

    def symmetry() -> Tensor:
        flipped = x.flip(-1)
        return losses.gradient_symmetry(student(x), x, student(flipped), flipped, y)

    yield row(
        "gradient_attention",
        ours=lambda: losses.gradient_attention(student(x), teacher(x), x, y),
        formula=lambda: difference(of_loss(student, x), of_loss(teacher, x).detach()),
    )
    yield row("feature_gradient", ours=feature, formula=feature_formula)
    yield row(
        "gradient_symmetry",
        ours=symmetry,
        formula=lambda: difference(of_loss(student, x), of_loss(student, x.flip(-1)).flip(-1)),
    )
    yield row(
        "jacobian",
        ours=lambda: losses.jacobian(student(x), teacher(x), x, y),
        formula=lambda: difference(of_label(student), of_label(teacher).detach()),
    )
    yield row(
        "jacobian_projection",
        ours=lambda: losses.jacobian_projection(student(x), teacher(x), x, signs),
        formula=lambda: difference(of_signs(student), of_signs(teacher).detach()),
    )
    yield row(
        "jacobian_attention",
        ours=lambda: losses.jacobian_attention(student[0](x), teacher[0](x), x),
        formula=attention_formula,
    )


def of_memory(batch: int, samples: int = 50_000, negatives: int = 16_384, dimensions: int = 128) -> Iterator[Row]:
    """CRD's, with its memory's update; all are told which negatives to take."""
    s, t = leaf(batch, dimensions), torch.randn(batch, dimensions)
    contrast = Contrast(samples, dimensions, negatives, temperature=0.07, keep=0.5)
    chosen = torch.cat([torch.randperm(samples)[:batch, None], torch.randint(samples, (batch, negatives))], 1)
    banks = [contrast.bank_s.clone(), contrast.bank_t.clone()]
    means: list[Tensor] = []

    def side(anchors: Tensor, bank: Tensor, which: int) -> Tensor:
        scores = torch.exp(torch.einsum("nkd,nd->nk", bank[chosen], anchors) / 0.07)
        if len(means) <= which:
            means.append(scores.mean().detach())
        p, noise = scores / (means[which] * samples), negatives / samples
        return -((p[:, 0] / (p[:, 0] + noise)).log() + (noise / (p[:, 1:] + noise)).log().sum(1)).mean()

    def formula() -> Tensor:
        unit_s, unit_t = F.normalize(s), F.normalize(t)
        loss = side(unit_s, banks[1], 0) + side(unit_t, banks[0], 1)
        for bank, new in zip(banks, (unit_s, unit_t), strict=True):
            bank[chosen[:, 0]] = F.normalize(0.5 * bank[chosen[:, 0]] + 0.5 * new.detach())
        return loss

    student = [lambda: F.normalize(s), {"pos_idx": chosen[:, 0], "contrast_idx": chosen}]
    peer = torchdistill(
        "CRDLoss",
        student,
        [lambda: F.normalize(t)],
        student_norm_module_path="0",
        student_empty_module_path="1",
        teacher_norm_module_path="0",
        input_size=dimensions,
        output_size=samples,
        num_negative_samples=negatives,
        num_samples=samples,
        prepare=lambda criterion: criterion.load_state_dict(
            {"memory_v1": banks[0], "memory_v2": banks[1]}, strict=False
        ),
    )
    yield Row(
        "Contrast (crd)",
        f"{batch}x{dimensions}, {negatives} of {samples}",
        [s],
        ours=lambda: contrast.compare(unit_rows(s), unit_rows(t), chosen),
        formula=formula,
        peer=peer,
    )


# how it is measured --------------------------------------------------------------------------------------------------


def backward(loss: Run, leaves: Sequence[Tensor]) -> Callable[[], None]:
    """Return a run forward and backward; the gradients of the run before are gone first."""

    def run() -> None:
        for one in leaves:
            one.grad = None
        torch.autograd.backward(loss().sum(), inputs=list(leaves))  # some of torchdistill's have shape (1)

    return run


def check(row: Row) -> None:
    """Refuse to compare what is not the same."""
    expected, gradients = value_and_gradients(row.ours, row.leaves)
    rivals = {"the formula": (row.formula, 1.0)}
    if row.peer is not None and not row.other:
        rivals["torchdistill"] = (row.peer, row.factor)
    for who, (rival, factor) in rivals.items():
        value, others = value_and_gradients(rival, row.leaves)
        say = f"{row.loss}, {row.inputs}: {who} differs: "
        torch.testing.assert_close(factor * value, expected, rtol=1e-3, atol=1e-6, msg=lambda m, say=say: say + m)
        for theirs, own in zip(others, gradients, strict=True):
            distance, length = (factor * theirs - own).norm(), own.norm()
            if not distance <= 1e-3 * length:
                raise AssertionError(f"{say}the gradient by {distance:.1e}, of a length of {length:.1e}")


def value_and_gradients(loss: Run, leaves: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
    value = loss().sum()
    return value.detach(), torch.autograd.grad(value, leaves, materialize_grads=True)  # no derivative needs a bias


def times(runs: Mapping[str, Callable[[], object]], seconds: float, least: int) -> dict[str, list[float]]:
    """Return seconds of this thread's CPU by round, at least ``least`` rounds in order and in reverse order by turns."""
    repeats = {name: max(1, int(0.003 / max(1e-7, cpu_seconds(run)))) for name, run in runs.items()}
    found: dict[str, list[float]] = {name: [] for name in runs}
    order, start = list(runs), time.thread_time()
    while len(found[order[0]]) < least or (time.thread_time() - start < seconds and len(found[order[0]]) < 40):
        for name in order:
            found[name].append(cpu_seconds(runs[name], repeats[name]))
        order.reverse()
    return found


def cpu_seconds(run: Callable[[], object], repeats: int = 1) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return (time.thread_time() - start) / repeats


def peak(run: Callable[[], object], leaves: Sequence[Tensor] = ()) -> int:
    """Return the most bytes that the allocator held above the start."""
    for one in leaves:
        one.grad = None
    gc.collect()
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


@contextmanager
def silent() -> Iterator[None]:
    """Keep what the profiler's C++ says off the terminal."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def keep_freed_memory() -> None:
    """Let the C library give nothing back between steps, as a caching allocator, CUDA's, does: large tensors gain by it."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def spread(ratios: Sequence[float]) -> str:
    low, _, high = quantiles(ratios, n=4)
    return f"{median(ratios):.2f} [{low:.2f}, {high:.2f}]"


def ratios(own: Iterable[float], base: Iterable[float]) -> list[float]:
    return [a / b for a, b in zip(own, base, strict=True)]


HEADER = (
    "loss",
    "inputs",
    "ours, ms",
    "ours / torchdistill",
    "ours / the formula",
    "ours / ours again",
    "ours, MB",
    "torchdistill, MB",
    "the formula, MB",
)


def measured(row: Row, seconds: float, least: int) -> tuple[str, ...]:
    """Return the cells of a row."""
    check(row)
    runs = {"ours": row.ours, "peer": row.peer, "formula": row.formula, "again": row.ours}
    steps = {name: backward(loss, row.leaves) for name, loss in runs.items() if loss is not None}
    spent = times(steps, seconds, least)
    bytes_of = {name: peak(step, row.leaves) for name, step in steps.items() if name != "again"}
    ratio = {name: spread(ratios(spent["ours"], spent[name])) for name in steps if name != "ours"}
    megabytes = {name: f"{size / 1e6:.2f}" if size < 1e7 else f"{size / 1e6:.0f}" for name, size in bytes_of.items()}
    mark = "†" if row.other and row.peer else ""
    return (
        f"`{row.loss}`",
        row.inputs,
        f"{1e3 * median(spent['ours']):.2f}",
        ratio.get("peer", "–") + mark,
        ratio["formula"],
        ratio["again"],
        megabytes["ours"],
        megabytes.get("peer", "–"),
        megabytes["formula"],
    )


def all_rows(batches: Sequence[int]) -> Iterator[Row]:
    families = [partial(family, batch) for batch in batches for family in (of_logits, of_embeddings, of_maps)]
    for family in [partial(of_gradients, 64), of_weights, partial(of_memory, 64), *families]:
        torch.manual_seed(0)
        yield from family()


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


# a step of each method -----------------------------------------------------------------------------------------------

SETTING = "64 images of 3x32x32, 100 classes"
GIVEN: dict[str, dict[str, Any]] = {"crd": {"memory": 50_000}}
NETWORKS = {"student": "resnet8", "teacher": "resnet20", "assistants": "resnet14", "peers": "resnet8"}
REVERSED = {"student": "resnet20", "teacher": "resnet8"}
"""Those of `rekd`, where the small network teaches."""
OTHERS = ("embedding_table", "mimic")
"""Not for images: these need a table of embeddings, or data in columns."""


def steps_of(name: str, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Callable[[], object]]:
    """Return a step of each stage of a method, by the stage's name."""
    make = getattr(limbeck, name)
    known = inspect.signature(make).parameters
    networks = {
        role: limbeck.zoo.network(net, CLASSES, (3, 32, 32)) for role, net in nets_of(name).items() if role in known
    }
    example = {"example": batch[0]} if "example" in known else {}
    built = make(*networks.values(), **example, **GIVEN.get(name, {}))
    steps: dict[str, Callable[[], object]] = {}
    for stage in [limbeck.Stage(built)] if isinstance(built, limbeck.Method) else built:
        stage.method.train(stage.trains is None)
        for module in stage.trains or ():
            module.train()
        if stage.name not in steps and len(steps) < 2:
            optimizers = assign(parameters(stage.method, stage.trains), sgd)
            steps[stage.name] = partial(limbeck.play, stage.method, batch, optimizers)
    return steps


def nets_of(name: str) -> dict[str, str]:
    return {**NETWORKS, **REVERSED} if name == "rekd" else NETWORKS


def sgd(trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(trained, 1e-4, momentum=0.9)


def method_costs(rounds: int) -> Iterator[tuple[str, str, str, str]]:
    """Yield each method, its setting, and a step's time and memory relative to `kd`'s."""
    torch.manual_seed(0)
    batch = torch.randn(64, 3, 32, 32), torch.randint(CLASSES, (64,)), torch.arange(64)
    (kd,) = steps_of("kd", batch).values()
    kd()
    memory = peak(kd)
    for name in limbeck.methods.__all__:
        for stage, step in ({} if name in OTHERS else steps_of(name, batch)).items():
            step()  # momentum and gradients are there afterwards
            own = peak(step) / memory
            pairs = [(cpu_seconds(step), cpu_seconds(kd)) for _ in range(rounds)]
            nets = nets_of(name)
            setting = f"{nets['teacher']} → {nets['student']}, {SETTING}" + (f"; stage {stage}" if stage else "")
            yield name, setting, f"{median(a / b for a, b in pairs):.2f}", f"{own:.2f}"


def measure_methods(rounds: int, write: bool) -> None:
    """Print what a step of each method costs, and write it to where the methods' pages find it."""
    rows = [("method", "setting", "time", "memory")]
    print(line(rows[0]), line(["---"] * 4), sep="\n")
    for row in method_costs(rounds):
        rows.append(row)
        print(line(row), flush=True)
    if write:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        files.write(DOCS / "performance.csv", text.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds, losses in batches of 64 only; nothing is written"
    )
    parser.add_argument("--only", default="", help="losses whose name contains this; nothing is written")
    parser.add_argument("--methods", action="store_true", help="a step of each method instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    if options.methods:
        measure_methods(2 if options.quick else 3, write=not options.quick)
        return
    batches, seconds, least = ((64,), 0.05, 3) if options.quick else ((64, 256), 0.2, 5)
    lines = [line(HEADER), line(["---"] * len(HEADER))]
    print(*lines, sep="\n")
    for row in all_rows(batches):
        if row.loss.startswith(options.only):
            lines.append(line(measured(row, seconds, least)))
            print(lines[-1], flush=True)
    if not options.quick and not options.only:
        write_between("losses", lines)


if __name__ == "__main__":
    main()
