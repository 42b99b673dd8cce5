"""Layer tables and the pairing of student and teacher layers."""

import copy
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from limbeck import Frozen, layers, pairs, record, zoo
from limbeck.cli import main
from limbeck.core.layers import classifier, embedding, paired, shape_at, stages, table_of

X = torch.randn(2, 3, 16, 16)


def block(a, b, stride):
    return nn.Sequential(nn.Conv2d(a, b, 3, stride, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))


class Cnn(nn.Module):
    def __init__(self, width=4, depth=1, strides=(1, 2, 2)) -> None:
        super().__init__()
        self.stem = block(3, width, 1)
        self.stages = nn.ModuleList()
        for stride in strides:
            rows = [block(width, width * stride, stride)]
            width *= stride
            self.stages.append(nn.Sequential(*rows, *(block(width, width, 1) for _ in range(depth - 1))))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return self.fc(self.pool(x).flatten(1))


class Vit(nn.Module):
    """Patches by a convolution, blocks in a Sequential with names as in torchvision."""

    def __init__(self, depth: int, width: int = 8, digits: bool = False) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        names = {f"{'' if digits else 'layer_'}{i}": Block(width) for i in range(depth)}
        self.blocks = nn.Sequential()
        for name, module in names.items():
            self.blocks.add_module(name, module)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).mT
        return self.head(self.norm(self.blocks(x)).mean(1))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        attention = (self.q(x) @ self.k(x).mT).softmax(-1)
        return x + self.mlp(x + self.o(attention @ self.v(x)))


def mlp(*widths):
    parts = [nn.Flatten()]
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_table_has_paths_shapes_and_parameters_in_running_order():
    net = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(768, 6), nn.ReLU()), nn.Linear(6, 5))
    rows = [(r.path, r.kind, r.shape, r.input_shape, r.parameters) for r in layers(net, X)]
    assert rows == [
        ("0", "Flatten", (2, 768), (2, 3, 16, 16), 0),
        ("1.0", "Linear", (2, 6), (2, 768), 769 * 6),
        ("1.1", "ReLU", (2, 6), (2, 6), 0),
        ("1", "Sequential", (2, 6), (2, 768), 769 * 6),
        ("2", "Linear", (2, 5), (2, 6), 35),
    ]


def test_looking_leaves_the_network_as_it_was():
    net = Cnn().train()
    net.stem.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes, rng = [m.training for m in net.modules()], torch.get_rng_state()
    layers(net, X)
    shape_at(net, "stem", X)
    assert all(torch.equal(before[k], v) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(torch.get_rng_state(), rng)
    assert not any(m._forward_hooks for m in net.modules())


def test_a_noisy_teacher_is_looked_at_in_eval_mode():
    teacher = Frozen(nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 5), nn.BatchNorm1d(5)), "train")
    before, rng = {k: v.clone() for k, v in teacher.net.state_dict().items()}, torch.get_rng_state()
    layers(teacher, X)
    shape_at(teacher, "2", X)
    assert torch.equal(torch.get_rng_state(), rng)
    assert all(torch.equal(before[k], v) for k, v in teacher.net.state_dict().items())


def test_modules_without_tensor_output_or_call_are_left_out():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.never, self.fc = nn.LSTM(4, 4), nn.Linear(1, 1), nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.fc.weight.new_zeros(1) + self.rnn(x)[0])

    assert [row.path for row in layers(Net(), torch.randn(2, 3, 4))] == ["fc"]


def test_inputs_that_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, a, b):
            return self.fc(a + b)

    example = {"a": torch.ones(3, 4), "b": torch.ones(3, 4)}
    assert [row.shape for row in layers(Net(), example)] == [(3, 2)]
    assert shape_at(Net(), "fc:in", example) == (3, 4)


def test_stages_of_a_cnn_are_the_ends_of_its_resolutions():
    assert [(r.path, r.shape[2:]) for r in stages(Cnn(depth=2), X)] == [
        ("stages.0", (16, 16)),
        ("stages.1", (8, 8)),
        ("stages.2", (4, 4)),
    ]


