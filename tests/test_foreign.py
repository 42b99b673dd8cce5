"""Networks from elsewhere, unedited: each teaches and each learns."""

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import limbeck
from limbeck import zoo
from limbeck.core.layers import stages
from limbeck.core.method import assign, parameters

CLASSES = 10


class Functional(nn.Module):
    """Raw parameters, functional calls and a dict: no submodule to hook."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) / 5)
        self.weight = nn.Parameter(torch.randn(CLASSES, 8) / 3)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        embedding = F.relu(F.conv2d(images, self.kernel, stride=2, padding=1)).mean((2, 3))
        return {"embedding": embedding, "logits": embedding @ self.weight.T}


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, CLASSES),
    )


def torchvision() -> nn.Module:
    resnet = pytest.importorskip("torchvision.models.resnet")
    return resnet.ResNet(resnet.BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)


def timm() -> nn.Module:
    return pytest.importorskip("timm").create_model("mobilenetv3_small_050", num_classes=CLASSES)


def transformers() -> nn.Module:
    hf = pytest.importorskip("transformers")
    config = hf.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
    )
    return hf.ViTForImageClassification(config)


NETWORKS = {net.__name__: net for net in (torchvision, timm, transformers, sequential, Functional)}
CONVOLUTIONAL = ["torchvision", "timm", "sequential"]
WITH_LINEAR = [*CONVOLUTIONAL, "transformers"]


def ring(names: list[str]) -> list[tuple[str, str]]:
    """Each of the names once as student and once as teacher."""
    return list(zip(names, [*names[1:], names[0]], strict=True))


def pair(student: str, teacher: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return NETWORKS[student](), NETWORKS[teacher]()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels() -> Tensor:
    return torch.arange(6) % CLASSES


def sgd(params: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 1e-3)


def cloned(net: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in net.state_dict().items()}


def identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def untouched(net: nn.Module) -> bool:
    """Nothing is left on the network: neither hooks nor patched methods."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
        for module in net.modules()
    )


def distil(
    names: tuple[str, str],
    method: Callable[[nn.Module, nn.Module], limbeck.Method | Iterable[limbeck.Stage]],
    batch: object,
    terms: list[set[str]],
) -> None:
    """Play two batches of each stage, then look at what became of the student and the teacher."""
    student, teacher = pair(*names)
    before, taught = cloned(student), cloned(teacher)
    schedule = method(student, teacher)
    if isinstance(schedule, limbeck.Method):
        schedule = [limbeck.Stage(schedule)]
    for stage, expected in zip(schedule, terms, strict=True):
        optimizers = assign(parameters(stage.method, stage.trains), sgd)
        for _ in range(2):
            logs = limbeck.play(stage.method, batch, optimizers)
            assert {name.removeprefix("student/").split(".")[0] for name in logs} == {*expected, "loss"}
            assert all(math.isfinite(value) and value != 0 for value in logs.values()), logs
    after = student.state_dict()
    assert list(after) == list(before)
    moved = [not torch.equal(before[name], after[name]) for name, _ in student.named_parameters()]
    assert sum(moved) > 0.8 * len(moved)  # a key's bias, or one before batch norm, has no gradient
    assert identical(teacher.state_dict(), taught)
    assert all(module.training for module in (*student.modules(), *teacher.modules()))  # as they came
    assert untouched(student)
    assert untouched(teacher)
    assert identical(copy.deepcopy(student).state_dict(), after)


@pytest.mark.parametrize("teacher", NETWORKS)
@pytest.mark.parametrize("student", NETWORKS)
def test_kd(student: str, teacher: str, images: Tensor, labels: Tensor) -> None:
    distil((student, teacher), limbeck.kd, (images, labels), [{"hard", "soft"}])


