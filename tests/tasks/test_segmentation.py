"""A class for every pixel: its loss and metrics, what methods make of it, what is wrong with masks, and its page."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import Method, Stage, methods, segmentation
from limbeck.core.exhibits import Bars, Gallery, Matrix, Note, Table
from limbeck.core.method import assign, parameters, play
from limbeck.engine.assemble import assemble
from limbeck.engine.observe import observe
from limbeck.tasks.segmentation import overlaps, pixel_cross_entropy, resized, telling
from limbeck.verbs.check import check

CLASSES, IGNORED, HEIGHT, WIDTH = 4, 9, 12, 16
TASK = segmentation(ignore=IGNORED)
ROAD = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1], [-1, -1, -1]])


class Segmenter(nn.Module):
    """As torchvision's: maps at the images' size in a dict, and an auxiliary one."""

    def __init__(self, width: int = 4, seed: int = 0, classes: int = CLASSES) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.high = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.ReLU()
        )
        self.classifier = nn.Conv2d(2 * width, classes, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        scores = self.classifier(self.high(self.low(images)))
        return {"out": F.interpolate(scores, images.shape[2:], mode="bilinear"), "aux": scores}


class Knowing(nn.Module):
    """Knows the classes by their colours."""

    def __init__(self, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.colours = nn.Parameter(ROAD[list(order)])

    def forward(self, images: Tensor) -> Tensor:
        return -5 * (images[:, None] - self.colours[:, :, None, None]).square().sum(2)


def scenes(seed: int = 0, count: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Bands of classes in their colours; at the upper border pixels have no label."""
    draw = torch.Generator().manual_seed(seed)
    phase = torch.randint(12, (count, 1, 1), generator=draw)
    masks = (torch.arange(HEIGHT)[:, None] + torch.zeros(WIDTH, dtype=torch.long) + phase) // 3 % CLASSES
    images = ROAD[masks].movedim(-1, 1) + 0.3 * torch.randn(count, 3, HEIGHT, WIDTH, generator=draw)
    masks[:, :2] = IGNORED
    return images, masks, torch.arange(count) + count * seed


BATCHES = [scenes(seed) for seed in range(6)]
LOADERS = BATCHES[:4], BATCHES[4:5], BATCHES[5:]


def fit(method: Any, data: Any = LOADERS, **options: Any) -> limbeck.Result:
    return limbeck.fit(method, data, **{"epochs": 1, "accelerator": "cpu", "progress": False, **options})


# loss and metrics ----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_labelled_pixels() -> None:
    draw = torch.Generator().manual_seed(0)
    z, y = torch.randn(2, 3, 5, CLASSES, generator=draw).double(), torch.randint(CLASSES, (2, 3, 5), generator=draw)
    y[0, 1], y[1, 2, 3] = -100, -100
    naive = [
        -math.log(z[n, row, column].softmax(0)[y[n, row, column]].item())
        for n in range(2)
        for row in range(3)
        for column in range(5)
        if y[n, row, column] != -100
    ]
    assert pixel_cross_entropy(z, y).item() == pytest.approx(sum(naive) / len(naive), rel=1e-9)


def test_ignored_pixels_alone_teach_nothing() -> None:
    """0 and no NaN: of the loss, of its gradient, and of what is measured."""
    z, y = torch.randn(2, 3, 5, CLASSES, requires_grad=True), torch.full((2, 3, 5), -100)
    loss = pixel_cross_entropy(z, y)
    (slope,) = torch.autograd.grad(loss, z)
    assert loss == 0
    assert not slope.any()
    x, masks, ids = scenes()
    nothing = (x, torch.full_like(masks, IGNORED), ids)
    measured = limbeck.evaluate(Segmenter(), [nothing], TASK)
    assert (measured["mIoU"], measured["pixel_accuracy"]) == (0, 0)
    student = Segmenter()
    before = copy.deepcopy(student.classifier.state_dict())
    method = limbeck.plain(student, task=TASK)
    logs = play(method, nothing, limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.1)))
    assert logs["student/hard"] == 0
    assert all(torch.equal(value, before[name]) for name, value in student.classifier.state_dict().items())


