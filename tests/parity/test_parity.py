"""Our losses against independent public implementations: the same numbers, or a reason why not.

A golden vector holds inputs and the loss and gradients that a peer's own code gave for them. `PARITY` maps a vector's
method and params to our call, with the constant factor between the two reductions. `DEFECTS` lists what peers compute
that is no constant multiple of ours: there the defect, applied by hand, must give the peer's number, and ours must differ.

Another folder of vectors of the same format: ``pytest tests/parity --golden DIR``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from limbeck import losses
from limbeck.methods.crd import Contrast
from limbeck.methods.ofd import margins
from limbeck.methods.vid import Gaussian
from limbeck.nets.branches import Gate
from limbeck.nets.connectors import pointwise

OWN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Vector:
    """One case of an index.json, with its tensors in ``dtype``."""

    case: dict[str, Any]
    folder: Path
    dtype: torch.dtype = torch.float64

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / self.case["file"])

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The peer's arguments; those it was differentiated by require a gradient."""
        read = {name: self.tensors[entry["tensor"]] for name, entry in self.case["inputs"].items()}
        read = {name: x.to(self.dtype) if x.is_floating_point() else x for name, x in read.items()}
        return {name: x.requires_grad_(name in self.case["expected"]["grads"]) for name, x in read.items()}

    @property
    def method(self) -> str:
        return self.case["method"]

    @property
    def text(self) -> str:
        """What the params do not tell: the recorded reduction and formula, in words."""
        return f"{self.case['reduction']} {self.case['formula']}"

    def get(self, param: str, default: Any = None) -> Any:
        return self.case["params"].get(param, default)

    @property
    def student(self) -> Tensor:
        return next(x for name, x in self.inputs.items() if name.startswith("student_"))

    @property
    def teacher(self) -> Tensor:
        return next(x for name, x in self.inputs.items() if name.startswith("teacher_"))

    @property
    def labels(self) -> Tensor:
        return self.inputs["labels"]

    @property
    def temperature(self) -> float:
        return float(self.get("temperature", 1))

    @property
    def classes(self) -> int:
        return self.student.shape[-1]

    @property
    def share(self) -> float:
        """The weight of the peer's distillation term; the labels have the rest."""
        two_weights = "beta" in self.case["params"]  # a paper's two weights are no shares
        alpha = 1.0 if two_weights else self.get("alpha", self.get("reg_alpha"))
        return self.get("kd_weight", self.get("distil_weight", 1.0) if alpha is None else alpha)

    @property
    def hard(self) -> Tensor | float:
        """The labels' term, weighted; without one, 0."""
        weight = self.get("ce_weight", 1 - self.share)
        return weight * losses.cross_entropy(self.student, self.labels) if weight else 0.0

    def __str__(self) -> str:
        return self.case["id"]


# --- ours -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """The peers' value is ``factor`` · ``ours``, plus the weighted labels where they mix them in (`Vector.hard`)."""

    ours: Callable[[Vector], Tensor]
    factor: Callable[[Vector], float]
    why: str

    def __call__(self, vector: Vector) -> Tensor:
        return self.factor(vector) * self.ours(vector) + vector.hard


def per_class(v: Vector) -> float:
    """Ours sums over the K classes; ``mean_over_elements`` divides by them too."""
    return {"batchmean": 1.0, "mean_over_elements": 1 / v.classes}[v.get("reduction", "batchmean")]


def per_square_of_temperature(v: Vector) -> float:
    """Ours always has T²; a peer with scale ``1`` has not."""
    return {"T^2": 1.0, "1": v.temperature**-2}[v.get("scale", "T^2")]


def unit(x: Tensor) -> Tensor:
    """Each sample divided by its length."""
    return x / x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))


def embeddings(v: Vector) -> tuple[Tensor, Tensor]:
    """What the relations are between: mmrazor and sseung normalise the embeddings first."""
    pair = v.student, v.teacher
    return tuple(F.normalize(x) for x in pair) if v.get("l2_normalize") else pair


def features(v: Vector) -> tuple[Tensor, Tensor]:
    """What is compared to the hint: mmrazor normalises, lenscloth regresses by a 1x1 convolution."""
    student = F.conv2d(v.student, v.inputs["aux_conv_weight"]) if v.get("regressor") else v.student
    return (unit(student), unit(v.teacher)) if v.get("normalize") else (student, v.teacher)


def maps(v: Vector) -> tuple[Tensor, Tensor]:
    """Features on one grid: where sizes differ, RepDistiller and mdistiller pool the features, ours pools their maps."""
    grid = [min(sizes) for sizes in zip(v.student.shape[2:], v.teacher.shape[2:], strict=True)]
    return tuple(x if list(x.shape[2:]) == grid else F.adaptive_avg_pool2d(x, grid) for x in (v.student, v.teacher))


