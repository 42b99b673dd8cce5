"""A student that begins with its teacher's weights."""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from itertools import pairwise

import pytest
import torch
import torch_pruning
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor, nn

import limbeck
from limbeck import initialize
from limbeck.cli import main
from limbeck.zoo.mlp import MLP
from limbeck.zoo.mobilenet import MobileNetV2
from limbeck.zoo.resnet import ResNet
from limbeck.zoo.vgg import VGG

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def scrambled(net: nn.Module, seed: int) -> nn.Module:
    """Give every parameter and statistic a value of its own."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(0.3 * torch.randn(tensor.shape, generator=draw))
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return net


def resnet(depth: int = 8, widths: tuple[int, ...] = (4, 4, 6, 8), seed: int = 0) -> nn.Module:
    return scrambled(ResNet(depth, widths), seed)


def outputs(net: nn.Module, x: Tensor = X) -> Tensor:
    with torch.no_grad():
        return net.eval()(x)


class Dense(nn.Module):
    """Concatenation, a flattened map before the linear layer, and a group norm."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, 2, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm = nn.GroupNorm(2, 2 * width)
        self.three = nn.Conv2d(3 * width, width, 1)
        self.fc = nn.Linear(width * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        one = self.one(x).relu()
        two = self.norm(self.two(one)).relu()
        both = torch.cat([nn.functional.avg_pool2d(one, 2), two], 1)
        return self.fc(self.three(both).flatten(1))


def fade(net: nn.Module, layers: dict[str, list[int]]) -> None:
    """Make channels faint in all weights into and out of them, so that they are the ones to go."""
    graph = torch_pruning.DependencyGraph().build_dependency(net.eval(), X)
    for path, channels in layers.items():
        root = net.get_submodule(path)
        for dep, indices in graph.get_pruning_group(root, torch_pruning.prune_conv_out_channels, channels):
            if isinstance(dep.target.module, (nn.Conv2d, nn.Linear)):
                axis = 0 if graph.is_out_channel_pruning_fn(dep.handler) else 1
                dep.target.module.weight.data.transpose(0, axis)[indices] *= 1e-4


def pruned(net: nn.Module, layers: dict[str, list[int]]) -> nn.Module:
    """Prune the channels of some layers, and all that depends on them, by torch-pruning itself."""
    net = copy.deepcopy(net).eval()
    graph = torch_pruning.DependencyGraph().build_dependency(net, X)
    for path, channels in layers.items():
        layer = net.get_submodule(path)
        graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, channels).prune()
    return net


# what is exact


@pytest.mark.parametrize("make", [resnet, lambda: scrambled(MobileNetV2(0.25), 0), lambda: scrambled(Dense(), 0)])
@pytest.mark.parametrize("channels", ["largest", "first"])
def test_a_student_like_its_teacher_becomes_it(make, channels):
    teacher = make()
    student, before = scrambled(copy.deepcopy(teacher), 1), copy.deepcopy(teacher.state_dict())
    report = initialize(student, teacher, channels=channels)
    assert torch.equal(outputs(student), outputs(teacher))
    assert {entry.how for entry in report.entries} == {"whole"}
    assert [entry.source for entry in report.entries] == list(teacher.state_dict())
    assert report.unused == ()
    assert report.share == 1
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


PRUNED = {
    "resnet": (resnet, {"conv1": [1], "layer1.0.conv1": [0, 3], "layer2.0.conv2": [2], "layer3.0.conv2": [5, 0]}),
    "mobilenet": (
        lambda: scrambled(MobileNetV2(0.25), 0),
        {"stem.conv": [6], "blocks.1.0.project.conv": [2, 4], "blocks.2.1.expand.conv": [3, 40], "head.conv": [7]},
    ),
    "dense": (lambda: scrambled(Dense(), 0), {"one": [2], "two": [1, 5], "three": [0, 3]}),
}


