"""Commands that measure and ship prepare images as the network's own training did, or say that they do not."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck import zoo
from limbeck.cli import main

Command = Callable[[str], tuple[int, str]]

MODULE = """
import limbeck
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import torch


def small(num_classes, in_channels):
    features = nn.Conv2d(in_channels, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(4, num_classes))


def loaders(size, mean=(0.5,), std=(1.0,)):
    x = (torch.rand(24, 1, size, size) - mean[0]) / std[0]
    loader = DataLoader(TensorDataset(x, torch.arange(24) % 2), 8)
    return loader, loader, loader
"""
QUIET = "--epochs 1 --progress false --workers 0 --check false"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs, a network, and a run that was trained at 16 pixels."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path_factory.mktemp("world")
    (folder / "tiny_world.py").write_text(MODULE)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / "photos" / split / name).mkdir(parents=True)
            for number in range(6):
                picture = image.new("RGB", (30 + number, 40), (30 * number, 90, 10))
                picture.save(folder / "photos" / split / name / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(warnings, "showwarning", warnings.showwarning)  # main sets its own
        photos = "--data imagefolder --root photos --size 16"
        assert main(f"train --network tiny_world:small {photos} --run-dir runs/small {QUIET}".split()) == 0
        own = "--data tiny_world:loaders --size 12 --mean [0.25] --num-outputs 2"
        assert (
            main(f"train --network tiny_world:small {own} --run-dir runs/own --epochs 1 --progress false".split()) == 0
        )
    return folder


@pytest.fixture
def command(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(world)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def run(words: str) -> tuple[int, str]:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            code = main(words.split())
        said = capsys.readouterr()
        return code, " ".join((said.out + said.err).split())

    return run


def shape_in(folder: Path) -> list[int]:
    return json.loads((folder / "export.json").read_text())["about"]["input_shape"]


def test_the_run_says_how_its_inputs_were_prepared(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world)
    for weights in ("runs/small", "runs/small/student.safetensors"):
        was = zoo.trained_on(f"tiny_world:small@{weights}")
        assert (was.data, was.shape, was.options["size"]) == ("imagefolder", (3, 16, 16), 16)
        assert was.options["mean"] == list(was.mean)
    own = zoo.trained_on("tiny_world:small@runs/own")
    assert (own.data, own.options) == ("tiny_world:loaders", {"size": 12, "mean": [0.25]})
    torch.save({}, "elsewhere.pt")
    for name in ("resnet8", "resnet8@random", "resnet8@elsewhere.pt", "resnet8@no/such"):
        assert zoo.trained_on(name) == ("", {}, (), (), ())


@pytest.mark.parametrize("weights", ["runs/small", "runs/small/student.safetensors"])
def test_export_takes_the_size_of_the_run_and_says_so(command: Command, tmp_path: Path, weights: str) -> None:
    rest = f"--data imagefolder --root photos --workers 0 --formats safetensors --to {tmp_path}"
    code, said = command(f"export --network tiny_world:small@{weights} {rest}")
    assert code == 0, said
    assert shape_in(tmp_path) == [3, 16, 16]
    assert re.search(r"images have the size that tiny_world:small@\S+ was trained with, 16", said)


def test_what_the_user_says_is_done_with_a_warning(command: Command, tmp_path: Path) -> None:
    rest = f"--data imagefolder --root photos --workers 0 --formats safetensors --to {tmp_path}"
    code, said = command(f"export --network tiny_world:small@runs/small {rest} --size 20")
    assert code == 0, said
    assert shape_in(tmp_path) == [3, 20, 20]
    assert "was trained on inputs of shape (3, 16, 16), and here they are (3, 20, 20)" in said
    half = "[0.5,0.5,0.5]"
    code, said = command(f"export --network tiny_world:small@runs/small {rest} --mean {half} --std {half}")
    assert code == 0, said
    assert "normalised by mean [0.485,0.456,0.406]" in said
    code, said = command(f"export --network tiny_world:small@runs/small {rest}")
    assert "was trained on inputs" not in said


def test_a_function_of_the_users_own_is_told_what_it_was_told(command: Command, tmp_path: Path) -> None:
    rest = f"--data tiny_world:loaders --num-outputs 2 --formats safetensors --to {tmp_path} --classes [cat,dog]"
    code, said = command(f"export --network tiny_world:small@runs/own {rest}")
    assert code == 0, said
    assert shape_in(tmp_path) == [1, 12, 12]
    assert "How inputs are normalised is not known" in said
    code, said = command(f"export --network tiny_world:small@runs/own {rest} --mean [0.25] --std [0.5]")
    assert code == 0, said
    assert "not known" not in said
    about = json.loads((tmp_path / "export.json").read_text())["about"]
    assert (about["mean"], about["std"], about["classes"]) == ([0.25], [0.5], ["cat", "dog"])


def test_an_exported_file_says_it_too(command: Command, tmp_path: Path) -> None:
    photos = "--data imagefolder --root photos --workers 0 --formats safetensors"
    assert command(f"export --network tiny_world:small@runs/small {photos} --to {tmp_path}/a")[0] == 0
    was = zoo.trained_on(f"tiny_world:small@{tmp_path}/a/student.safetensors")
    assert (was.data, was.shape) == ("imagefolder", (3, 16, 16))
    again = f"export --network tiny_world:small@{tmp_path}/a/student.safetensors {photos} --to {tmp_path}/b --size 24"
    code, said = command(again)
    assert code == 0, said
    assert "(3, 16, 16), and here they are (3, 24, 24)" in said


def test_a_damaged_note_is_told(command: Command, world: Path, tmp_path: Path) -> None:
    (tmp_path / "student.safetensors").write_bytes((world / "runs/small/student.safetensors").read_bytes())
    text = (world / "runs/small/inputs.json").read_text()
    (tmp_path / "inputs.json").write_text(text.replace('"imagefolder"', '"imagefolde"'))
    rest = "--data imagefolder --root photos --formats safetensors"
    code, said = command(f"export --network tiny_world:small@{tmp_path}/student.safetensors {rest} --to {tmp_path}/out")
    assert code == 2
    assert "inputs.json is damaged" in said
    assert "--size, --mean and --std" in said