def test_pairs_of_cnns_meet_at_equal_resolution():
    student, teacher = Cnn(width=4, depth=1), Cnn(width=6, depth=3)
    assert pairs(student, teacher, X) == [(f"stages.{i}", f"stages.{i}") for i in range(3)]
    deeper = Cnn(width=4, strides=(1, 2, 2, 2))
    assert pairs(student, deeper, X) == [(f"stages.{i}", f"stages.{i}") for i in range(3)]
    later = Cnn(width=4, strides=(2, 2))
    assert pairs(later, student, X) == [("stem", "stages.0"), ("stages.0", "stages.1"), ("stages.1", "stages.2")]


def test_pairs_of_cnns_without_equal_resolution_meet_by_depth():
    student, teacher = Cnn(strides=(3, 2)), Cnn(strides=(1, 2, 2, 2))
    small = nn.Sequential(nn.AvgPool2d(5), *block(3, 4, 1), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Linear(16, 5))
    assert [r.shape[2:] for r in stages(small, X)] == [(3, 3), (2, 2)]
    by_resolution = pairs(small, teacher, X)
    assert by_resolution == [("4", "stages.3")]
    odd = nn.Sequential(nn.AvgPool2d(5), *block(3, 4, 1), nn.Flatten(), nn.Linear(36, 5))
    assert pairs(odd, Cnn(strides=(1, 2)), X) == [("3", "stages.1")]
    assert pairs(student, odd, X)[-1][1] == "3"


@pytest.mark.parametrize("digits", [True, False])
def test_pairs_of_transformers_are_blocks_by_depth(digits):
    prefix = "blocks." if digits else "blocks.layer_"
    found = pairs(Vit(2, digits=digits), Vit(6, digits=digits), X)
    assert found == [(f"{prefix}0", f"{prefix}2"), (f"{prefix}1", f"{prefix}5")]
    back = pairs(Vit(6, digits=digits), Vit(4, digits=digits), X)
    assert back[-1] == (f"{prefix}5", f"{prefix}3")
    assert len(back) == 4


def test_pairs_of_mlps_are_hidden_layers():
    assert pairs(mlp(768, 6, 5), mlp(768, 8, 8, 5), X) == [("3:in", "5:in")]
    assert pairs(mlp(768, 6, 6, 5), mlp(768, 8, 8, 5), X) == [("3:in", "3:in"), ("5:in", "5:in")]


def test_paths_of_pairs_can_be_recorded():
    for student, teacher in ((Cnn(), Cnn(6, 2)), (Vit(2), Vit(4)), (mlp(768, 6, 5), mlp(768, 8, 8, 5))):
        for s, t in pairs(student, teacher, X):
            with record(student, [s]), record(teacher, [t]):
                student(X), teacher(X)


def test_compiled_networks_have_the_paths_of_their_authors():
    torch._dynamo.reset()
    net = Cnn()
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    assert layers(compiled, X) == layers(net, X)
    assert pairs(compiled, compiled, X) == pairs(net, net, X)
    assert embedding(compiled) == embedding(compiled, X) == "fc:in"
    assert shape_at(compiled, "stages.1", X) == (2, 8, 8, 8)
    with record(compiled, ["stages.1"]) as trace:  # it was not compiled by looking
        compiled(X)
    assert trace["stages.1"].shape == (2, 8, 8, 8)
    torch._dynamo.reset()


def test_pairing_refuses():
    student, teacher = Cnn(), Cnn()
    with pytest.raises(ValueError, match="pass example=inputs"):
        paired(student, teacher, None, None)
    with pytest.raises(ValueError, match=r"Cnn has no layer 'stages.7'; the closest are"):
        paired(student, teacher, [("stages.0", "stages.7")], None)
    with pytest.raises(ValueError, match="found no layers to pair"):
        paired(student, teacher, [], None)
    with pytest.raises(ValueError, match="found no layers to pair"):
        paired(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), teacher, None, X)


def test_maps_are_checked_where_they_are_needed():
    student, teacher = Cnn(), Cnn()
    assert paired(student, teacher, [("fc", "fc")], X) == [("fc", "fc")]
    assert paired(student, teacher, [("stem", "stem")], X, maps=True) == [("stem", "stem")]
    with pytest.raises(ValueError, match=r"the teacher's 'fc' has shape \(2, 5\)"):
        paired(student, teacher, [("stem", "fc")], X, maps=True)