@pytest.mark.parametrize("name", PRUNED)
@pytest.mark.filterwarnings("ignore::UserWarning:torch_pruning")
def test_a_narrower_student_is_the_teacher_with_its_faintest_channels_pruned(name):
    """Through batch norm, residual sums, depthwise layers, concatenation and flattening: torch-pruning is the judge."""
    make, layers = PRUNED[name]
    teacher = make()
    fade(teacher, layers)
    expected = pruned(teacher, layers)
    student = scrambled(copy.deepcopy(expected), 1)
    report = initialize(student, teacher, example=X)
    torch.testing.assert_close(outputs(student), outputs(expected), rtol=0, atol=0)
    assert report.of("left") == []
    sliced = {entry.path for entry in report.of("sliced")}
    assert {f"{path}.weight" for path in layers} <= sliced


def test_the_first_channels():
    teacher = resnet()
    expected = pruned(teacher, {"conv1": [3], "layer2.0.conv1": [3, 4, 5], "layer3.0.conv2": [6, 7]})
    student = scrambled(copy.deepcopy(expected), 1)
    initialize(student, teacher, example=X, channels="first")
    assert torch.equal(outputs(student), outputs(expected))


def test_the_faintest_by_hand():
    teacher = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    teacher[0].weight.data = torch.tensor([[1.0, 1.0], [0.1, 0.1], [0.0, 2.0]])
    teacher[2].weight.data = torch.tensor([[1.0, 9.0, 0.5]])  # scores 3, 9.2 and 2.5
    student = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    initialize(student, teacher, example=torch.randn(4, 2))
    assert torch.equal(student[0].weight, teacher[0].weight[:2])
    assert torch.equal(student[2].weight, teacher[2].weight[:, :2])
    assert torch.equal(student[0].bias, teacher[0].bias[:2])


# depth


def test_blocks_are_spread_evenly_and_copied_whole():
    teacher, student = resnet(32), resnet(14, seed=1)  # five blocks a stage, and two
    report = initialize(student, teacher)
    sources = {entry.path: entry.source for entry in report.entries}
    assert sources["layer2.0.conv1.weight"] == "layer2.0.conv1.weight"
    assert sources["layer2.1.conv1.weight"] == "layer2.4.conv1.weight"
    for path, source in sources.items():
        assert torch.equal(student.state_dict()[path], teacher.state_dict()[source])
    assert "layer1.1.conv1.weight" in report.unused
    assert not any(name.startswith("layer1.4") for name in report.unused)
    three = resnet(20, seed=1)
    sources = {entry.path: entry.source for entry in initialize(three, teacher).entries}
    assert [sources[f"layer1.{block}.bn1.bias"] for block in range(3)] == [f"layer1.{b}.bn1.bias" for b in (0, 2, 4)]


def test_blocks_that_the_user_names():
    teacher, student = resnet(32), resnet(20, seed=1)
    report = initialize(student, teacher, blocks={"layer1": [0, 3, 3]})
    sources = {entry.path: entry.source for entry in report.entries}
    assert [sources[f"layer1.{block}.bn1.bias"] for block in range(3)] == [f"layer1.{b}.bn1.bias" for b in (0, 3, 3)]
    assert sources["layer2.2.bn1.bias"] == "layer2.4.bn1.bias"
    deeper = resnet(20, seed=1)
    sources = {entry.path: entry.how for entry in initialize(deeper, resnet(14)).entries}
    assert sources["layer1.1.bn1.bias"] == "whole"
    assert sources["layer1.2.bn1.bias"] == "left"


def test_depth_and_width_together():
    teacher, student = resnet(20, (6, 6, 8, 10)), resnet(8, (4, 4, 6, 8), seed=1)
    report = initialize(student, teacher, example=X)
    assert report.of("left") == []
    assert next(entry for entry in report.entries if entry.path == "conv1.weight").source_shape == (6, 3, 3, 3)
    kept = {tuple(filter_.flatten().tolist()) for filter_ in student.conv1.weight}
    assert kept < {tuple(filter_.flatten().tolist()) for filter_ in teacher.conv1.weight}