def values(v: Vector) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of the student, of the teacher, and the true ones."""
    return v.student, v.teacher, v.inputs["target_boxes"]


def every_layer(v: Vector) -> tuple[list[Tensor], list[Tensor]]:
    """The student's and the teacher's features, layer by layer."""
    return tuple([x for name, x in v.inputs.items() if name.startswith(who)] for who in ("student_", "teacher_"))


def flow_pair(v: Vector, who: str) -> tuple[Tensor, Tensor]:
    """A section's first and last maps: on different grids RepDistiller and AberHu take the mean, ours the maximum."""
    first, last = v.inputs[f"{who}_first"], v.inputs[f"{who}_second"]
    grid = [min(sizes) for sizes in zip(first.shape[2:], last.shape[2:], strict=True)]
    if v.get("pool") != "adaptive_avg":
        return first, last
    return tuple(x if list(x.shape[2:]) == grid else F.adaptive_avg_pool2d(x, grid) for x in (first, last))


def flow_entries(v: Vector) -> int:
    return v.inputs["student_first"].shape[1] * v.inputs["student_second"].shape[1]


def gaussian(v: Vector) -> Tensor:
    """The Gaussian loss with the peer's weights; where it has a regressor, its mean is that of the regressed features."""
    mean, weights = v.student, [x for name, x in v.inputs.items() if name.startswith("aux_conv")]
    if weights:
        regressor = pointwise(mean.shape[1], *(len(weight) for weight in weights))
        mean = torch.func.functional_call(regressor, {f"{2 * i}.weight": w for i, w in enumerate(weights)}, (mean,))
    scale = v.inputs["aux_log_scale"]
    loss = Gaussian(len(scale), floor=v.get("eps"))
    return torch.func.functional_call(loss, {"log_scale": scale}, (mean, v.teacher))


def margin(v: Vector) -> Tensor | float:
    """The peer's margin: given, without one, or AberHu's: the mean of the batch's negative responses in each channel."""
    if "aux_margin" in v.inputs:
        return v.inputs["aux_margin"]
    if v.get("margin") is None:
        return -math.inf
    below = v.teacher < 0
    return v.teacher.where(below, 0.0).sum((0, 2, 3)) / (below.sum((0, 2, 3)) + 1e-6)


def contrast(v: Vector) -> Tensor:
    """The contrastive loss with the peer's banks and negatives; 1e-7, as theirs, beside the noise K/n."""
    n, negatives = v.get("n_data"), v.get("nce_k")
    loss = Contrast(n, v.get("feat_dim"), negatives, v.get("nce_t"), v.get("momentum")).to(v.dtype)
    loss.bank_s, loss.bank_t = v.inputs["aux_memory_student"], v.inputs["aux_memory_teacher"]
    pair = [
        F.normalize(
            F.linear(v.inputs[f"{who}_feature"], *(v.inputs[f"aux_embed_{who[0]}_{p}"] for p in ("weight", "bias")))
        )
        if f"{who}_feature" in v.inputs
        else v.inputs[f"{who}_embedding"]
        for who in ("student", "teacher")
    ]
    for estimation in (loss.of_student, loss.of_teacher):
        estimation.negatives += 1e-7 * n
    if v.case["group"] == "crdcore2":  # the second call of the same batch
        loss.compare(*pair, v.inputs["contrast_index"])
    return loss.compare(*pair, v.inputs["contrast_index"]) + 2 * negatives * math.log(1 + 1e-7 * n / negatives)


