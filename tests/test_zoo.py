"""Networks by name: what they are, and what is said when a name, a shape or weights do not fit."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import limbeck
from limbeck import record, zoo
from limbeck.engine.run import Run
from limbeck.nets.anew import start_anew

# Parameters at 100 classes. In millions they are the figures of the CIFAR-100 tables of Tian et al. (CRD, ICLR 2020):
# resnet20 0.28, resnet56 0.86, resnet110 1.74, wrn-40-2 2.26, vgg8 3.97, shufflenetv2 1.36, ...
PARAMETERS = {
    "resnet20": 278_324,
    "resnet32": 472_756,
    "resnet56": 861_620,
    "resnet110": 1_736_564,
    "resnet8x4": 1_233_540,
    "resnet32x4": 7_433_860,
    "wrn-16-2": 703_284,
    "wrn-40-1": 569_780,
    "wrn-40-2": 2_255_156,
    "vgg8": 3_965_028,
    "vgg13": 9_462_180,
    "mobilenetv2": 812_836,
    "shufflenetv1": 949_258,
    "shufflenetv2": 1_355_528,
}

# the smallest of each family, and where a family has two forms, one of each
FAMILIES = [
    "resnet8",
    "wrn-10-1",
    "vgg8",
    "mobilenetv2",
    "shufflenetv1",
    "shufflenetv2",
    "plane2",
    "plane8",
    "fitnet1",
    "fitnet-teacher",
    "mlp-32-16",
]

# what their docstrings promise at these paths, for images of 32x32
PLACES = {
    "resnet8": {"conv1": (16, 32, 32), "layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8)},
    "resnet8x4": {"conv1": (32, 32, 32), "layer1": (64, 32, 32), "layer3": (256, 8, 8), "pool": (256, 1, 1)},
    "wrn-16-2": {"layer1": (32, 32, 32), "layer2.0.relu1": (32, 32, 32), "layer3": (128, 8, 8), "relu": (128, 8, 8)},
    "vgg8": {"block0": (64, 32, 32), "block3": (512, 4, 4), "block4": (512, 4, 4), "fc": (10,)},
    "mobilenetv2": {"stem": (16, 16, 16), "blocks.1": (12, 16, 16), "blocks.6": (160, 2, 2), "head": (1280, 2, 2)},
    "shufflenetv1": {"conv1": (24, 32, 32), "layer1": (240, 16, 16), "layer3": (960, 4, 4)},
    "shufflenetv2": {"layer1": (116, 16, 16), "layer3": (464, 4, 4), "relu2": (1024, 4, 4)},
    "plane8": {"features.stage4": (128, 4, 4), "features.pool4": (128, 2, 2), "hidden": (64,)},
    "fitnet1": {"stage1.0": (16, 32, 32), "stage3.2": (64, 8, 8), "pool3": (64, 1, 1), "fc1": (500,)},
    "fitnet-teacher": {"features.0": (96, 33, 33), "features.5": (192, 5, 5), "fc1": (500,)},
    "mlp-32-16": {"layers.fc1": (32,), "layers.relu2": (16,), "layers.fc3": (10,)},
}


def size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def same(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def seeded(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return zoo.network(name)


@pytest.mark.parametrize(("name", "parameters"), PARAMETERS.items())
def test_sizes_are_those_of_the_literature(name: str, parameters: int) -> None:
    with torch.device("meta"):
        assert size(zoo.network(name, num_classes=100)) == parameters


def test_sizes_that_are_told_are_true() -> None:
    for name, about in zoo.describe():
        told = re.search(r"([\d.]+) M", about)
        if told is None:
            continue
        with torch.device("meta"):
            millions = size(zoo.network(name, num_classes=10 if "fitnet" in name else 100)) / 1e6
        decimals = len(told[1].partition(".")[2])
        assert round(millions, decimals) == float(told[1]), name


@pytest.mark.parametrize("name", PLACES)
def test_places_are_where_the_docstrings_say(name: str) -> None:
    net, promised = zoo.network(name), PLACES[name]
    with record(net.eval(), promised) as trace, torch.no_grad():
        net(torch.zeros(2, 3, 32, 32))
    assert {path: tuple(value.shape[1:]) for path, value in trace.items()} == promised


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_decides_the_weights(name: str) -> None:
    assert same(seeded(name, 1), seeded(name, 1))
    assert not same(seeded(name, 1), seeded(name, 2))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_start_anew_is_a_new_network(name: str) -> None:
    net = seeded(name, 2)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 32, 32))  # moves the statistics of batch norm too
    torch.manual_seed(1)
    start_anew(net)
    assert same(net, seeded(name, 1))


@pytest.mark.parametrize(
    ("name", "path", "std"),
    [
        ("resnet32x4", "layer3.1.conv2", (2 / (256 * 9)) ** 0.5),
        ("wrn-16-2", "layer3.0.conv1", (2 / (128 * 9)) ** 0.5),
        ("vgg8", "block4.0", (2 / (512 * 9)) ** 0.5),
        ("mobilenetv2", "blocks.5.1.depthwise.conv", (2 / (480 * 9)) ** 0.5),  # not fan-out's 2 / 9 of one group
        ("vgg8", "fc", 0.01),
        ("mobilenetv2", "fc", 0.01),
        ("shufflenetv2", "conv2", (1 / (3 * 464)) ** 0.5),  # torch's default: uniform within 1 / sqrt(fan in)
    ],
)
def test_weights_start_as_their_authors_drew_them(name: str, path: str, std: float) -> None:
    layer = seeded(name, 1).get_submodule(path)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.05)


@pytest.mark.parametrize("name", ["fitnet4", "fitnet-teacher"])
def test_maxout_keeps_the_size_of_the_signal(name: str) -> None:
    with torch.no_grad():
        out = seeded(name, 1)(torch.randn(4, 3, 32, 32))
    assert 0.1 < out.square().mean() < 30  # the authors' ±0.005 would leave 1e-9 and less


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 40, 24)])
def test_other_channels_and_sizes(name: str, shape: tuple[int, int, int]) -> None:
    net = zoo.network(name, num_classes=7, shape=shape)
    assert net.training
    out = net(torch.randn(2, *shape))
    assert out.shape == (2, 7)
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_shuffle_deals_the_two_halves_in_turn() -> None:
    unit = zoo.network("shufflenetv2").get_submodule("layer1.1").eval()
    x = torch.randn(2, 116, 4, 4)
    passed, worked = x.chunk(2, dim=1)
    with torch.no_grad():
        out = unit(x)
        assert torch.equal(out[:, 0::2], passed)
        assert torch.equal(out[:, 1::2], unit.branch(worked))


def test_vgg_pools_once_more_for_large_images() -> None:
    net = zoo.network("vgg8").eval()
    with record(net, ["block4"]) as trace, torch.no_grad():
        net(torch.zeros(1, 3, 64, 64))
    assert trace["block4"].shape[2:] == (4, 4)


def test_mlp_takes_any_shape() -> None:
    assert zoo.network("mlp-8", num_classes=3, shape=(5,))(torch.zeros(2, 5)).shape == (2, 3)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resent56", "unknown network 'resent56'; perhaps resnet56"),
        ("nothing-like-it", r"unknown network 'nothing-like-it'; Accepted: .*names\(\) lists, wrn-D-K"),
        ("torchvision", "unknown network 'torchvision'"),
        ("wrn-15-2", r"wrn-15-2: .*6n \+ 4 .*got 15"),
        ("wrn-16-0", "wrn-16-0: .*at least 1, got 0"),
        ("mlp-0", "mlp-0: .*positive"),
        ("resnet8@", "expected after '@' a file"),
        ("resnet8@pretrained", "only torchvision's and timm's networks come pretrained; give a file, resnet8@FILE"),
        (
            "resnet8@pretraind",
            "no such file of weights: .*pretraind; after '@' comes a file, a run's folder, 'pretrained'",
        ),
        ("resnet8@nowhere.pt", "resnet8: there is no such file of weights: .*nowhere.pt"),
    ],
)
def test_names_that_mean_nothing(name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        zoo.network(name)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("vgg8", (3, 4, 4), "vgg8: images of 4x4 are too small, the smallest that works is 8x8"),
        ("plane8", (3, 8, 8), "plane8: images of 8x8 are too small, the smallest that works is 16x16"),
        ("fitnet1", (3, 2, 32), "fitnet1: images of 2x32 are too small, the smallest that works is 4x4"),
        ("resnet8", (64,), r"resnet8: expected images of shape \(C, H, W\), got \(64,\); an mlp"),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        zoo.network(name, shape=shape)


def test_random_is_the_fresh_network() -> None:
    assert same(seeded("resnet8@random", 3), seeded("resnet8", 3))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("form", ["safetensors", "pt", "state_dict", "model"])
def test_weights_go_round(tmp_path: Path, prefix: str, form: str) -> None:
    net = seeded("plane2", 1)
    state = {prefix + key: value for key, value in net.state_dict().items()}
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(state, file)
    else:
        torch.save(state if form == "pt" else {form: state, "epoch": 3}, file)
    loaded = seeded(f"plane2@{file}", 2)
    assert same(loaded, net)
    assert loaded.training


def test_old_weights_without_step_counters_fit(tmp_path: Path) -> None:
    net = seeded("plane2", 1)
    state = {key: value for key, value in net.state_dict().items() if "num_batches" not in key}
    torch.save(state, tmp_path / "old.pth")
    assert same(zoo.network(f"plane2@{tmp_path / 'old.pth'}"), net)


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return dict(net.state_dict())


def test_weights_of_other_classes_name_both_counts(tmp_path: Path) -> None:
    torch.save(weights_of(zoo.network("plane2", num_classes=100)), tmp_path / "a.pt")
    with pytest.raises(ValueError, match="the file was trained for 100 classes, the data has 10; other shape"):
        zoo.network(f"plane2@{tmp_path / 'a.pt'}", num_classes=10)


def test_weights_of_another_network_name_what_is_amiss(tmp_path: Path) -> None:
    torch.save(weights_of(zoo.network("plane4")), tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"plane2: the weights in .* do not fit the network") as error:
        zoo.network(f"plane2@{tmp_path / 'a.pt'}")
    assert "not in the network (14): features.stage1.3.weight" in str(error.value)
    assert "other shape (7): features.stage2.0.weight (file (32, 16, 3, 3), network (16, 16, 3, 3))" in str(error.value)
    assert "classes" not in str(error.value)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    state = weights_of(zoo.network("plane2"))
    del state["fc.bias"]
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"missing in the file \(1\): fc.bias"):
        zoo.network(f"plane2@{tmp_path / 'a.safetensors'}")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(1)], "expected a dictionary of tensors in .*, got a list"),
        ({"weights": torch.zeros(1), "epoch": 3}, r"not in the network \(1\): weights"),
        (nn.Linear(2, 2), r"whole network \(torch.nn.modules.linear.Linear\), pickled.*state_dict"),
    ],
)
def test_files_that_hold_no_weights(tmp_path: Path, content: object, words: str) -> None:
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=words):
        zoo.network(f"plane2@{tmp_path / 'a.pt'}")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_broken_files(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=f"plane2: .*a.{suffix} (cannot be read as safetensors|is a text file)"):
        zoo.network(f"plane2@{file}")


FACTORIES = """
from torch import nn