def test_the_mean_overlap_by_hand() -> None:
    """Of one table of all pixels, not the mean of samples' or batches'; a class that is nowhere does not count."""
    said = torch.tensor([[[0, 0, 1], [1, 1, 1]], [[2, 2, 2], [0, 2, 0]]])
    true = torch.tensor([[[0, 1, 1], [1, 1, -100]], [[2, 2, 0], [0, 1, 0]]])
    # class 0: hits 3, said 4, true 4: 3 / 5; class 1: hits 3, said 3, true 5: 3 / 5; class 2: hits 2, said 4, true 2: 2 / 4
    answers = F.one_hot(said, CLASSES).float()
    metrics = TASK.metrics(answers)
    for sample in range(2):
        metrics.update(answers[sample : sample + 1], true[sample : sample + 1])
    got = metrics.compute()
    assert got["mIoU"].item() == pytest.approx((3 / 5 + 3 / 5 + 2 / 4) / 3)
    assert got["pixel_accuracy"].item() == pytest.approx(8 / 11)
    assert got["loss"].item() == pytest.approx(pixel_cross_entropy(answers, true).item())
    counts = torch.tensor([[3, 0, 1, 0], [1, 3, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(overlaps(counts), torch.tensor([0.6, 0.6, 0.5, torch.nan]), equal_nan=True)


def test_answers_coarser_than_the_labels_are_made_larger() -> None:
    """SegFormer's: loss and metrics are those of the resized scores."""
    x, y, ids = scenes()
    small = replace(TASK, output=lambda out: out["aux"].movedim(1, -1))
    net = Segmenter().eval()
    assert limbeck.evaluate(net, [(x, y, ids)], small) == limbeck.evaluate(net, [(x, y, ids)], TASK)


def test_targets_are_left_as_they_are() -> None:
    _, y, _ = scenes()
    assert (TASK.target((None, y)) == -100).sum() == (y == IGNORED).sum() > 0
    assert (y == IGNORED).any()
    assert segmentation(IGNORED) is TASK
    assert segmentation() is segmentation(ignore=255)


# distillation --------------------------------------------------------------------------------------------------------


def test_kd_is_the_mean_over_all_pixels() -> None:
    """T² KL, by hand, also where there is no label: the teacher knows those."""
    x, y, ids = BATCHES[0]
    student, teacher = Segmenter(4, 0).double(), Segmenter(8, 1).double().eval()
    z_s, z_t = copy.deepcopy(student)(x.double())["out"], teacher(x.double())["out"]
    total = 0.0
    for n in range(len(x)):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                p_t, p_s = ((z[n, :, row, column] / 2).softmax(0).tolist() for z in (z_t, z_s))
                total += 4 * sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True))
    method = limbeck.kd(student, teacher, temperature=2.0, task=TASK)
    logs = play(method, (x.double(), y, ids), limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))
    assert logs["student/soft"] == pytest.approx(total / (len(x) * HEIGHT * WIDTH), rel=1e-6)  # logs are float32
    assert logs["student/hard"] == pytest.approx(F.cross_entropy(z_s, y, ignore_index=IGNORED).item(), rel=1e-6)


def test_a_mask_for_labelled_pixels_alone() -> None:
    x, y, ids = BATCHES[0]
    labelled = replace(TASK, mask=lambda batch: TASK.target(batch) != -100)
    other = (x, torch.full_like(y, IGNORED), ids)
    logs = []
    for batch in ((x, y, ids), other):
        method = limbeck.kd(Segmenter(4, 0), Segmenter(8, 1), task=labelled)
        logs.append(play(method, batch, limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01))))
    assert logs[0]["student/soft"] > 0
    assert logs[1]["student/soft"] == 0
    wrong = replace(TASK, mask=lambda batch: torch.ones(4, 6, 8))
    method = limbeck.kd(Segmenter(4, 0), Segmenter(8, 1), task=wrong)
    with pytest.raises(ValueError, match=r"the mask and the positions: .* got \(4, 12, 16\) and \(4, 6, 8\)"):
        play(method, (x, y, ids), limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))