def test_layers_of_one_row_need_to_be_named():
    teacher, student = MLP((8, 8), 3, 4), MLP((5,), 3, 4)
    with pytest.raises(
        ValueError, match=r"'layers' has \d layers in the student \(.*\) and \d in the teacher .*blocks="
    ):
        initialize(student, teacher, example=torch.randn(2, 4))


def test_compression_of_a_perceptron():
    def mlp(*widths: int) -> nn.Module:
        layers: list[nn.Module] = []
        for inputs, width in pairwise(widths):
            layers += [nn.Linear(inputs, width), nn.ReLU()]
        return nn.Sequential(OrderedDict(body=nn.Sequential(*layers[:-1])))

    teacher, student = mlp(4, 8, 8, 3), mlp(4, 5, 3)
    report = initialize(student, teacher, example=torch.randn(2, 4), blocks={"body": [0, 1, 4]})
    assert [entry.source for entry in report.entries] == [
        "body.0.weight",
        "body.0.bias",
        "body.4.weight",
        "body.4.bias",
    ]
    assert report.of("left") == []


# what does not fit


def test_what_does_not_fit_is_left_and_said():
    teacher, student = resnet(), scrambled(ResNet(8, (4, 4, 6, 12), num_classes=7), 1)
    before = copy.deepcopy(student.state_dict())
    report = initialize(student, teacher, example=X)
    left = {entry.path: entry for entry in report.of("left")}
    assert {"layer3.0.conv1.weight", "fc.weight", "fc.bias"} <= left.keys()
    assert left["layer3.0.conv1.weight"].reason == "the student is wider: 8 x 6 x 3 x 3 could be had"
    assert left["fc.weight"].source_shape == (10, 8)
    assert all(torch.equal(before[path], student.state_dict()[path]) for path in left)
    assert 0 < report.share < 1
    assert "left as they were" in str(report)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    text = console.export_text()
    assert "layer3.0.conv1" in text
    assert "the student is wider" in text


def test_outputs_are_never_sliced():
    teacher, student = resnet(), scrambled(ResNet(8, (4, 4, 6, 8), num_classes=4), 1)
    left = {entry.path: entry.reason for entry in initialize(student, teacher, example=X).of("left")}
    assert left == {
        "fc.weight": "outputs, or tied to others: 10 x 8 could be had",
        "fc.bias": "outputs, or tied to others: 10 could be had",
    }


def test_layers_that_one_network_lacks():
    teacher, student = resnet(8, (6, 8, 10, 12)), resnet(8, (4, 4, 6, 8), seed=1)  # a shortcut in layer1, and none
    with pytest.warns(UserWarning, match=r"'layer1\.0\.shortcut' \(Identity\): the teacher's has '0', a Conv2d"):
        report = initialize(student, teacher, example=X)
    assert report.of("left") == []
    assert "layer1.0.shortcut.0.weight" in report.unused
    reverse = initialize(resnet(8, (3, 4, 6, 8), seed=1), resnet(8, (4, 4, 6, 8)), example=X)
    assert {entry.reason for entry in reverse.of("left") if "shortcut" in entry.path} == {"the teacher has none"}
    assert {entry.path for entry in reverse.of("left") if "shortcut" not in entry.path} == {
        *(f"bn1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
        "conv1.weight",
        "layer1.0.conv1.weight",
    }


class Inverted(nn.Module):
    """Adds its input where the widths are equal, as torchvision's inverted residuals do."""

    def __init__(self, inputs: int, width: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.act, self.adds = nn.Conv2d(inputs, width, 1), act or nn.ReLU(), inputs == width

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x)) + (x if self.adds else 0)


