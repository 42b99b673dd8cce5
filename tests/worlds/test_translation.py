"""A world of image translation, as a later issue would build it: `translator_gan` equals a loop by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from map_critic import MapCritic
from torch import Tensor, nn
from torch.nn import functional as F
from translation_task import translation
from translator_gan_method import Adversaries, translator_gan
from world_runs import Loader, checked, difference, kept, moved, play, trained

import limbeck
from limbeck.data.items import Items

LAYERS = [("1", "1"), ("2", "2")]


def generator(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)

    def block(a: int, b: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.InstanceNorm2d(b), nn.ReLU())

    down = block(3, width, 1), block(width, 2 * width, 2), block(2 * width, 2 * width, 1)
    return nn.Sequential(
        *down, nn.Upsample(scale_factor=2), block(2 * width, width, 1), nn.Conv2d(width, 3, 1), nn.Tanh()
    )


def pairs(seed: int, count: int = 4) -> tuple[Tensor, Tensor]:
    """Smooth images, and what becomes of them: colours change places, and dark becomes bright."""
    random = torch.Generator().manual_seed(seed)
    images = F.interpolate(torch.randn(count, 3, 4, 4, generator=random), (16, 16), mode="bilinear").tanh()
    return images, -images[:, [2, 0, 1]]


def adam(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, 2e-3, betas=(0.5, 0.999))


@pytest.fixture(scope="module")
def batches() -> list[Any]:
    return [pairs(seed) for seed in range(3)]


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return generator(8, 1).eval()


def made(student: nn.Module, teacher: nn.Module | None, batches: list[Any]) -> Adversaries:
    torch.manual_seed(3)
    return translator_gan(student, teacher, MapCritic(6), layers=LAYERS, example=batches[0][0])


def by_hand(
    student: nn.Sequential, teacher: nn.Module, critic: nn.Module, maps: list[nn.Module], batches: list[Any]
) -> None:
    student.train()
    ours = adam([*student.parameters(), *(p for one in maps for p in one.parameters())])
    its = adam(list(critic.parameters()))
    seen: dict[Any, Tensor] = {}
    for who, net in (("s", student), ("t", teacher)):
        for at in (1, 2):
            net[at].register_forward_hook(lambda m, i, o, place=(who, at): seen.update({place: o}))
    for x, y in batches:
        fake = student(x)
        with torch.no_grad():
            teacher(x)
        loss = F.relu(1 - critic(x, y)).mean() + F.relu(1 + critic(x, fake.detach())).mean()
        its.zero_grad()
        loss.backward()
        its.step()
        loss = 100 * F.l1_loss(fake, y)
        for adapter, at in zip(maps, (1, 2), strict=True):
            loss = loss + F.mse_loss(adapter(seen["s", at]), seen["t", at])
        loss = loss - critic(x, fake).mean()
        ours.zero_grad()
        loss.backward()
        ours.step()


def test_three_steps_are_those_of_a_loop_by_hand(batches: list[Any], teacher: nn.Module) -> None:
    student = generator(3, 0)
    other, start, before = copy.deepcopy(student), kept(student), kept(teacher)
    method = made(student, teacher, batches)
    critic = copy.deepcopy(method.discriminator)
    maps = copy.deepcopy([term.adapters[0] for term in method.distill.objective.terms if len(term.adapters)])
    logs = play(method, batches, adam)
    assert {"discriminator/real", "student/hard", "student/distill.1", "student/fool"} <= logs[-1].keys()
    by_hand(other, teacher, critic, maps, batches)
    assert moved(student, start) > 1e-3
    assert difference((student, other), (method.discriminator, critic)) == 0
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_it_trains_and_is_judged_and_shown(
    batches: list[Any], teacher: nn.Module, tmp_path: Path, reports: None
) -> None:
    student, test = generator(3, 0), pairs(8, count=6)
    train = [pair for batch in batches for pair in zip(*batch, strict=True)]
    val, held_out = (list(zip(*own, strict=True)) for own in (pairs(7), test))
    data = Items(train, batch_size=4, shuffle=True), Items(val, batch_size=4), Items(held_out, batch_size=4)
    metrics = trained(made(student, teacher, batches), data, tmp_path / "run", "Translations", optimizer=adam)
    x, y = test
    assert metrics["test/student/L1"] == pytest.approx(F.l1_loss(student.eval()(x), y).item(), rel=1e-5)


def test_a_check_finds_nothing_wrong(batches: list[Any], teacher: nn.Module) -> None:
    checked(made(generator(3, 0), teacher, batches), (Loader(batches), Loader([pairs(7)])))


def test_a_check_finds_images_of_another_size(batches: list[Any]) -> None:
    smaller = nn.Sequential(*generator(3, 0), nn.AvgPool2d(2))
    with pytest.raises(ValueError, match=r"the student makes images \(3, 8, 8\) for \(3, 16, 16\)"):
        limbeck.fit(limbeck.plain(smaller, task=translation), Loader(batches), epochs=1, progress=False)


def test_without_its_teacher_it_is_the_gan(batches: list[Any]) -> None:
    logs = play(made(generator(3, 0), None, batches), batches[:1], adam)
    assert {name.split("/")[1] for name in logs[0] if name.startswith("student/")} == {
        "hard",
        "hard.weighted",
        "fool",
        "fool.weighted",
        "loss",
    }