WORKS = {
    "ab",
    "adversarial",
    "at",
    "ban",
    "cwd",
    "dekd",
    "dist",
    "dkd",
    "dml",
    "fitnets",
    "fsp",
    "ft",
    "kd",
    "kpn",
    "logits",
    "ls",
    "mgd",
    "mimic",
    "nst",
    "plain",
    "rekd",
    "review",
    "sp",
    "takd",
    "tfkd_reg",
    "tfkd_self",
    "vid",
    "weights",
    "weights_outputs",
}
REFUSED = {
    "bounded": "bounded compares errors of values",
    "byot": "cannot be cut after 'low'",
    "cc": "no linear layer whose input could serve as embedding",
    "crd": "no linear layer whose input could serve as embedding",
    "embedding": "no linear layer whose input could serve as embedding",
    "embedding_table": "no nn.Embedding",
    "gradient": r"that of one class a sample: logits \(N, K\) and targets \(N\), got",
    "jacobian": r"logits must be \(N, K\) and targets class indices",
    "ofd": "no features before a ReLU",
    "one": "cannot be cut after 'low'",
    "pkt": "no linear layer whose input could serve as embedding",
    "rkd": "no linear layer whose input could serve as embedding",
}
"""What needs an embedding takes a layer by name; the others have no meaning for pixels, or need other networks."""


def trained(name: str, **options: Any) -> bool:
    """Play two batches of each stage; whether the student moved."""
    networks: dict[str, Callable[[], Any]] = {
        "dml": lambda: [Segmenter(6, 1)],
        "fsp": lambda: Segmenter(4, 1),
        "rekd": lambda: Segmenter(3, 1),
        **dict.fromkeys(("plain", "ls", "one", "byot", "tfkd_reg", "tfkd_self"), lambda: None),
    }
    needed: dict[str, dict[str, Any]] = {"takd": {"assistants": Segmenter(5, 2)}, "crd": {"queue": 16}}
    teacher = networks.get(name, lambda: Segmenter(6, 1))()
    method, moved = (
        assemble(name, Segmenter(4), teacher, BATCHES[0][0], needed.get(name, {}) | options, task=TASK),
        False,
    )
    for stage in [Stage(method)] if isinstance(method, Method) else method:
        before = {key: p.detach().clone() for key, p in stage.method.named_parameters()}
        optimizers = assign(parameters(stage.method, stage.trains), lambda own: torch.optim.SGD(own, 0.01))
        for batch in BATCHES[:2]:
            play(stage.method, batch, optimizers)  # raises where a term is not finite
        moved = any(not torch.equal(p, before[key]) for key, p in stage.method.named_parameters())
    return moved


def test_the_table_has_every_method_once() -> None:
    assert sorted([*WORKS, *REFUSED]) == sorted(methods.__all__)


@pytest.mark.parametrize("name", sorted(WORKS))
def test_it_works_on_pixels_or_maps(name: str) -> None:
    assert trained(name)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_it_is_refused_in_words(name: str) -> None:
    with pytest.raises(ValueError, match=REFUSED[name]):
        trained(name)


@pytest.mark.parametrize("name", ["cc", "pkt", "rkd"])
def test_what_needs_an_embedding_takes_a_layer(name: str) -> None:
    assert trained(name, layer="high")


def test_cwd_on_score_maps() -> None:
    """As its authors': each class a channel, at the images' size and at the network's own."""
    assert trained("cwd", layers=((":out", ":out"),))
    assert trained("cwd", layers=((":aux", ":aux"),))