calls = []

def plain():
    return nn.Linear(3, 2)

def asks(num_classes, *, in_channels, width=4):
    calls.append((num_classes, in_channels, width))
    return nn.Conv2d(in_channels, num_classes, 1)

def greedy(**anything):
    assert not anything
    return nn.Identity()

def wrong():
    return 3

made = nn.Linear(1, 1)
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's in the working directory, which nothing but the working directory leads to."""
    (tmp_path / "my_nets.py").write_text(FACTORIES)
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield "my_nets"
    sys.modules.pop("my_nets", None)


def test_factories_of_the_working_directory(mine: str) -> None:
    before = list(sys.path)
    assert isinstance(zoo.network(f"{mine}:plain"), nn.Linear)
    assert isinstance(zoo.network(f"{mine}:greedy"), nn.Identity)
    net = zoo.network(f"{mine}:asks", num_classes=7, shape=(5, 8, 8))
    assert (net.in_channels, net.out_channels) == (5, 7)
    assert sys.modules[mine].calls == [(7, 5, 4)]
    assert sys.path == before


def test_factories_load_weights(mine: str, tmp_path: Path) -> None:
    net = zoo.network(f"{mine}:plain")
    torch.save(net.state_dict(), tmp_path / "a.pt")
    assert same(zoo.network(f"{mine}:plain@a.pt"), net)


