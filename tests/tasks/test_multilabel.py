"""Several labels a sample: its loss, its metrics, how they are softened, and what is wrong with labels."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import multilabel
from limbeck.losses import binary_cross_entropy
from limbeck.verbs.check import check

N, FEATURES, LABELS = 60, 6, 4
DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(N, FEATURES, generator=DRAW)
RULE = torch.randn(LABELS, FEATURES, generator=DRAW)
TRUE = (INPUTS @ RULE.T > 0).float()


def net(outputs: int = LABELS, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, outputs))


def loaders(labels: Tensor, inputs: Tensor = INPUTS) -> tuple[Any, Any]:
    batches = list(zip(inputs.split(20), labels.split(20), strict=True))
    return batches, batches


def fit(method: Any, labels: Tensor = TRUE) -> limbeck.Result:
    return limbeck.fit(method, loaders(labels), epochs=1, accelerator="cpu", progress=False)


def flagged(labels: Tensor = TRUE, student: nn.Module | None = None) -> dict[str, tuple[str, str]]:
    checkup = check(limbeck.plain(student or net(), task=multilabel), loaders(labels))
    ours = [one for one in checkup.findings if one.name.startswith(("labels", "student")) and one.status != "ok"]
    return {one.name: (one.status, one.message) for one in ours}


def partly_unknown() -> Tensor:
    labels = TRUE.clone()
    labels[::7, 1], labels[5], labels[3, 0] = -100, -100, -100
    return labels


# loss and metrics ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_known_labels() -> None:
    z, y = torch.randn(N, LABELS, generator=DRAW).double(), partly_unknown()
    naive = [
        -math.log(z[n, k].sigmoid().item() if y[n, k] == 1 else 1 - z[n, k].sigmoid().item())
        for n in range(N)
        for k in range(LABELS)
        if y[n, k] != -100
    ]
    assert binary_cross_entropy(z, y).item() == pytest.approx(sum(naive) / len(naive), rel=1e-9)
    assert binary_cross_entropy(z, y.long()) == binary_cross_entropy(z, y)
    assert binary_cross_entropy(z, torch.full_like(y, -100)) == 0
    torch.testing.assert_close(
        binary_cross_entropy(z, TRUE.double()), F.binary_cross_entropy_with_logits(z, TRUE.double())
    )


@pytest.mark.parametrize("cast", [torch.float32, torch.int64])
def test_metrics_are_scikit_learns(cast: torch.dtype) -> None:
    """Over batches of which one has all of its logits in [0, 1], as probabilities have; unknown labels do not count."""
    z, y = torch.randn(N, LABELS, generator=DRAW), partly_unknown()
    z[:20] = torch.rand(20, LABELS, generator=DRAW)
    metrics = multilabel.metrics(z)
    for part in range(0, N, 20):
        metrics.update(z[part : part + 20], y[part : part + 20].to(cast))
    got, known = metrics.compute(), [y[:, k] != -100 for k in range(LABELS)]
    columns = [(y[mask, k].numpy(), z[mask, k].numpy()) for k, mask in enumerate(known)]
    precision = [average_precision_score(labels, scores) for labels, scores in columns]
    assert got["mAP"].item() == pytest.approx(sum(precision) / LABELS, rel=1e-5)
    f1 = [f1_score(labels, scores > 0) for labels, scores in columns]
    assert got["F1"].item() == pytest.approx(sum(f1) / LABELS, rel=1e-5)
    assert got["loss"].item() == pytest.approx(binary_cross_entropy(z, y).item(), rel=1e-5)


def test_a_label_that_is_never_true_has_no_average_precision() -> None:
    z, y = torch.randn(N, LABELS, generator=DRAW), TRUE.clone()
    y[:, 1], y[:, 2] = 0, -100
    metrics, rest = multilabel.metrics(z), multilabel.metrics(z[:, [0, 3]])
    metrics.update(z, y)
    rest.update(z[:, [0, 3]], y[:, [0, 3]])
    assert metrics.compute()["mAP"] == rest.compute()["mAP"]
    metrics.reset()
    metrics.update(z, torch.full_like(y, -100))
    assert metrics.compute()["mAP"] == 0


def test_a_single_label() -> None:
    z, y = torch.randn(N, 1, generator=DRAW), TRUE[:, :1]
    metrics = multilabel.metrics(z)
    metrics.update(z, y)
    assert metrics.compute()["mAP"].item() == pytest.approx(average_precision_score(y[:, 0], z[:, 0]), rel=1e-5)
    fit(limbeck.kd(net(1), net(1, 1), task=multilabel), y)


# distillation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_a_bernoulli_a_label(temperature: float) -> None:
    """T² KL(Bernoulli_t ‖ Bernoulli_s), mean over samples and labels; its gradient is T (p_s − p_t) / (N K)."""
    student, teacher = net().double(), net(seed=1).double().eval()
    method = limbeck.kd(student, teacher, temperature=temperature, alpha=1.0, task=multilabel)
    z_s, z_t = student(INPUTS.double()), teacher(INPUTS.double()).detach()
    p_s, p_t = (z_s / temperature).sigmoid(), (z_t / temperature).sigmoid()
    naive = p_t * (p_t / p_s).log() + (1 - p_t) * ((1 - p_t) / (1 - p_s)).log()
    z_s.retain_grad()
    scene = {"student": {"": z_s}, "teacher": {"": z_t}, "mask": None, "target": TRUE}
    soft = method.objective(scene)["soft"].value
    torch.testing.assert_close(soft, temperature**2 * naive.mean())
    soft.backward()
    torch.testing.assert_close(z_s.grad, temperature * (p_s - p_t).detach() / (N * LABELS))


def test_kd_learns_what_the_teacher_knows() -> None:
    teacher = nn.Linear(FEATURES, LABELS, bias=False)
    teacher.weight.data = 3 * RULE
    assert limbeck.evaluate(teacher, loaders(TRUE)[1], multilabel)["mAP"] == pytest.approx(1)
    nothing = torch.full_like(TRUE, -100)
    method = limbeck.kd(net(), teacher, alpha=1.0, task=multilabel)
    result = limbeck.fit(method, (loaders(nothing)[0], loaders(TRUE)[1]), epochs=30, accelerator="cpu", progress=False)
    assert result.metrics["val/student/mAP"] > 0.95


def test_other_outputs_than_the_teachers() -> None:
    with pytest.raises(
        ValueError, match=r"logits: student and teacher must have the same shape, got \(20, 4, 2\) and \(20, 7, 2\)"
    ):
        fit(limbeck.kd(net(), net(7), task=multilabel))
    assert fit(limbeck.rkd(net(), net(7), task=multilabel)).finished  # which compares embeddings


# what is wrong with labels -------------------------------------------------------------------------------------------


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert flagged() == {}
    assert flagged(partly_unknown()) == {}
    assert flagged(0.1 + 0.8 * TRUE) == {}  # soft labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.arange(N) % LABELS, r"of shape \(20,\) of integers: a class a sample\? task=limbeck.classification"),
        (TRUE[:, 0], r"a label a sample is \(N, 1\), target=lambda batch: batch\[1\].unsqueeze\(-1\)"),
        (TRUE[:, :3], "make it with 3 outputs, one a label"),
        (2 * TRUE, "labels are neither true nor false, the first is 2"),
        (-TRUE, "labels are neither true nor false, the first is -1"),
        (torch.full_like(TRUE, math.nan), "labels are neither true nor false, the first is nan"),
    ],
)
def test_labels_that_are_wrong(labels: Tensor, message: str) -> None:
    ((status, told),) = flagged(labels).values()
    assert status == "failed"
    assert re.search(message, told)
    with pytest.raises(ValueError, match=message):
        fit(limbeck.plain(net(), task=multilabel), labels)
    with pytest.raises(ValueError, match=message):
        limbeck.distill(net(), None, loaders(labels), "plain", task=multilabel, epochs=1, progress=False)


def test_a_label_that_says_nothing() -> None:
    labels = TRUE.clone()
    labels[:, 1], labels[:, 3] = 0, 1
    status, told = flagged(labels)["labels"]
    assert status == "warning"
    assert "the labels [1, 3] are always true or never" in told
    assert fit(limbeck.plain(net(), task=multilabel), labels).finished


def test_answers_that_are_probabilities() -> None:
    ends = nn.Sequential(net(), nn.Sigmoid())
    status, told = flagged(student=ends)["student answers"]
    assert status == "warning"
    assert "logits are meant" in told
