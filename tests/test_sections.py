from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import zoo
from limbeck.nets.sections import sections

timm = pytest.importorskip("timm")


def of_torchvision(name: str) -> nn.Module:
    return torchvision.models.get_model(name, num_classes=10)


CASES = {
    "zoo mlp": (lambda: zoo.network("mlp-16-8", 10, (3, 32, 32)), ["layers.fc2:in"], 32),
    "zoo resnet8": (lambda: zoo.network("resnet8", 10, (3, 32, 32)), ["layer1", "layer2", "layer3"], 32),
    "zoo resnet8, within a stage": (lambda: zoo.network("resnet14", 10, (3, 32, 32)), ["layer1.0", "layer3.1"], 32),
    "zoo vgg8": (lambda: zoo.network("vgg8", 10, (3, 32, 32)), ["pool0", "block2"], 32),
    "zoo mobilenetv2": (lambda: zoo.network("mobilenetv2", 10, (3, 32, 32)), ["stem", "blocks"], 32),
    "zoo shufflenetv2": (lambda: zoo.network("shufflenetv2", 10, (3, 32, 32)), ["layer1", "layer2"], 32),
    "zoo wrn": (lambda: zoo.network("wrn-16-1", 10, (3, 32, 32)), ["layer1", "layer2"], 32),
    "zoo fitnet1": (lambda: zoo.network("fitnet1", 10, (3, 32, 32)), ["stage1", "stage2"], 32),
    "torchvision resnet18": (lambda: of_torchvision("resnet18"), ["layer1", "layer2", "layer3"], 32),
    "torchvision vgg11": (lambda: of_torchvision("vgg11"), ["features.2"], 32),
    "torchvision mobilenet": (lambda: of_torchvision("mobilenet_v3_small"), ["features.4", "features.8"], 32),
    "torchvision shufflenet": (lambda: of_torchvision("shufflenet_v2_x0_5"), ["stage2", "stage3"], 32),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=10), ["layer1", "layer3"], 32),
    "timm mobilenet": (lambda: timm.create_model("mobilenetv3_small_050", num_classes=10), ["blocks.2"], 32),
    "timm vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=10),
        ["blocks.3", "blocks.7"],
        32,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_sections_are_the_network(name: str) -> None:
    make, after, size = CASES[name]
    torch.manual_seed(0)
    net, x = make(), torch.randn(2, 3, size, size)
    parts = sections(net, after)
    assert len(parts) == len(after) + 1
    assert net.training
    for mode in (False, True):
        for module in (net, *parts):
            module.train(mode)
        torch.manual_seed(1)  # of dropout
        expected = copy.deepcopy(net)(x)
        torch.manual_seed(1)
        given = x
        for part in parts:
            given = part(given)
        assert torch.equal(given, expected)
    named = dict(net.named_parameters())
    held = [each for part in parts for each in part.named_parameters()]
    assert len(held) == len(named)
    assert all(parameter is named[path] for path, parameter in held)


class Skip(nn.Module):
    """Its second layer is passed by its first one's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.third(first + self.second(first))


class Decides(Skip):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:  # no tracer can know
            x = self.first(x)
        return self.third(self.second(x))


class Drops(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(F.dropout(self.first(x), training=self.training))


class Again(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.first(self.first(x)))


class Scaled(Skip):
    """A parameter is read before the cut and after it; the inputs have defaults beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor, mask: Tensor | None = None, times: int = 3) -> dict[str, Tensor]:
        scale = self.scale
        x = self.first(x * scale)
        return {"logits": self.third(scale * x * times)}


def test_parameters_read_before_a_cut_and_outputs_that_are_dicts() -> None:
    net, x = Scaled(), torch.randn(5, 4)
    first, second = sections(net, ["first"])
    assert torch.equal(second(first(x))["logits"], net(x)["logits"])
    assert dict(second.named_parameters())["scale"] is net.scale


class Named(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return self.third(input=self.first(input=x))


def test_an_input_that_is_given_by_name() -> None:
    net, x = Named(), torch.randn(5, 4)
    first, second = sections(net, ["third:in"])
    assert torch.equal(second(first(x)), net(x))


@pytest.mark.parametrize(
    ("net", "after", "message"),
    [
        (Skip(), [], "expected a layer at least"),
        (Skip(), ["frist"], "no layer 'frist'; the closest are .*first"),
        (Skip(), ["first:0"], "name a layer, or its input"),
        (Skip(), [""], "name a layer, or its input"),
        (Skip(), ["second"], "cannot be cut after 'second': .*add.* takes first, made before it"),
        (Skip(), ["first", "first"], "in the order of the forward pass"),
        (Again(), ["first"], "calls 'first' 2 times"),
        (Again(), ["second"], "calls 'second' 0 times"),
        (nn.Sequential(nn.Linear(4, 4), nn.ReLU()), ["1", "0"], r"order of the forward pass, \['0', '1'\]"),
        (nn.Sequential(nn.Sequential(nn.ReLU())), ["0", "0.0"], "'0.0' lies within '0'"),
        (
            Decides(),
            ["first"],
            r"not traceable at .*test_sections.py:\d+ \(if x.sum\(\) > 0:.*Make the sections by hand",
        ),
        (Drops(), ["first"], "asks for self.training"),
    ],
)
def test_what_cannot_be_cut(net: nn.Module, after: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sections(net, after)


def test_exits_need_one_tensor_and_logits_alone() -> None:
    class Said(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.fc = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"scores": self.fc(self.second(self.first(image).relu()).relu())}

    task = limbeck.Task(output=lambda out: out["scores"])
    with pytest.raises(
        TypeError, match=r"the network with a dict with \['scores'\]: give one that returns its logits alone"
    ):
        limbeck.with_exits(Said(), torch.zeros(2, 4), ["first"], task)
    with pytest.raises(TypeError, match=r"one tensor on, \(N, ...\), and is given a dict with \['image'\]"):
        limbeck.with_exits(Said(), {"image": torch.zeros(2, 4)}, ["first"], task)