def gated(v: Vector, follow: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Branches that learn the labels, as their ensemble does, and ``follow`` it; with the peer's gate."""
    feature = v.inputs["student_gate_feature"]
    parts = {"fc.weight": "gate_weight", "fc.bias": "gate_bias", "norm.weight": "bn_weight", "norm.bias": "bn_bias"}
    gate = Gate(feature.shape[1], v.get("branches")).to(v.dtype)
    shares = torch.func.functional_call(gate, {ours: v.inputs[f"aux_{name}"] for ours, name in parts.items()}, feature)
    branches = torch.stack([v.inputs[f"student_logits_{i + 1}"] for i in range(v.get("branches"))], 1)
    ensemble = (shares[..., None] * branches).sum(1)
    hard = [losses.cross_entropy(z, v.labels) for z in (*branches.unbind(1), ensemble)]
    soft = [follow(z, ensemble.detach()) for z in branches.unbind(1)]
    return sum(hard) + v.get("consistency_weight") * sum(soft)


def classes_last(v: Vector) -> tuple[Tensor, Tensor]:
    """Logits (N, K) or (N, K, H, W) with the classes as ours has them."""
    return v.student.movedim(1, -1), v.teacher.movedim(1, -1)


PARITY: dict[str, Row] = {
    "kd_hinton": Row(
        lambda v: losses.soft_target(v.student, v.teacher, v.temperature),
        lambda v: per_class(v) * per_square_of_temperature(v),
        "ours is the sum over classes with T²; some divide by K, some leave T² out",
    ),
    "kd_hinton_with_ce": Row(
        lambda v: losses.soft_target(v.student, v.teacher, v.temperature),
        lambda v: v.share * per_square_of_temperature(v),
        "ours, weighted, beside the labels; those that divide the soft term alone by K are DEFECTS",
    ),
    "kd_soft_ce": Row(
        lambda v: losses.soft_cross_entropy(v.student, v.teacher, v.temperature),
        lambda v: per_class(v) * per_square_of_temperature(v),
        "ours is the sum over classes with T²; TinyBERT divides by K, all but mmrazor leave T² out",
    ),
    "dml": Row(
        lambda v: losses.soft_target(v.student, v.teacher, v.temperature),
        per_class,
        "KL(peer ‖ self) is `soft_target` at T = 1 with the peer in the teacher's place",
    ),
    "one_kl": Row(
        lambda v: losses.soft_target(v.student, v.teacher, v.temperature),
        lambda v: 1.0,
        "both are the sum over classes with T²; what the authors add to the target is among DEFECTS",
    ),
    "one_gated": Row(
        lambda v: gated(v, lambda z, ensemble: losses.soft_target(z, ensemble, v.temperature)),
        lambda v: 1.0,
        "both sum over the branches, and the ensemble is a constant in the KL",
    ),
    "label_smoothing": Row(
        lambda v: losses.label_smoothing(
            v.student,
            v.labels,
            v.get("smoothing") * (v.classes / (v.classes - 1) if "K-1" in v.get("convention", "") else 1),
        ),
        lambda v: 1.0,
        "ours spreads ε over all K classes; Tf-KD's ε over the K − 1 wrong ones is ours at ε·K/(K − 1)",
    ),
    "tfkd_reg": Row(
        lambda v: losses.virtual_teacher(
            v.student, v.labels, v.get("reg_temperature"), v.get("correct_prob"), mode="code"
        ),
        lambda v: v.share * v.get("multiplier") * per_class(v),
        "ours sums over the classes; the authors and KD_Lib divide by them, and the authors' multiplier mends that",
    ),
    "tfkd_self": Row(
        lambda v: losses.soft_target(v.student, v.teacher, v.temperature),
        lambda v: v.share * v.get("multiplier") * per_class(v),
        "ours sums over the classes; the authors divide by them, and their multiplier mends that",
    ),
    "logits_mse": Row(
        lambda v: losses.logit_regression(v.student / v.temperature, v.teacher / v.temperature),
        lambda v: v.share * 2 * per_class(v),
        "ours is ½ the sum over classes: 2 for a peer's missing ½, 2/K for its mean over elements",
    ),
    "chen_reg": Row(
        lambda v: losses.bounded_regression(*values(v), v.get("margin")),
        lambda v: v.get("v", 1.0) / (v.classes if v.get("reduction") == "mean_over_elements" else 1),
        "ours is the sum over a box's four values; the peers compare something else, see DEFECTS",
    ),
    "fitnet_hint": Row(
        lambda v: losses.hint(*features(v)),
        lambda v: {"mean_over_elements": 1, "batchmean": v.teacher[0].numel()}[
            v.get("reduction", "mean_over_elements")
        ],
        "ours is the mean over elements; mmrazor sums over C·H·W",
    ),
    "at": Row(
        lambda v: losses.attention(*maps(v), power=v.get("p", 2)),
        lambda v: v.get("beta", 1.0) / (2 if v.get("reduction", "").endswith("/2") else 1),
        "ours is the mean over positions and samples; sseung has the paper's β/2 before it",
    ),
    "nst": Row(
        lambda v: losses.neuron_selectivity(v.student, v.teacher, v.get("kernel"), sigma=v.get("sigma")),
        lambda v: 1.0,
        "both are the mean over samples of the three means over pairs of channels",
    ),
    "fsp": Row(
        lambda v: losses.fsp(flow_pair(v, "student"), flow_pair(v, "teacher")),
        lambda v: {"mean_over_elements": 1 / flow_entries(v), "batchmean/2": 0.5}.get(v.get("reduction"), 1.0),
        "ours is the sum over the matrix's entries, as in the paper; RepDistiller and AberHu divide by them, sseung by 2",
    ),
    "vid": Row(gaussian, lambda v: 1.0, "both are the mean over all elements; the floor of the variance is the peer's"),
    "ft": Row(
        lambda v: losses.factor(v.student, v.teacher, v.get("p", 1)),
        lambda v: {"mean_over_elements": 1.0, "batchmean_of_norms": v.student[0].numel() ** (1 / v.get("p", 1))}[
            v.get("reduction")
        ],
        "ours takes the p-th power's mean over a factor's D elements: D^(1/p) for torchdistill's norm of p = 2",
    ),
    "ab": Row(
        lambda v: sum(
            weight * losses.activation_boundary(s, t, v.get("margin"))
            for weight, s, t in zip(v.get("layer_weights", [1.0]), *every_layer(v), strict=True)
        ),
        lambda v: {
            "sum": len(v.student),
            "batchmean": 1.0,
            "mean_over_elements": 1 / v.student[0].numel(),
            "sum/B*3/1000": 0.003,
        }[v.get("reduction", "batchmean")],
        "ours sums over elements, mean over samples; 3/1000 and the layers' weights are the method's, not the loss's",
    ),
    "ofd": Row(
        lambda v: losses.margin_relu(v.student, v.teacher, margin(v)),
        lambda v: {
            "sum": len(v.student),
            "batchmean": 1.0,
            "sum/B/1000": 1e-3,
            "mean_over_elements": 1 / v.student[0].numel(),
        }[v.get("reduction")],
        "ours is the sum over elements, mean over samples; the authors divide by samples and 1000 in their training script",
    ),
    "ofd_margin": Row(
        lambda v: margins(v.inputs["teacher_bn_weight"], v.inputs["teacher_bn_bias"]).float().to(v.dtype).sum(),
        lambda v: 1.0,
        "the authors keep each margin in float32",
    ),
    "reviewkd_hcl": Row(
        lambda v: sum(
            losses.review(x, v.inputs[name.replace("student", "teacher")])
            for name, x in v.inputs.items()
            if name.startswith("student_")
        ),
        lambda v: 1.0,
        "both are the weighted mean over levels of the mean over elements; peers with several layers sum over them",
    ),
    "rkd_distance": Row(
        lambda v: losses.rkd_distance(*embeddings(v)),
        lambda v: v.get("weight", 1.0),
        "both are the mean over all N² entries",
    ),
    "rkd_angle": Row(
        lambda v: losses.rkd_angle(*embeddings(v)),
        lambda v: v.get("weight", 1.0),
        "both are the mean over all N³ entries",
    ),
    "rkd": Row(
        lambda v: v.get("w_d") * losses.rkd_distance(*embeddings(v)) + v.get("w_a") * losses.rkd_angle(*embeddings(v)),
        lambda v: 1.0,
        "both are the weighted sum of the two",
    ),
    "dkd": Row(
        lambda v: losses.dkd(v.student, v.teacher, v.labels, v.get("alpha"), v.get("beta"), v.temperature),
        lambda v: len(v.student) if v.get("reduction").startswith("sum") else 1.0,
        "both are the mean over samples with T²; mmrazor's 'mean' is in effect the sum over them, N times it",
    ),
    "sp": Row(
        lambda v: losses.similarity(v.student, v.teacher),
        lambda v: 1.0,
        "both are the mean over all N² entries",
    ),
    "pkt": Row(
        lambda v: losses.probability(v.student, v.teacher),
        lambda v: 1.0,
        "both are the mean over all N² entries",
    ),
    "dist": Row(
        lambda v: losses.dist(*classes_last(v), v.get("beta"), v.get("gamma"), v.get("tau")),
        lambda v: 1.0,
        "both are the mean over samples and the mean over classes, times T²",
    ),
    "cwd": Row(
        lambda v: losses.channelwise(v.student, v.teacher, v.temperature),
        lambda v: 1.0,
        "both are the sum over positions, the mean over channels and samples, with T²",
    ),
    "crd": Row(
        contrast,
        lambda v: 1.0,
        "both are the sum over 1 + K and the mean over samples, of both networks; theirs has 1e-7 in its denominators",
    ),
    "cc": Row(
        lambda v: losses.correlation(v.student, v.teacher, v.get("gamma", 0.4), v.get("P_order", 2)),
        lambda v: 1.0,
        "both are the mean over all N² entries",
    ),
}


# --- theirs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Defect:
    """What a peer computes that is no constant multiple of ours; ``theirs`` applies it by hand."""

    reason: str
    applies: Callable[[Vector], bool]
    theirs: Callable[[Vector], Tensor]
    gradient_only: bool = False  # the loss is ours


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().mean()


def softened(v: Vector) -> tuple[Tensor, Tensor]:
    return F.log_softmax(v.student / v.temperature, -1), F.log_softmax(v.teacher / v.temperature, -1)


def weighted_soft_labels(v: Vector) -> Tensor:
    def hard(z: Tensor) -> Tensor:
        return F.cross_entropy(z, v.labels, reduction="none").detach()

    weights = 1 - torch.exp(-hard(v.student) / (hard(v.teacher) + 1e-7))
    samples = zip(v.student, v.teacher, strict=True)
    each = [losses.soft_cross_entropy(s[None], t[None], v.temperature) for s, t in samples]
    return (weights * torch.stack(each)).mean()


def mutual_with_epsilons(v: Vector) -> Tensor:
    own, peer, eps = v.student.softmax(-1), v.teacher.softmax(-1), v.get("eps")
    return (peer * torch.log(eps + peer / (own + eps))).sum(-1).mean()


def towards_more_than_one(student: Tensor, teacher: Tensor, temperature: float, eps: float) -> Tensor:
    target = (teacher / temperature).softmax(-1) + eps
    divergence = target * (target.log() - (student / temperature).log_softmax(-1))
    return temperature**2 * divergence.sum(-1).mean()


def symmetric(v: Vector) -> Tensor:
    def kl(a: Tensor, b: Tensor) -> Tensor:
        return losses.soft_target(a, b, temperature=v.temperature)

    return (kl(v.student, v.teacher) + kl(v.teacher, v.student)) / 2


def signed_attention(v: Vector) -> Tensor:
    q_s, q_t = (x.pow(v.get("p")).mean(1).flatten(1) for x in maps(v))
    return mean_square(F.normalize(q_s), F.normalize(q_t))


def attention_with_epsilon(v: Vector) -> Tensor:
    q_s, q_t = (x.abs().pow(v.get("p")).sum(1).flatten(1) for x in maps(v))
    return mean_square(*(q / (q.norm(dim=1, keepdim=True) + v.get("eps")) for q in (q_s, q_t)))


def attention_norms(v: Vector) -> Tensor:
    squares = [losses.attention(s[None], t[None], v.get("p")) for s, t in zip(*maps(v), strict=True)]
    positions = maps(v)[0][0, 0].numel()
    return (positions * torch.stack(squares)).clamp(min=torch.finfo(v.dtype).tiny).sqrt().mean()


def attention_with_channels(v: Vector) -> Tensor:
    return losses.attention(*(x.flatten(1, 2).unsqueeze(1) for x in maps(v)), power=v.get("p"))


def selectivity_without_teacher(v: Vector) -> Tensor:
    s, t, c = v.student, v.teacher, v.get("c")
    t_hat = F.normalize(t.flatten(2), dim=2)
    constant = (t_hat @ t_hat.mT + c).square().mean((1, 2)).sum()
    ours = losses.neuron_selectivity(s, t) + 2 * c * losses.neuron_selectivity(s, t, kernel="linear")
    return len(s) * ours - constant


def flow_column_norms(v: Vector) -> Tensor:
    flow_s, flow_t = (
        torch.einsum("bmhw,bnhw->bmn", *flow_pair(v, who)) / v.inputs[f"{who}_first"][0, 0].numel()
        for who in ("student", "teacher")
    )
    return (flow_s - flow_t).norm(dim=1).sum() / len(flow_s)


def factors_as_attention(v: Vector) -> Tensor:
    return losses.factor(*(x.abs().pow(v.get("p1")).mean(1) for x in (v.student, v.teacher)), p=v.get("p2"))


def factors_with_exploding_gradient(v: Vector) -> Tensor:
    return F.l1_loss(*(F.normalize(x.flatten(1)) for x in (v.student, v.teacher)))


def relative_distances(x: Tensor, floor: float, diagonal: float | None, eps: float = 0.0) -> Tensor:
    """Distances over their mean; ``floor`` on the squares; the mean leaves the diagonal out if that is set to 0."""
    d = (x[:, None] - x[None]).square().sum(-1).clamp(min=floor).sqrt()
    if diagonal is not None:
        d = d.masked_fill(torch.eye(len(x), dtype=torch.bool), diagonal)
    return d / (d[d > 0].mean() + eps)


def distances_with_epsilons(v: Vector) -> Tensor:
    psi = (relative_distances(x, v.get("clamp"), diagonal=0.0, eps=v.get("eps")) for x in embeddings(v))
    return v.get("weight", 1.0) * F.smooth_l1_loss(*psi)


def angle_of(s: Tensor, t: Tensor, normalize: Callable[[Tensor], Tensor]) -> Tensor:
    """The angles by all N² sides; a zero side has cosine 0, and the gradient that ``normalize`` gives it."""
    sides = (normalize(x[None] - x[:, None]) for x in (s, t))
    return F.smooth_l1_loss(*(side @ side.transpose(1, 2) for side in sides))


def distances_with_diagonal(v: Vector) -> Tensor:
    s, t = embeddings(v)
    distance = F.smooth_l1_loss(*(relative_distances(x, 1e-12, diagonal=None, eps=1e-8) for x in (s, t)))
    angle = angle_of(s, t, lambda side: side / side.square().sum(2, keepdim=True).clamp(min=1e-12).sqrt())
    return v.get("w_d") * distance + v.get("w_a") * angle


def angles_with_exploding_gradient(v: Vector) -> Tensor:
    s, t = embeddings(v)
    angle = angle_of(s, t, lambda side: F.normalize(side, dim=2))
    if v.method == "rkd_angle":
        return v.get("weight", 1.0) * angle
    return v.get("w_d") * losses.rkd_distance(s, t) + v.get("w_a") * angle


def has_duplicates(x: Tensor) -> bool:
    return len(x.unique(dim=0)) < len(x)


def similarity_by_sums(v: Vector) -> Tensor:
    grams = (flat @ flat.T for flat in (x.flatten(1) for x in (v.student, v.teacher)))
    return mean_square(*(F.normalize(gram, p=1) for gram in grams))


def neighbours_with_epsilon(v: Vector) -> Tensor:
    eps = v.get("eps")
    units = (x / (x.norm(dim=1, keepdim=True) + eps) for x in (v.student, v.teacher))
    p_s, p_t = (similar / similar.sum(1, keepdim=True) for similar in ((1 + x @ x.T) / 2 for x in units))
    return (p_t * torch.log((p_t + eps) / (p_s + eps))).mean()


def correlations_of_cosines(v: Vector) -> Tensor:
    def correlation(over: int) -> Tensor:
        p = ((z / v.get("tau")).softmax(1) for z in (v.student, v.teacher))
        return F.cosine_similarity(*(x - x.mean(over, keepdim=True) for x in p), dim=over, eps=1e-8).mean()

    return v.get("tau") ** 2 * (v.get("beta") * (1 - correlation(1)) + v.get("gamma") * (1 - correlation(0)))


def correlations_of_constants(v: Vector) -> Tensor:
    def correlation(over: int) -> Tensor:
        p_s, p_t = ((z / v.get("tau")).softmax(1) for z in (v.student, v.teacher))
        a, b = (x - x.mean(over, keepdim=True) for x in (p_s, p_t))
        return ((a * b).sum(over) / (a.norm(dim=over) * b.norm(dim=over) + 1e-8)).mean()

    return v.get("tau") ** 2 * (v.get("beta") * (1 - correlation(1)) + v.get("gamma") * (1 - correlation(0)))


def channels_by_squares(v: Vector) -> Tensor:
    if "spatial means" in v.text:
        return mean_square(v.student.mean((2, 3)), v.teacher.mean((2, 3)))
    positions = v.student[0, 0].numel()
    return positions * mean_square(*(x.flatten(2).softmax(2) for x in (v.student, v.teacher)))


def correlation_norm(v: Vector) -> Tensor:
    def correlations(x: Tensor) -> Tensor:
        gram = x @ x.T
        if v.get("kernel") == "bilinear":
            return gram
        series = sum((2 * v.get("gamma") * gram) ** p / math.factorial(p) for p in range(v.get("P_order") + 1))
        return math.exp(-2 * v.get("gamma")) * series

    pair = (x if v.get("kernel") == "bilinear" else F.normalize(x) for x in (v.student, v.teacher))
    k_s, k_t = map(correlations, pair)
    return (k_s - k_t).norm() / len(v.student) ** 2


def bounded_as_a_batch(v: Vector) -> Tensor:
    """One error for all boxes, which is asked for as a whole or not at all."""
    student, teacher, target = values(v)
    error, bound = mean_square(student, target), mean_square(teacher, target)
    return v.get("v") * error.where(error + v.get("margin") > bound, 0.0)


def bounded_by_distances(v: Vector) -> Tensor:
    """Distances that are not squared, with the margin on the student's side."""
    student, teacher, target = values(v)
    distance, bound = ((boxes - target).norm(dim=1) for boxes in (student, teacher))
    return distance.where(distance - v.get("margin") > bound, 0.0).mean()


def differences_of_neighbours(v: Vector) -> Tensor:
    difference = (v.student - v.teacher).abs()
    return (difference[:-1] * difference[1:]).sum(1).mean()


DEFECTS = [
    Defect(
        "nn.KLDivLoss() divides by the classes too, the labels' term does not: the soft share is 1/K of what it says",
        lambda v: v.method == "kd_hinton_with_ce" and v.get("reduction") == "mean_over_elements",
        lambda v: v.share * losses.soft_target(v.student, v.teacher, v.temperature) / v.classes + v.hard,
    ),
    Defect(
        "KD_Lib's default 'KD' is a mean squared error between probabilities, times T²",
        lambda v: v.get("loss_fn") == "MSELoss on softmax probabilities",
        lambda v: v.share * v.temperature**2 * mean_square(*(p.exp() for p in softened(v))) + v.hard,
    ),
    Defect(
        "KD_Lib's TAKD takes the mean squared error between log-probabilities, times T²",
        lambda v: v.get("loss_fn") == "MSELoss on log-softmax",
        lambda v: v.share * v.temperature**2 * mean_square(*softened(v)) + v.hard,
    ),
    Defect(
        "WSLD is another method: it weighs each sample's soft loss by how far the student is behind on the label",
        lambda v: v.method == "kd_soft_ce" and "exp(-CE_s" in v.text,
        weighted_soft_labels,
    ),
    Defect(
        "the authors' two epsilons inside the logarithm change the value where a probability is small",
        lambda v: v.method == "dml" and v.get("eps") is not None,
        mutual_with_epsilons,
    ),
    Defect(
        "the authors add 1e-7 to every probability of the target, whose sum is then no longer 1",
        lambda v: v.method == "one_kl" and v.get("target_eps") is not None,
        lambda v: towards_more_than_one(v.student, v.teacher, v.temperature, v.get("target_eps")),
    ),
    Defect(
        "the authors add 1e-7 to every probability of the ensemble",
        lambda v: v.method == "one_gated" and v.get("target_eps") is not None,
        lambda v: gated(v, lambda z, mean: towards_more_than_one(z, mean, v.temperature, v.get("target_eps"))),
    ),
    Defect(
        "sseung trains both networks on one symmetric divergence instead of each on its own KL",
        lambda v: v.method == "dml" and bool(v.get("symmetric")),
        symmetric,
    ),
    Defect(
        "RepDistiller and mdistiller raise features, not their absolute values, to the power: odd ones keep the sign",
        lambda v: v.method == "at" and v.get("p", 2) % 2 == 1 and "|f|" not in v.text,
        signed_attention,
    ),
    Defect(
        "AberHu adds 1e-6 to the norm; we divide by the larger of norm and 1e-12",
        lambda v: v.method == "at" and v.get("eps") is not None,
        attention_with_epsilon,
    ),
    Defect(
        "torchdistill's 'paper' mode is equation 2 to the letter: the norm of the difference, not its mean square",
        lambda v: v.method == "at" and v.get("reduction") == "batchmean_of_norms",
        attention_norms,
    ),
    Defect(
        "KD_Lib never averages the channels out, so it has no attention map",
        lambda v: v.method == "at" and "no channel reduction" in v.text,
        attention_with_channels,
    ),
    Defect(
        "torchdistill sums the lengths of the difference's columns, not their squares",
        lambda v: v.method == "fsp" and "column norms" in v.get("reduction", ""),
        flow_column_norms,
    ),
    Defect(
        "TuSimple leaves the constant teacher-teacher term out and sums over the batch; an offset c adds 2c times linear",
        lambda v: v.method == "nst" and "teacher-teacher term omitted" in v.text,
        selectivity_without_teacher,
    ),
    Defect(
        "RepDistiller's FT averages the channels out: the absolute error of attention maps, not of factors",
        lambda v: v.method == "ft" and v.get("p1") is not None,
        factors_as_attention,
    ),
    Defect(
        "F.normalize of an all-zero factor multiplies its gradient by 1e12; ours has none there",
        lambda v: v.method == "ft" and v.get("p1") is None and not v.student.flatten(1).any(1).all(),
        factors_with_exploding_gradient,
        gradient_only=True,
    ),
    Defect(
        "KD_Lib clamps squared distances at 1e-10, not 1e-12, and adds 1e-7 to their mean",
        lambda v: v.method == "rkd_distance" and v.get("eps") is not None,
        distances_with_epsilons,
    ),
    Defect(
        "sseung keeps the diagonal at 1e-6 > 0, so that the mean distance, plus 1e-8, runs over N² entries, not N (N − 1)",
        lambda v: v.method == "rkd" and "COUNTED" in v.text,
        distances_with_diagonal,
    ),
    Defect(
        "F.normalize of the zero side between duplicates multiplies its gradient by 1e12; ours has none there",
        lambda v: v.method in ("rkd", "rkd_angle") and "COUNTED" not in v.text and has_duplicates(v.student),
        angles_with_exploding_gradient,
        gradient_only=True,
    ),
    Defect(
        "torchdistill divides the rows of the similarities by the sum of their absolute values, not by their length",
        lambda v: v.method == "sp" and v.get("row_norm") == "L1",
        similarity_by_sums,
    ),
    Defect(
        "AberHu adds 1e-6 to lengths and probabilities; the authors, and we, 1e-7",
        lambda v: v.method == "pkt" and v.get("eps") != 1e-7,
        neighbours_with_epsilon,
    ),
    Defect(
        "torchdistill keeps each length above 1e-8; the authors, and we, add 1e-8 to their product",
        lambda v: v.method == "dist" and "torchdistill" in v.case["variant"],
        correlations_of_cosines,
    ),
    Defect(
        "where the student's probabilities do not vary, the epsilon of the authors divides its gradient; ours has none",
        lambda v: v.method == "dist" and not v.student.any() and "torchdistill" not in v.case["variant"],
        correlations_of_constants,
        gradient_only=True,
    ),
    Defect(
        "TorchDistiller's 'mse' is the squared difference of the softmaxes, without temperature, or of the means: no CWD",
        lambda v: v.method == "cwd" and v.get("divergence") == "mse",
        channels_by_squares,
    ),
    Defect(
        "torchdistill takes the norm over N² in place of the mean square; its bilinear kernel is the Gram matrix",
        lambda v: v.method == "cc" and v.get("reduction").startswith("Frobenius norm"),
        correlation_norm,
    ),
    Defect(
        "RepDistiller's CC multiplies |f_s − f_t| of neighbours in the batch, and so depends on their order",
        lambda v: v.method == "cc" and v.get("kernel") is None,
        differences_of_neighbours,
    ),
    Defect(
        "one gate for the whole batch: a box that is far better than the teacher's excuses one that is worse",
        lambda v: v.method == "chen_reg" and v.get("gate") == "whole batch",
        bounded_as_a_batch,
    ),
    Defect(
        "distances in place of their squares, and a margin that asks less of the student where the paper's asks more",
        lambda v: v.method == "chen_reg" and v.get("gate") == "per box",
        bounded_by_distances,
    ),
]


# --- the runs ---------------------------------------------------------------------------------------------------------


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    given = metafunc.config.getoption("--golden")
    folder = Path(given) if given else OWN
    index = folder / "index.json"
    if not index.is_file():
        raise pytest.UsageError(f"--golden {folder}: no index.json there")
    cases = json.loads(index.read_text())["cases"]
    if metafunc.function is test_a_defect_makes_a_difference:
        cases = [case for case in cases if case["input_set"] == "A" and defects(Vector(case, folder))]
    metafunc.parametrize("case", [Vector(case, folder) for case in cases], ids=[case["id"] for case in cases])


def defects(vector: Vector) -> list[Defect]:
    return [defect for defect in DEFECTS if defect.applies(vector)]


def row(case: Vector, foreign: bool) -> Row:
    if case.method in PARITY:
        return PARITY[case.method]
    if foreign:
        pytest.skip("not in limbeck yet")
    return pytest.fail(f"{case}: PARITY has no row for the method {case.method!r}, so nothing tests this vector")


def differentiate(loss: Tensor, vector: Vector) -> dict[str, Tensor]:
    names = list(vector.case["expected"]["grads"])
    if not names:
        return {}
    inputs = [vector.inputs[name] for name in names]
    return dict(zip(names, torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True), strict=True))