def test_the_auxiliary_output_is_trained_by_a_term() -> None:
    student = Segmenter()
    aux = limbeck.on(lambda maps, y: TASK.loss(maps.movedim(1, -1), y), limbeck.S[":aux"], limbeck.Y, name="aux")
    method = limbeck.Distill(student, None, TASK.hard + 0.5 * aux, TASK)
    logs = play(method, BATCHES[0], limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))
    assert logs["student/aux.weighted"] == pytest.approx(0.5 * logs["student/hard"])


def test_a_teacher_of_finer_maps() -> None:
    coarse = replace(TASK, output=lambda out: out["aux"].movedim(1, -1))
    with pytest.raises(ValueError, match=r"got \(4, 6, 8, 4\) and \(4, 12, 16, 4\)"):
        fit(limbeck.kd(Segmenter(), limbeck.Frozen(Segmenter(8, 1), output=TASK.output), task=coarse))
    teacher = limbeck.Frozen(Segmenter(8, 1), output=lambda out: resized(TASK.output(out), (6, 8)))
    assert fit(limbeck.kd(Segmenter(), teacher, task=coarse)).finished


# what is wrong with masks --------------------------------------------------------------------------------------------


def flagged(
    change: Callable[[Tensor], Tensor] = lambda masks: masks,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    task: limbeck.Task = TASK,
) -> dict[str, tuple[str, str]]:
    batches = [(x, change(y), ids) for x, y, ids in BATCHES]
    student = student or Segmenter()
    method = limbeck.plain(student, task=task) if teacher is None else limbeck.kd(student, teacher, task=task)
    checkup = check(method, (batches[:4], batches[4:5]))
    ours = ("labels", "masks", "student", "teacher classes", "teacher answers")
    found = [one for one in checkup.findings if one.name.startswith(ours) and one.status != "ok"]
    return {one.name: (one.status, one.message) for one in found}


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    assert flagged() == {}
    assert flagged(teacher=Knowing()) == {}


def with_class(value: int) -> Callable[[Tensor], Tensor]:
    return lambda masks: masks.index_fill(1, torch.tensor([5]), value)


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        (with_class(11), "labels", r"between 0 and 11, of 4 classes: 11 is outside; .*segmentation\(ignore=11\)"),
        (with_class(-1), "labels", "between -1 and 3, of 4 classes: -1 is outside"),
        (
            lambda masks: masks[:, :10, :14],
            "masks",
            r"the images are 12x16 and the masks 10x14: .* to the nearest class",
        ),
        (lambda masks: masks[:, None], "student outputs", r"int64 \(N, H, W\); got torch.int64 \(4, 1, 12, 16\)"),
        (lambda masks: masks.float(), "student outputs", r"int64 \(N, H, W\); got torch.float32 \(4, 12, 16\)"),
        (lambda masks: masks[:, 0, 0], "student outputs", r"int64 \(N, H, W\); got torch.int64 \(4,\)"),
    ],
    ids=["void", "negative", "another size", "a channel", "floats", "a class a sample"],
)
def test_masks_that_are_wrong(change: Callable[[Tensor], Tensor], name: str, message: str) -> None:
    status, told = flagged(change)[name]
    assert status == "failed"
    assert re.search(message, told)
    batches = [(x, change(y), ids) for x, y, ids in BATCHES]
    with pytest.raises(ValueError, match=message):
        fit(limbeck.plain(Segmenter(), task=TASK), (batches[:4], batches[4:]))


def test_a_mask_of_another_size_is_refused_in_a_loop_of_ones_own() -> None:
    x, y, ids = BATCHES[0]
    method = limbeck.plain(Segmenter(), task=TASK)
    optimizers = limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01))
    with pytest.raises(ValueError, match="the answers are maps of 12x16 and the masks 12x10, of another shape"):
        play(method, (x, y[:, :, :10], ids), optimizers)


def test_no_label_at_all() -> None:
    status, told = flagged(lambda masks: torch.full_like(masks, IGNORED))["labels"]
    assert status == "warning"
    assert told.startswith("no pixel has a label")