def test_embedding_is_the_input_of_the_last_linear_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.aux = nn.Linear(768, 5), nn.Linear(768, 5)

        def forward(self, x):
            return self.fc(x.flatten(1))

    assert embedding(Net()) == "aux:in"
    assert embedding(Net(), X) == "fc:in"
    assert embedding(Frozen(Cnn())) == "fc:in"
    with pytest.raises(ValueError, match="Conv2d has no linear layer"):
        embedding(nn.Conv2d(3, 3, 1))


def test_shape_at():
    net = Cnn()
    assert shape_at(net, "", X) == (2, 5)
    assert shape_at(net, "fc:in", X) == (2, 16)


def test_a_teacher_is_looked_at_as_it_is_fed():
    """Its example is the student's: another size of images, other classes."""
    teacher = Frozen(Cnn(), inputs=nn.Upsample(scale_factor=2), output=lambda out: out, classes=[3, 1])
    assert shape_at(teacher, "stem", X) == (2, 4, 32, 32)
    assert shape_at(teacher, "", X) == (2, 2)
    assert layers(teacher, X)[0].input_shape == (2, 3, 32, 32)
    assert shape_at(Frozen(teacher.net, "train"), "", X) == (2, 5)


def test_table_of_two_networks():
    student, teacher = Cnn(), Cnn(6)
    table = table_of(student, teacher, X)
    assert table["pairs"] == pairs(student, teacher, X)
    assert table["teacher"] == layers(teacher, X)


class Gated(nn.Module):
    """Linear layers within, a convolution at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.head = nn.Linear(3, 3), nn.Conv2d(3, 10, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.squeeze(x.mean((2, 3))).sigmoid()
        return self.head(x * gate[:, :, None, None]).mean((2, 3))


def test_an_inner_linear_layer_is_no_classifier() -> None:
    example = torch.randn(2, 3, 8, 8)
    with pytest.raises(ValueError, match="Gated has no linear layer whose input could serve as embedding"):
        embedding(Gated(), example)
    assert classifier(Gated(), example) is None
    assert classifier(nn.Sequential(nn.Flatten(), nn.Linear(192, 10), nn.Dropout()), example).path == "1"


# the command line ----------------------------------------------------------------------------------------------------


@pytest.fixture
def command(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own

    def run(words: str) -> tuple[int, str]:
        code = main(["layers", *words.split()])
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs of several sizes, of two classes."""
    image = pytest.importorskip("PIL.Image")
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "photos" / split / name).mkdir(parents=True)
            for number in range(4):
                file = tmp_path / "photos" / split / name / f"{number}.png"
                image.new("RGB", (100 + number, 120), (40 * number, 90, 10)).save(file)
    return tmp_path / "photos"


def test_layers_are_those_of_the_data_as_a_training_takes_them(command) -> None:
    code, said = command("resnet8 vgg8 --data imagefolder --root photos --size 64 --batch-size 2 --workers 0")
    assert code == 0, said
    assert "(N, 16, 64, 64)" in said
    assert "(N, 2)" in said
    code, said = command("mlp-32 --data digits")
    assert code == 0, said
    assert "(N, 64)" in said


def test_without_data_a_shape_will_do(command) -> None:
    assert "(N, 16, 32, 32)" in command("resnet8")[1]
    assert "(N, 16, 12, 10)" in command("resnet8 --shape [3,12,10]")[1]
    code, said = command("resnet8 --shape [1,8,8] --data digits")
    assert code == 2
    assert "the inputs of digits have theirs: leave it out" in said


def test_layers_of_a_file_for_other_outputs(command) -> None:
    torch.save(zoo.network("mlp-8", 7, (1, 8, 8)).state_dict(), "seven.pt")
    code, said = command("mlp-8@seven.pt --data digits")
    assert code == 2
    assert "--new-head" in said
    code, said = command("mlp-8@seven.pt --data digits --new-head")
    assert code == 0, said
    assert "(N, 10)" in said
    code, said = command("mlp-8@seven.pt --shape [1,8,8] --new-head")
    assert code == 0, said
