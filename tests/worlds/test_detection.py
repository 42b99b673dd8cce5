"""A world of detection, as a later issue would build it: `chen` on a Faster R-CNN equals a loop by hand."""

from __future__ import annotations

import copy
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from chen_method import bounded_regression, chen
from detection_task import detection
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.transforms import v2
from world_runs import Loader, checked, difference, kept, moved, play, trained

import limbeck
from limbeck import Distill, S, T, on
from limbeck.data.items import Items, ragged
from limbeck.losses import channelwise


def detector(seed: int, width: int, size: int = 32) -> FasterRCNN:
    """Two levels and the pooled one, three anchors a place, two classes beside the background."""
    torch.manual_seed(seed)

    def block(a: int, b: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU())

    body = nn.Sequential(OrderedDict(stem=block(3, width), one=block(width, width), two=block(width, 2 * width)))
    backbone = BackboneWithFPN(body, {"one": "0", "two": "1"}, [width, 2 * width], 2 * width)
    anchors = AnchorGenerator(((8,), (12,), (16,)), ((0.5, 1.0, 2.0),) * 3)
    return FasterRCNN(
        backbone,
        box_head=TwoMLPHead(2 * width * 49, 12),
        box_predictor=FastRCNNPredictor(12, 3),
        rpn_anchor_generator=anchors,
        min_size=size,
        max_size=2 * size,
        rpn_pre_nms_top_n_train=60,
        rpn_post_nms_top_n_train=20,
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=20,
        box_batch_size_per_image=16,
        box_score_thresh=0.01,
    )