@pytest.mark.parametrize(("student", "teacher"), ring(WITH_LINEAR))
def test_rkd_finds_the_embeddings(student: str, teacher: str, images: Tensor, labels: Tensor) -> None:
    distil((student, teacher), partial(limbeck.rkd, example=images), (images, labels), [{"hard", "distance", "angle"}])


@pytest.mark.parametrize(
    ("student", "teacher", "layer"),
    [
        ("Functional", "transformers", (":embedding", "vit.layernorm")),
        ("torchvision", "Functional", ("avgpool", ":embedding")),
        ("Functional", "Functional", ":embedding"),
    ],
)
def test_rkd_takes_entries_of_a_dict(
    student: str, teacher: str, layer: str | tuple[str, str], images: Tensor, labels: Tensor
) -> None:
    distil((student, teacher), partial(limbeck.rkd, layer=layer), (images, labels), [{"hard", "distance", "angle"}])


def test_without_modules_the_layers_must_be_named(images: Tensor) -> None:
    s, t = pair("Functional", "sequential")
    with pytest.raises(ValueError, match=r"Functional has no linear layer .*name a layer"):
        limbeck.rkd(s, t, example=images)
    with pytest.raises(ValueError, match="found no layers to pair: name them"):
        limbeck.at(s, t, example=images)


@pytest.mark.parametrize(("student", "teacher"), [*ring(CONVOLUTIONAL), ("timm", "timm")])
def test_at_pairs_the_stages(student: str, teacher: str, images: Tensor, labels: Tensor) -> None:
    distil((student, teacher), partial(limbeck.at, example=images), (images, labels), [{"hard", "attention"}])


def test_at_refuses_tokens(images: Tensor) -> None:
    s, t = pair("sequential", "transformers")
    with pytest.raises(ValueError, match=r"the teacher's 'vit.* has shape \(6, 17, 32\)"):
        limbeck.at(s, t, example=images)


FITNETS = [{"hint"}, {"hard", "soft"}]


@pytest.mark.parametrize(("student", "teacher"), [*ring(CONVOLUTIONAL), ("transformers", "transformers")])
def test_fitnets_learns_the_middle_layer(student: str, teacher: str, images: Tensor, labels: Tensor) -> None:
    distil((student, teacher), partial(limbeck.fitnets, example=images), (images, labels), FITNETS)


def test_fitnets_between_named_vectors(images: Tensor, labels: Tensor) -> None:
    method = partial(limbeck.fitnets, guided="fc:in", hint="classifier:in", example=images)
    distil(("torchvision", "transformers"), method, (images, labels), FITNETS)


def test_batches_of_named_inputs(images: Tensor, labels: Tensor) -> None:
    names, batch = ("transformers", "transformers"), {"pixel_values": images, "labels": labels}
    distil(names, limbeck.kd, batch, [{"hard", "soft"}])
    distil(names, partial(limbeck.fitnets, example={"pixel_values": images}), batch, FITNETS)


STAGES = {
    "torchvision:resnet50": ["relu", "layer1", "layer2", "layer3", "layer4"],  # strides inside the first bottleneck
    "torchvision:mobilenet_v3_small": ["features.0", "features.1", "features.3", "features.8", "features"],
    "torchvision:efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features"],
    "torchvision:densenet121": ["features.relu0", *(f"features.denseblock{i}" for i in (1, 2, 3)), "features"],
    "torchvision:shufflenet_v2_x0_5": ["conv1", "maxpool", "stage2", "stage3", "conv5"],
    "torchvision:convnext_tiny": ["features.1", "features.3", "features.5", "features"],  # (N, H, W, C) in its blocks
    "timm:mobilenetv3_small_050": ["bn1", "blocks.0", "blocks.1", "blocks.3", "blocks"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_are_where_their_authors_put_them(name: str) -> None:
    pytest.importorskip(name.split(":")[0])
    net = zoo.network(name, shape=(3, 64, 64))
    assert [layer.path for layer in stages(net, torch.zeros(1, 3, 64, 64))] == STAGES[name]
