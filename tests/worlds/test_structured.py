"""A world of segmentation: `structured` equals a loop by hand, trains, is judged and shown."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from structured_method import pairwise, structured
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from world_runs import Loader, checked, difference, kept, moved, play, trained

import limbeck
from limbeck.data.items import Items

CLASSES, IGNORED = 4, 11
TASK = limbeck.segmentation(ignore=IGNORED)


class Segmenter(nn.Module):
    """As torchvision's: a backbone with named maps, scores at the images' size in a dict."""

    def __init__(self, width: int, seed: int) -> None:
        torch.manual_seed(seed)
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.high = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.scores = nn.Conv2d(2 * width, CLASSES, 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        scores = self.scores(self.high(self.low(images)))
        return {"out": F.interpolate(scores, images.shape[2:], mode="bilinear"), "aux": scores}


def scenes(seed: int, count: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Images of bands of three classes; at the border pixels have no label."""
    random = torch.Generator().manual_seed(seed)
    phase = torch.randint(12, (count, 1, 1), generator=random)
    masks = ((torch.arange(12)[:, None] + torch.zeros(16, dtype=torch.long) + phase) // 4 % CLASSES).expand(
        count, 12, 16
    )
    colours = torch.tensor([[1.0, -1, 0], [0, 1, -1], [-1, 0, 1], [-1, -1, -1]])
    images = colours[masks].movedim(-1, 1) + 0.3 * torch.randn(count, 3, 12, 16, generator=random)
    masks = masks.clone()
    masks[:, :, :2] = IGNORED
    return images.to(dtype), masks, torch.arange(count) + count * seed


def loader(seeds: range, *, shuffle: bool = False) -> Items:
    """The same, one by one; those for training are mirrored, each with its classes."""
    samples = [pair for seed in seeds for pair in zip(*scenes(seed, dtype=torch.float32)[:2], strict=True)]
    mirrored = v2.RandomHorizontalFlip()
    return Items(
        [(tv_tensors.Image(image), tv_tensors.Mask(mask)) for image, mask in samples],
        batch_size=4,
        transform=mirrored if shuffle else None,
        shuffle=shuffle,
    )


def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.01, momentum=0.9)


def by_hand(student: Segmenter, teacher: Segmenter, critic: nn.Module, batches: list[Any]) -> None:
    torch.manual_seed(7)
    student.train()
    ours, its = sgd(list(student.parameters())), sgd(list(critic.parameters()))
    seen: dict[str, Tensor] = {}
    student.high.register_forward_hook(lambda m, i, o: seen.update(s=o))
    teacher.high.register_forward_hook(lambda m, i, o: seen.update(t=o))
    for x, y, _ in batches:
        q_s = student(x)["out"]
        with torch.no_grad():
            q_t = teacher(x)["out"]
        share = torch.rand(len(x), 1, 1, 1, dtype=x.dtype)
        between = (share * q_t + (1 - share) * q_s).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(x, between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        loss = critic(x, q_s.detach()).mean() - critic(x, q_t).mean() + 10 * penalty
        its.zero_grad()
        loss.backward()
        its.step()
        pixel = (q_t.softmax(1) * (q_t.log_softmax(1) - q_s.log_softmax(1))).sum() / y.numel()
        f_s, f_t = (F.normalize(F.adaptive_max_pool2d(seen[who], 2).flatten(2).mT, dim=-1) for who in "st")
        pair = (f_s @ f_s.mT - f_t @ f_t.mT).square().mean()
        hard = F.cross_entropy(q_s, y, ignore_index=IGNORED)
        loss = hard + 10 * pixel + 0.5 * pair - 0.1 * critic(x, q_s).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return [scenes(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def teacher(batches: list[Any]) -> Segmenter:
    net = Segmenter(8, 1).double()
    play(limbeck.plain(net, task=TASK), batches, lambda own: torch.optim.Adam(own, 0.05))
    return net.eval()


def test_three_steps_are_those_of_a_loop_by_hand(batches: list[Any], teacher: Segmenter) -> None:
    student = Segmenter(4, 0).double()
    other, start, before = copy.deepcopy(student), kept(student), kept(teacher)
    torch.manual_seed(3)
    method = structured(student, teacher, layers=("high", "high"), example=batches[0][0], task=TASK)
    critic = copy.deepcopy(method.critic)
    logs = play(method, batches, sgd)
    assert all(logs[-1][f"student/{name}"] != 0 for name in ("hard", "pixelwise", "pairwise", "holistic"))
    by_hand(other, teacher, critic, batches)
    assert moved(student, start) > 1e-2
    assert difference((student, other), (method.critic, critic)) < 1e-13
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_trains_and_is_judged_and_shown(tmp_path: Path, reports: None) -> None:
    test = [scenes(seed, dtype=torch.float32) for seed in (4, 5)]
    student, teacher = Segmenter(4, 0), Segmenter(8, 1)
    method = structured(student, teacher, layers=("high", "high"), example=test[0][0], task=TASK)
    data = loader(range(3), shuffle=True), loader(range(3, 4)), loader(range(4, 6))
    metrics = trained(method, data, tmp_path / "run", "What each pixel is", optimizer=sgd)
    x, y = torch.cat([test[0][0], test[1][0]]), torch.cat([test[0][1], test[1][1]])
    said, true = student.eval()(x)["out"].argmax(1)[y != IGNORED], y[y != IGNORED]
    inside = [((said == k) & (true == k)).sum() / ((said == k) | (true == k)).sum() for k in range(CLASSES)]
    assert metrics["test/student/mIoU"] == pytest.approx(float(torch.stack(inside).mean()), abs=1e-6)
    assert metrics["test/student/pixel_accuracy"] == pytest.approx(float((said == true).float().mean()), abs=1e-6)
    loss = F.cross_entropy(student(x)["out"], y, ignore_index=IGNORED)
    assert metrics["test/student/loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_a_check_finds_nothing_wrong() -> None:
    batches = [scenes(seed, dtype=torch.float32) for seed in range(3)]
    student, teacher = Segmenter(4, 0), Segmenter(8, 1)
    method = structured(student, teacher, layers=("high", "high"), example=batches[0][0], task=TASK)
    checkup = checked(method, (Loader(batches), Loader(batches[:1])))
    found = {finding.name: finding.message for finding in checkup.findings}
    assert found["labels"] == f"the pixels' classes lie between 0 and {CLASSES - 1}, of {CLASSES} classes"


def test_pairwise_by_hand() -> None:
    s, t = (torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(2))
    total = 0.0
    for n in range(2):
        patches = [[each[n, :, i : i + 2, j : j + 3].amax((1, 2)) for i in (0, 2) for j in (0, 3)] for each in (s, t)]
        for i in range(4):
            for j in range(4):
                mine, theirs = (F.cosine_similarity(rows[i], rows[j], dim=0).item() for rows in patches)
                total += (mine - theirs) ** 2
    assert pairwise(s, t).item() == pytest.approx(total / 32, rel=1e-5)