@pytest.mark.parametrize(
    ("factory", "error", "words"),
    [
        ("my_nets:plian", ValueError, "my_nets has no 'plian'; perhaps plain"),
        ("my_nest:plain", ValueError, "no module 'my_nest' .looked in"),
        ("my/nets.py:plain", ValueError, "expected package.module:factory"),
        (":plain", ValueError, "expected package.module:factory"),
        ("my_nets:made", TypeError, r"expected a function or class .* a module that is already made \(Linear\)"),
        ("my_nets:calls", TypeError, r"expected a function or class .* got list \[\]"),
        ("my_nets:wrong", TypeError, "expected it to return a torch.nn.Module, got int 3"),
        ("my_nets:plain@pretrained", ValueError, "give a file, my_nets:plain@FILE"),
        ("needs_more:net", ModuleNotFoundError, "a_package_that_is_not_there"),
    ],
)
def test_factories_that_make_nothing(mine: str, factory: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        zoo.network(factory)


def test_of_unknown_data_only_what_does_not_ask_can_be_made(mine: str, tmp_path: Path) -> None:
    net = zoo.network(f"{mine}:plain", None, None)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    assert same(zoo.network(f"{mine}:plain@a.pt", None, None), net)
    for name, given, words in (
        (f"{mine}:asks", (None, (3, 8, 8)), "is made by num_classes, which the data do not tell: .*--num-outputs N"),
        (
            f"{mine}:asks",
            (3, None),
            "is made by in_channels, which the data do not tell: its inputs are no single tensor",
        ),
        ("resnet8", (None, (3, 8, 8)), "resnet8 is made by num_classes"),
        ("mlp-8", (3, None), "mlp-8 is made by shape"),
    ):
        with pytest.raises(ValueError, match=words):
            zoo.network(name, *given)


def test_the_file_of_a_network_made_of_another_needs_its_inputs(mine: str, tmp_path: Path) -> None:
    early = limbeck.with_exits(zoo.network("mlp-8-8", 3, (6,)), torch.zeros(2, 6))
    Run(tmp_path).write_networks({"early": early})
    with pytest.raises(ValueError, match="is of a network made of another one, for inputs that are one tensor"):
        zoo.network(f"{mine}:plain@early.safetensors", None, None)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:mobilenet_v3_small", (3, 32, 32)),
        ("torchvision:shufflenet_v2_x0_5", (3, 32, 32)),
        ("timm:mobilenetv3_small_050", (1, 32, 32)),
        ("timm:vit_tiny_patch16_224", (1, 32, 32)),  # an image size that is fixed when it is built
        ("timm:resnet10t", (2, 24, 40)),
    ],
)
def test_networks_of_the_libraries(name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip(name.partition(":")[0])
    net = zoo.network(name, num_classes=7, shape=shape)
    assert net.training
    assert net(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("torchvision:resnet19", (3, 32, 32), "torchvision has no model 'resnet19'; perhaps resnet1"),
        ("timm:resnet19", (3, 32, 32), "timm has no model 'resnet19'; perhaps resnet1"),
        ("torchvision:mobilenet_v3_small", (1, 32, 32), "takes images of 3 channels, the data has 1"),
        ("torchvision:squeezenet1_1", (3, 8, 8), "images of 8x8 are too small, the smallest that works is 17x17"),
    ],
)
def test_networks_of_the_libraries_that_do_not_fit(name: str, shape: tuple[int, ...], words: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError, match=words):
        zoo.network(name, shape=shape)