@pytest.mark.parametrize(
    ("student", "status", "message"),
    [
        (Segmenter(classes=3), "failed", "3 is outside; .* Else make the networks with more outputs"),
        (
            nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES)),
            "failed",
            r"\(N, K, H, W\); got a tensor of shape \(4, 4\)",
        ),
        (
            nn.Sequential(Knowing(), nn.Softmax(1)),
            "warning",
            "answers with probabilities, which add up to 1 at each pixel",
        ),
    ],
    ids=["too few classes", "a class a sample", "probabilities"],
)
def test_answers_that_are_wrong(student: nn.Module, status: str, message: str) -> None:
    student(torch.zeros(2, 3, HEIGHT, WIDTH))
    ((found, told),) = flagged(student=student).values()
    assert found == status
    assert re.search(message, told)


def test_classes_on_the_wrong_axis() -> None:
    task = replace(TASK, output=lambda out: out["out"])
    status, told = flagged(task=task)["student outputs"]
    assert status == "failed"
    assert "the answers are maps of 4x12 and the masks 12x16" in told


def test_a_teacher_with_permuted_classes() -> None:
    status, told = flagged(teacher=Knowing((0, 2, 3, 1)))["teacher classes"]
    assert status == "failed"
    assert "with its output 1 is 2, 2 is 3, 3 is 1 it names" in told
    teacher = limbeck.Frozen(Knowing((0, 2, 3, 1)), classes=(0, 3, 1, 2))
    assert flagged(teacher=teacher) == {}


def test_a_teacher_that_knows_nothing() -> None:
    always = Segmenter(8, 1)
    nn.init.constant_(always.classifier.weight, 0.0)
    status, told = flagged(teacher=always)["teacher classes"]
    assert status == "warning"
    assert "who names the largest class everywhere" in told


# what is shown -------------------------------------------------------------------------------------------------------


def shown(teacher: nn.Module | None = None, **students: nn.Module) -> list[Any]:
    names = ("sky", "road", "tree", "car")
    return observe(teacher, students or {"student": Segmenter()}, BATCHES[4:], TASK, classes=names, count=True)


def test_masks_of_each_network_are_shown() -> None:
    scores, colours = (one for one in shown(Knowing()) if isinstance(one, Gallery))
    assert scores.columns == ("image", "true", "teacher", "student")
    image, true, teacher, student = scores.rows[0]
    assert all(each is not None and each.shape == (HEIGHT, WIDTH, 3) for each in (image, true, teacher, student))
    assert (true[:2] == 235).all()  # what has no label
    assert (teacher[2:] == true[2:]).mean() > 0.9
    assert scores.labels[0][2].endswith("% right")
    assert {word for row in colours.labels for word in row} == {"sky", "road", "tree", "car", ""}


def test_overlaps_by_class_are_those_of_the_whole_table() -> None:
    exhibits = shown(Knowing())
    (bars,) = (one for one in exhibits if isinstance(one, Bars))
    (table,) = (one for one in exhibits if isinstance(one, Table))
    assert bars.networks == ("teacher", "student")
    x, y = (torch.cat([batch[at] for batch in BATCHES[4:]]) for at in (0, 1))
    net = Segmenter().eval()
    said = net(x)["out"].argmax(1)
    for k, name in enumerate(bars.labels):
        inside, either = ((said == k) & (y == k)).sum(), (((said == k) | (y == k)) & (y != IGNORED)).sum()
        assert bars.values[1, 0, k] == pytest.approx(100 * inside.item() / either.item(), rel=1e-5)
        assert table.rows[k][0] == name
    mean = limbeck.evaluate(net, BATCHES[4:], TASK)["mIoU"]
    assert table.rows[-1][0] == "mean"
    assert float(table.rows[-1][3]) == pytest.approx(100 * mean, abs=0.06)


def test_confusions_are_counted_in_pixels() -> None:
    (matrix,) = (one for one in shown() if isinstance(one, Matrix))
    assert matrix.unit == "pixels"
    assert matrix.counts.sum() == sum(int((y != IGNORED).sum()) for _, y, _ in BATCHES[4:])