def inverted(*widths: int, act: nn.Module | None = None) -> nn.Module:
    net = nn.Sequential(OrderedDict(blocks=nn.ModuleList(Inverted(*pair, act) for pair in pairwise(widths))))
    layers = [*net.blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 5)]
    return scrambled(nn.Sequential(*layers), 0)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        # both have all weights, and one adds what the other does not
        (
            inverted(3, 4, 4),
            inverted(3, 6, 8),
            r"begins at '1' \(Inverted\), whose layers are the same: .* residual sum",
        ),
        (
            resnet(widths=(4, 4, 6, 8)),
            resnet(widths=(4, 6, 6, 8)),
            r"begins at 'layer1.0.*the teacher's has .* has not",
        ),
        (
            inverted(3, 4, 5, act=nn.GELU()),
            inverted(3, 6, 8),
            r"begins at '0.act' .* is GELU\(.* in the student and ReLU",
        ),
        (inverted(3, 4, 5, act=nn.GELU()), inverted(3, 4, 5), r"begins at '0.act'"),
    ],
)
def test_what_differs_without_parameters_is_no_success(student, teacher, message):
    with pytest.warns(UserWarning, match=message):
        report = initialize(student, teacher, example=X)
    assert report.share == 1
    assert report.difference > 0.01
    assert "But the student does not compute what the teacher does" in str(report)
    console = Console(width=2000, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    assert "does not compute what the teacher does" in " ".join(console.export_text().split())


def test_what_does_not_differ_is_said_too():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = initialize(resnet(8, seed=1), resnet(14), example=X)
        left = initialize(scrambled(ResNet(8, (4, 4, 6, 12)), 1), resnet(), example=X)
    assert (report.difference, report.differs) == (0.0, "")
    assert left.difference > 0.01  # what was left explains it
    assert left.differs == ""
    assert initialize(resnet(8, seed=1), resnet(14)).difference is None


def test_the_student_is_looked_at_and_left_as_it_is():
    student, teacher = resnet(seed=1).train(), resnet()
    initialize(student, teacher, example=X)
    assert student.training
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in student.state_dict().items())
    assert not any(module._forward_hooks for module in student.modules())


@pytest.mark.parametrize(
    ("student", "teacher", "options", "message"),
    [
        (resnet(), resnet(), {"channels": "best"}, "channels must be 'largest' or 'first', got 'best'"),
        (resnet(), resnet(widths=(6, 6, 8, 10)), {}, r"differ in width: pass example=inputs"),
        (
            resnet(),
            VGG(8),
            {"example": X},
            r"no weight of the teacher VGG fits the student ResNet: the same layers must have",
        ),
        (
            resnet(),
            resnet(20),
            {"blocks": {"layer9": [0]}},
            r"'layer9' is no nn.Sequential .* of both networks; there are",
        ),
        (resnet(), resnet(20), {"blocks": {"layer1": [3]}}, r"expected 1 numbers from 0 to 2, got \[3\]"),
        (resnet(), resnet(20), {"blocks": {"layer1": [0, 1]}}, r"has 1 blocks in the student and 3 in the teacher"),
        (VGG(8), VGG(13), {}, r"'block0' has 3 layers in the student \(Conv2d BatchNorm2d ReLU\) and 6"),
        (resnet(), resnet(20, (6, 6, 8, 10)), {"blocks": {"layer2": [1]}, "example": X}, r"torch-pruning cannot make"),
    ],
)
def test_invalid(student, teacher, options, message):
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(ValueError, match=message):
        initialize(student, teacher, **options)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_the_command_line(tmp_path, capsys):
    torch.manual_seed(0)
    teacher = limbeck.zoo.network("resnet14", 10, (3, 32, 32))
    torch.save(teacher.state_dict(), tmp_path / "teacher.pt")
    told = ["initialize", "--student", "resnet8", "--teacher", f"resnet14@{tmp_path / 'teacher.pt'}", "--to"]
    assert main([*told, str(tmp_path / "student.safetensors"), "--blocks", "{layer1: [1]}"]) == 0
    assert "100.0 % of the student is the teacher's" in " ".join(capsys.readouterr().out.split())
    weights = load_file(tmp_path / "student.safetensors")
    assert torch.equal(weights["layer1.0.conv1.weight"], teacher.layer1[1].conv1.weight)
    assert main([*told, str(tmp_path / "student.pt")]) == 2
    assert "ending in .safetensors" in capsys.readouterr().err
    limbeck.zoo.network(f"resnet8@{tmp_path / 'student.safetensors'}", 10, (3, 32, 32))