def picture(seed: int, boxes: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Bright and dark rectangles on noise, in an image of any size."""
    random = torch.Generator().manual_seed(seed)
    height, width = (int(side) for side in torch.randint(28, 40, (2,), generator=random))
    image = 0.5 + 0.05 * torch.randn(3, height, width, generator=random)
    corners = torch.randint(0, 16, (boxes, 2), generator=random)
    corners = torch.cat([corners, corners + torch.randint(7, 12, (boxes, 2), generator=random)], 1)
    labels = torch.randint(1, 3, (boxes,), generator=random)
    for (left, top, right, bottom), label in zip(corners.tolist(), labels.tolist(), strict=True):
        image[:, top:bottom, left:right] = float(label - 1)
    return image, {"boxes": corners.float(), "labels": labels}


def pictures(first: int, count: int, boxes: tuple[int, ...] = (1, 2, 0, 2)) -> tuple[Any, Any, Tensor]:
    images, targets = zip(
        *(picture(seed, boxes[seed % len(boxes)]) for seed in range(first, first + count)), strict=True
    )
    return list(images), list(targets), torch.arange(first, first + count)


def loader(seeds: range, *, shuffle: bool = False) -> Items:
    """The same, one by one; those for training are mirrored, each with its boxes."""
    samples = []
    for image, target in (picture(seed, (1, 2, 0, 2)[seed % 4]) for seed in seeds):
        boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=image.shape[1:])
        samples.append((tv_tensors.Image(image), {**target, "boxes": boxes}))
    mirrored = v2.RandomHorizontalFlip()
    return Items(samples, batch_size=4, transform=mirrored if shuffle else None, collate=ragged, shuffle=shuffle)


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


LEVELS = ("0", "1")


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return [pictures(4 * at, 4) for at in range(3)]


@pytest.fixture(scope="module")
def teacher(batches: list[Any]) -> FasterRCNN:
    """One of three steps, so that it says something."""
    net = detector(1, 6)
    logs = play(limbeck.plain(net, task=detection), batches, sgd)
    assert logs[-1]["student/hard"] > 0
    return net.eval()


def by_hand(student: FasterRCNN, teacher: FasterRCNN, adapters: list[nn.Module], batches: list[Any]) -> None:
    """The method as one would write it with hooks, in three steps."""
    torch.manual_seed(7)
    student.train()
    optimizer = sgd([*student.parameters(), *(p for adapter in adapters for p in adapter.parameters())])
    seen: dict[str, Any] = {}
    heads = student.roi_heads
    student.transform.register_forward_hook(lambda m, i, o: seen.update(images=o[0], targets=o[1]))
    student.backbone.register_forward_hook(lambda m, i, o: seen.update(levels=o))
    student.rpn.head.register_forward_hook(lambda m, i, o: seen.update(objectness=o[0]))
    heads.box_roi_pool.register_forward_pre_hook(lambda m, i: seen.update(proposals=i[1]))
    heads.box_predictor.register_forward_hook(lambda m, i, o: seen.update(scores=o[0], deltas=o[1]))
    for images, targets, _ in batches:
        losses = student(images, targets)
        with torch.no_grad():
            levels = teacher.backbone(seen["images"].tensors)
            objectness, _ = teacher.rpn.head(list(levels.values()))
            pooled = teacher.roi_heads.box_roi_pool(levels, seen["proposals"], seen["images"].image_sizes)
            scores, deltas = teacher.roi_heads.box_predictor(teacher.roi_heads.box_head(pooled))
        soft = -(torch.tensor([1.5, 1, 1]) * scores.softmax(-1) * seen["scores"].log_softmax(-1)).sum(-1).mean()
        s, t = (torch.cat([level.flatten() for level in each]) for each in (seen["objectness"], objectness))
        soft_rpn = -(t.sigmoid() * F.logsigmoid(s) + 1.5 * (1 - t.sigmoid()) * F.logsigmoid(-s)).mean()
        true = [one["boxes"] if len(one["boxes"]) else torch.zeros(1, 4) for one in seen["targets"]]
        label = [one["labels"] if len(one["labels"]) else torch.zeros(1, dtype=torch.long) for one in seen["targets"]]
        match, labels = heads.assign_targets_to_proposals(seen["proposals"], true, label)
        nearest = [box[rows.clamp(min=0)] for box, rows in zip(true, match, strict=True)]
        wanted, labels = torch.cat(heads.box_coder.encode(nearest, seen["proposals"])), torch.cat(labels)
        rows = (labels > 0).nonzero().flatten()
        assert len(rows) > 4, "no box is proposed, and the bound says nothing"
        mine, theirs = (each.view(len(labels), -1, 4)[rows, labels[rows]] for each in (seen["deltas"], deltas))
        e_s, e_t = ((each - wanted[rows]).square().sum(-1) for each in (mine, theirs))
        bounded = torch.where(e_s > e_t, e_s, 0.0).sum() / len(e_s)
        loss = 0.5 * losses["loss_classifier"] + 0.5 * losses["loss_objectness"]
        loss = loss + losses["loss_box_reg"] + losses["loss_rpn_box_reg"] + 0.5 * soft + 0.5 * soft_rpn + 0.5 * bounded
        for adapter, level in zip(adapters, LEVELS, strict=True):
            loss = loss + 0.5 * F.mse_loss(adapter(seen["levels"][level]), levels[level])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_three_steps_are_those_of_a_loop_by_hand(batches: list[Any], teacher: FasterRCNN) -> None:
    student = detector(0, 4)
    other, start, before = copy.deepcopy(student), kept(student), kept(teacher)
    method = chen(student, teacher, levels=LEVELS, example=detection.inputs(batches[0]))
    adapters = copy.deepcopy([term.adapters[0] for term in method.objective.terms if len(term.adapters)])
    logs = play(method, batches, sgd)
    assert all(logs[-1][f"student/{name}"] > 0 for name in method.objective.names)
    by_hand(other, teacher, adapters, batches)
    assert moved(student, start) > 1e-2
    assert difference((student, other)) == 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_trains_and_is_judged_and_shown(
    batches: list[Any], teacher: FasterRCNN, tmp_path: Path, reports: None
) -> None:
    data = loader(range(12), shuffle=True), loader(range(20, 24)), loader(range(24, 31))
    student = detector(0, 4)
    before = kept(teacher)
    method = chen(student, teacher, levels=LEVELS, example=detection.inputs(batches[0]))
    metrics = trained(method, data, tmp_path / "run", "Boxes", optimizer=sgd)
    assert 0 <= metrics["test/student/IoU"] <= 1
    assert metrics["test/student/IoU"] == pytest.approx(limbeck.evaluate(student, data[2], detection)["IoU"])
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_check_finds_nothing_wrong(batches: list[Any], teacher: FasterRCNN) -> None:
    method = chen(detector(0, 4), teacher, levels=LEVELS, example=detection.inputs(batches[0]))
    checked(method, (Loader(batches), Loader([pictures(20, 4)])))


def test_a_check_finds_boxes_of_the_background(batches: list[Any]) -> None:
    images, targets, ids = pictures(20, 4)
    wrong = images, [{**one, "labels": one["labels"] - 1} for one in targets], ids
    method = limbeck.plain(detector(0, 4), task=detection)
    (finding,) = [one for one in limbeck.check(method, Loader([wrong])).findings if one.status == "failed"]
    assert "class 0 is the background's" in finding.message
    with pytest.raises(ValueError, match="class 0 is the background's"):
        limbeck.fit(method, Loader([wrong]), epochs=1, progress=False, accelerator="cpu")


def test_methods_of_features_work_on_levels_of_the_pyramid(batches: list[Any], teacher: FasterRCNN) -> None:
    student = detector(3, 6)
    soft = 3 * on(channelwise, S["backbone:0"], T["backbone:0"], name="channelwise", temperature=1.0)
    (logs,) = play(Distill(student, teacher, detection.hard + soft, detection), batches[:1], sgd)
    assert logs["student/channelwise"] > 0


def test_the_teacher_sees_the_students_pixels(batches: list[Any], teacher: FasterRCNN) -> None:
    """Whatever size it would have made of the images itself."""
    other = detector(1, 6, size=48)
    other.load_state_dict(teacher.state_dict())
    example = detection.inputs(batches[0])
    logs = [play(chen(detector(0, 4), net, levels=(), example=example), batches[:1], sgd) for net in (teacher, other)]
    assert logs[0] == logs[1]


def test_images_without_boxes(teacher: FasterRCNN) -> None:
    batch = pictures(0, 4, boxes=(0,))
    method = chen(detector(0, 4), teacher, levels=LEVELS, example=detection.inputs(batch))
    (logs,) = play(method, [batch], sgd)
    assert logs["student/bounded"] == logs["student/boxes"] == 0
    assert logs["student/soft"] > 0


def test_bounded_regression_by_hand() -> None:
    student, teacher = torch.tensor([[1.0, 0, 0, 0], [3, 0, 0, 0]]), torch.tensor([[2.0, 0, 0, 0], [1, 1, 0, 0]])
    target = torch.zeros(2, 4)
    assert bounded_regression(student, teacher, target).item() == 9 / 2  # the first is better than the teacher
    assert bounded_regression(student, teacher, target, margin=4.0).item() == (1 + 9) / 2  # not by enough
    assert bounded_regression(student[:0], teacher[:0], target[:0]).item() == 0


def test_methods_that_need_one_class_a_sample_refuse_in_words(teacher: FasterRCNN) -> None:
    with pytest.raises(ValueError, match="there are no probabilities to soften in detection"):
        limbeck.kd(detector(0, 4), teacher, task=detection)
    with pytest.raises(ValueError, match="this method needs one class a sample, and in detection there is none"):
        limbeck.dkd(detector(0, 4), teacher, task=detection)