def test_without_masks_there_is_a_note() -> None:
    classes = [(x, y[:, 5, 5], ids) for x, y, ids in BATCHES]
    (note,) = observe(None, {"student": Segmenter()}, classes, TASK)
    assert isinstance(note, Note)


def test_telling_samples() -> None:
    student, teacher = torch.tensor([0.9, 0.5, 0.7, 0.6, 0.8]), torch.tensor([0.9, 0.6, 0.7, 0.9, 0.7])
    assert telling(teacher, student) == {
        2: "middling",
        3: "the teacher is furthest ahead",
        1: "hardest",
    }
    assert telling(None, student) == {2: "middling", 1: "hardest"}
    assert telling(student, student) == {2: "middling", 1: "hardest"}


# end to end ----------------------------------------------------------------------------------------------------------


def test_it_trains_and_learns_from_unlabelled_pixels(tmp_path: Path, reports: None) -> None:
    nothing = [(x, torch.full_like(y, IGNORED), ids) for x, y, ids in BATCHES[:4]]
    method = limbeck.kd(Segmenter(8), Knowing(), alpha=1.0, task=TASK)
    data = (nothing, *LOADERS[1:])
    result = fit(method, data, epochs=30, optimizer=lambda own: torch.optim.Adam(own, 0.01), run_dir=tmp_path)
    assert result.metrics["test/student/mIoU"] > 0.8
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("What each pixel is", "Intersection over union by class", "What it confuses"):
        assert f">{title}<" in page
    assert "pixels" in page


def test_it_is_compared(tmp_path: Path) -> None:
    comparison = limbeck.compare(
        ["kd"], Segmenter, Knowing(), LOADERS, task=TASK, epochs=1, seeds=1, run_dir=tmp_path, accelerator="cpu"
    )
    assert comparison.candidates[-1].score.name == "mIoU"
    assert "What each pixel is" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_torchvisions_lraspp_as_it_is() -> None:
    from torchvision.models.segmentation import lraspp_mobilenet_v3_large

    torch.manual_seed(0)
    net = lraspp_mobilenet_v3_large(num_classes=CLASSES, weights=None, weights_backbone=None)
    x, y, ids = (torch.cat([batch[at] for batch in BATCHES[:2]]) for at in range(3))
    large = F.interpolate(x, scale_factor=4), y.repeat_interleave(4, 1).repeat_interleave(4, 2), ids
    method = limbeck.kd(net, Knowing(), task=TASK).train()
    logs = play(method, large, limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))
    assert logs["student/soft"] > 0
    assert 0 <= limbeck.evaluate(net, [large], TASK)["mIoU"] <= 1


def test_transformers_segformer_as_it_is() -> None:
    """Its logits are at a quarter of the size."""
    transformers = pytest.importorskip("transformers")

    def segformer(width: int) -> nn.Module:
        torch.manual_seed(width)
        sizes = {"hidden_sizes": [width, width, 2 * width, 2 * width], "depths": [1, 1, 1, 1], "decoder_hidden_size": 8}
        config = transformers.SegformerConfig(num_labels=CLASSES, num_attention_heads=[1, 1, 1, 1], **sizes)
        return transformers.SegformerForSemanticSegmentation(config)

    large = [
        (F.interpolate(x, scale_factor=4), y.repeat_interleave(4, 1).repeat_interleave(4, 2), ids)
        for x, y, ids in BATCHES
    ]
    student = segformer(4)
    assert TASK.feed(student, large[0][0]).shape == (4, HEIGHT, WIDTH, CLASSES)
    method = limbeck.kd(student, segformer(8), task=TASK)
    assert fit(method, (large[:2], large[4:5])).finished
    layers = (("decode_head.batch_norm", "decode_head.batch_norm"),)
    method = limbeck.cwd(student, segformer(8), layers=layers, example=large[0][0], task=TASK)
    play(method, large[0], limbeck.optimizers(method, lambda own: torch.optim.SGD(own, 0.01)))