def off(vector: Vector, loss: Tensor, tolerance: dict[str, float | None], *, loss_only: bool = False) -> str:
    """What differs from the recorded numbers, in words; empty if nothing does."""
    expected = vector.case["expected"]
    value, theirs = loss.item(), vector.tensors[expected["loss"]].item()
    gradients = differentiate(loss, vector)
    if not all(x.isfinite().all() for x in (loss, *gradients.values())):
        return f"{vector}: loss {value} or its gradient is not finite"
    if tolerance["loss_rtol"] is not None and math.isfinite(theirs):
        allowed = tolerance["loss_atol"] + tolerance["loss_rtol"] * abs(theirs)
        if not abs(value - theirs) <= allowed:
            return f"{vector}: loss {value!r}, theirs {theirs!r}, differ by more than {allowed:.1e}"
    unchecked = vector.case["gradient_check"] in ("skip", "none") or tolerance["grad_rel_to_max"] is None
    largest = max((vector.tensors[kept].abs().max().item() for kept in expected["grads"].values()), default=0.0)
    for name, ours in {} if loss_only or unchecked else gradients.items():
        theirs = vector.tensors[expected["grads"][name]].to(ours.dtype)
        allowed = tolerance["grad_atol"] + tolerance["grad_rel_to_max"] * theirs.abs().max().item()
        if theirs.abs().max().item() < 1e-12 * largest:  # 0 but for rounding, as before a batch norm
            allowed = max(allowed, torch.finfo(ours.dtype).eps * largest)
        if not (worst := (ours - theirs).abs().max().item()) <= allowed:
            return f"{vector}: ∂loss/∂{name} differs by {worst:.1e}, more than {allowed:.1e}"
    return ""


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_loss_and_gradients(case: Vector, dtype: torch.dtype, pytestconfig: pytest.Config) -> None:
    ours = row(case, foreign=bool(pytestconfig.getoption("--golden")))
    vector = Vector(case.case, case.folder, dtype)
    if vector.method.startswith("rkd") and len(vector.student) == 1:
        with pytest.raises(ValueError, match="at least 2 samples"):  # the peers give 0 or NaN
            ours(vector)
        return
    as_computed = str(dtype).endswith(vector.case["compute_dtype"])
    tolerance = vector.case["tolerance"]["same_dtype_as_computed" if as_computed else "library_in_float32"]
    found = defects(vector)
    assert len(found) <= 1, f"{vector}: several defects apply: {[defect.reason for defect in found]}"
    if found and math.isfinite(vector.tensors["expected_loss"].item()):
        assert not (message := off(vector, found[0].theirs(vector), tolerance)), message
    if not found or found[0].gradient_only:
        assert not (message := off(vector, ours(vector), tolerance, loss_only=bool(found))), message


def test_a_defect_makes_a_difference(case: Vector) -> None:
    tolerance = case.case["tolerance"]["same_dtype_as_computed"]
    assert off(case, PARITY[case.method](case), tolerance), f"{case}: the peer agrees with us after all"


def test_every_vector_of_ours_is_there() -> None:
    files = {case["file"] for case in json.loads((OWN / "index.json").read_text())["cases"]}
    assert files == {path.name for path in OWN.glob("*.safetensors")}