@pytest.mark.parametrize("name", ["torchvision:resnet18@pretrained", "timm:resnet18@pretrained"])
def test_pretrained_networks_of_other_classes_are_refused_where_nothing_may_be_untrained(name: str) -> None:
    pytest.importorskip(name.partition(":")[0])
    with pytest.raises(ValueError, match="has 1000 classes, the data has 10: train a fresh last layer first"):
        zoo.network(name, new_head=False)


def test_nothing_is_downloaded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a download")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    # its backbone comes pretrained by default
    net = zoo.network("torchvision:lraspp_mobilenet_v3_large", num_classes=3, shape=(3, 64, 64))
    assert net.eval()(torch.zeros(1, 3, 64, 64))["out"].shape == (1, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (("mlp-8", "10"), TypeError, "num_classes must be a whole number, as 10, got '10'"),
        (("mlp-8", 2.0), TypeError, r"got 2\.0"),
        (("mlp-8", True), TypeError, "got True"),
        (("mlp-8", 0), ValueError, "num_classes must be at least 1, got 0"),
        (("mlp-8", 10, "3x8x8"), TypeError, r"shape must be that of one sample, as \(3, 32, 32\), got '3x8x8'"),
        (("mlp-8", 10, (3, 8.0, 8)), TypeError, r"got \(3, 8\.0, 8\)"),
        ((nn.Linear(1, 1),), TypeError, "name must be a network's name, as 'resnet8', got Linear"),
    ],
)
def test_arguments_of_another_type(arguments: tuple, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        zoo.network(*arguments)


def test_a_file_is_no_name(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"a\.pt is a file: write NAME@.*a\.pt, with the network's name before it"):
        zoo.network(str(tmp_path / "a.pt"))


def test_numbers_of_numpy_are_numbers() -> None:
    assert zoo.network("mlp-8", np.int64(3), (np.int64(5),))(torch.zeros(1, 5)).shape == (1, 3)


def test_no_two_names_make_the_same_network() -> None:
    fixed = [name for name in zoo.names() if not set(name) & set("ABCDEFGHIJKLMNOPQRSTUVWXYZ")]
    assert {"resnet8x4", "vgg8", "plane10-cifar100", "fitnet-teacher"} <= set(fixed)
    with torch.device("meta"):
        sizes = {name: size(zoo.network(name)) for name in fixed}
    assert len(set(sizes.values())) == len(fixed)
