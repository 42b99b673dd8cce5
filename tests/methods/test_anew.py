"""Networks that start anew with the initialisation that they were made with."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from method_toys import CLASSES, assert_same, state, vectors
from torch import Tensor, nn

import limbeck
from limbeck.data import load
from limbeck.engine.assemble import assemble
from limbeck.methods import ban, one, tfkd_self
from limbeck.nets.anew import check_anew, draws, start_anew
from limbeck.nets.branches import Branches

SPREAD = 3.0


class Wide(nn.Sequential):
    """A network with an initialisation of its own, and a parameter that no module of torch's resets."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        self.scale = nn.Parameter(torch.ones(1))
        for weights in (self[0].weight, self[2].weight):
            nn.init.normal_(weights, std=SPREAD)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * super().forward(x)


def spread(net: nn.Module, name: str) -> float:
    return float(net.get_parameter(name).detach().square().mean().sqrt())


def wide_convnet() -> nn.Module:
    blocks = [nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU()]
    net = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES))
    for weights in net.parameters():
        nn.init.normal_(weights, std=SPREAD)
    return net


@pytest.mark.parametrize("method", [ban, tfkd_self])
def test_generations_start_as_the_network_was_made(method: Callable) -> None:
    torch.manual_seed(0)
    student, begun, (x, y) = Wide(), [], vectors()
    for stage in method(student, anew=Wide):
        begun.append(copy.deepcopy(student))
        optimizers = limbeck.optimizers(stage.method, lambda parameters: torch.optim.SGD(parameters, 1e-3))
        limbeck.play(stage.method, (x.float(), y), optimizers)
    assert len(begun) > 1
    for net in begun:
        assert spread(net, "0.weight") == pytest.approx(SPREAD, rel=0.2)
    assert not any(torch.equal(net[0].weight, begun[0][0].weight) for net in begun[1:])


def test_branches_start_as_the_network_was_made() -> None:
    torch.manual_seed(0)
    student = wide_convnet()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method = one(student, layer="1", anew=wide_convnet, example=torch.randn(2, 3, 16, 16))
    ensemble = method.networks()["ensemble"]
    assert isinstance(ensemble, Branches)
    weights = [torch.cat([p.detach().flatten() for p in branch.parameters()]) for branch in ensemble.branches]
    for each in weights:
        assert float(each.std()) == pytest.approx(SPREAD, rel=0.2)
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_another_initialisation_than_its_own_is_told() -> None:
    net = nn.Sequential(nn.Linear(6, 64), nn.Linear(64, CLASSES))
    nn.init.normal_(net[0].weight, std=SPREAD)
    before = state(net)
    with pytest.warns(
        UserWarning, match=r"Sequential starts anew .* not how it began: 0\.weight has .* 0\.23\d? then, and .* anew="
    ):
        next(ban(net))
    assert_same(state(net), before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_anew(nn.Sequential(nn.Linear(6, 64), nn.Linear(64, CLASSES)))
        check_anew(limbeck.zoo.network("resnet8"))


def test_torchvision_is_told_of() -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.warns(UserWarning, match=r"MobileNetV2 starts anew"):
        check_anew(torchvision.models.mobilenet_v2(num_classes=CLASSES))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make = lambda: torchvision.models.mobilenet_v2(num_classes=CLASSES)  # noqa: E731
        check_anew(make(), make)


def test_what_makes_another_network_or_the_same_weights() -> None:
    net = Wide()
    before = state(net)
    with pytest.raises(ValueError, match=r"anew\(\) makes another network than the Wide .* differ in \['scale'"):
        start_anew(net, lambda: nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, CLASSES)))
    with pytest.raises(ValueError, match=r"differ in \['2\.weight', '2\.bias'\]"):
        start_anew(nn.Sequential(*Wide()), lambda: nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 1)))
    assert_same(state(net), before)
    another = Wide()
    for same in (lambda: net, lambda: another):
        with pytest.raises(ValueError, match=r"the same weights every time: anew\(\) draws nothing"):
            next(ban(net, anew=same))
        assert not draws(same)
    assert_same(state(net), before)


def shaped() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    nn.init.normal_(net[1].weight, std=SPREAD)
    return net


def test_a_network_by_its_name_starts_as_its_name_makes_it() -> None:
    student, example = shaped(), torch.zeros(2, 1, 8, 8)

    def loaded() -> nn.Module:  # as a name with a file does
        return student

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stages = iter(assemble("ban", student, None, example, {}, make=shaped))
        next(stages), next(stages)
    assert spread(student, "1.weight") == pytest.approx(SPREAD, rel=0.1)
    with pytest.warns(UserWarning, match=r"starts anew by the reset_parameters"):
        next(iter(assemble("ban", student, None, example, {}, make=loaded)))
    with pytest.raises(ValueError, match="draws nothing"):
        next(iter(assemble("ban", student, None, example, {"anew": loaded}, make=shaped)))


def test_a_comparison_passes_on_what_makes_its_student() -> None:
    data = load("digits", samples=64)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*starts anew")
        done = limbeck.compare(["tfkd_self"], shaped, None, data, epochs=2, seeds=1, progress=False)
    assert [row.name for row in done.candidates] == ["plain", "tfkd_self"]
