"""Commands that measure and ship prepare images as the network's own training did, or say that they do not."""

from __future__ import annotations

import itertools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from limbeck import zoo
from limbeck.cli import main
from limbeck.engine.named import tell_of_other_classes, unnamed_weights
from limbeck.zoo._files import facts_in

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
    folders = {"photos": ("cat", "dog"), "others": ("dog", "emu"), "three": ("cat", "dog", "emu")}
    for root, split in itertools.product(folders, ("train", "val")):
        for name in folders[root]:
            (folder / root / split / name).mkdir(parents=True)
            for number in range(6):
                picture = image.new("RGB", (30 + number, 40), (30 * number, 90, 10))
                picture.save(folder / root / split / name / f"{number}.png")
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
        assert (was.classes, was.words) == (("cat", "dog"), "--data imagefolder --root photos")
    own = zoo.trained_on("tiny_world:small@runs/own")
    assert (own.data, own.options) == ("tiny_world:loaders", {"size": 12, "mean": [0.25]})
    torch.save({}, "elsewhere.pt")
    for name in ("resnet8", "resnet8@random", "resnet8@elsewhere.pt", "resnet8@no/such"):
        assert zoo.trained_on(name) == ("", {}, (), (), (), (), "")


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


TRAINED = "tiny_world:small@runs/small"
OTHERS = "--data imagefolder --workers 0 --root others"


@pytest.mark.parametrize(
    "words",
    [
        f"export --network {TRAINED} {OTHERS} --formats safetensors --to shipped",
        f"eval --network {TRAINED} {OTHERS}",
        f"table {TRAINED} tiny_world:small@random {OTHERS}",
        f"table tiny_world:small@random {TRAINED} {OTHERS}",
    ],
)
def test_data_with_other_classes_are_refused(command: Command, world: Path, words: str) -> None:
    code, said = command(words)
    assert code == 2
    assert f"{TRAINED} was trained on other classes: its output 0 is 'cat', and here class 0 is 'dog'" in said
    assert "Its training had --data imagefolder --root photos: say the same here" in said
    assert not (world / "shipped").exists()


def test_the_same_classes_by_other_names_ship_with_these(command: Command, tmp_path: Path) -> None:
    rest = f"{OTHERS} --formats safetensors --to {tmp_path} --classes [dog,emu]"
    code, said = command(f"export --network {TRAINED} {rest}")
    assert code == 0, said
    assert json.loads((tmp_path / "export.json").read_text())["about"]["classes"] == ["dog", "emu"]
    again = f"tiny_world:small@{tmp_path}/student.safetensors"
    assert zoo.trained_on(again).classes == ("dog", "emu")
    code, said = command(f"eval --network {again} --data imagefolder --workers 0 --root photos --size 16")
    assert code == 2
    assert "its output 0 is 'dog', and here class 0 is 'cat'" in said


def test_a_teacher_of_other_classes_is_told_and_a_view_is_believed(command: Command) -> None:
    line = f"distill kd --student tiny_world:small --teacher {TRAINED} {OTHERS} --size 16 --epochs 1 --progress false"
    code, said = command(f"{line} --check false --run-dir other")
    assert code == 0, said
    assert f"the teacher {TRAINED} was trained on other classes: its output 0 is 'cat'" in said
    assert "--teacher-classes" in said
    code, said = command(f"{line} --check false --teacher-classes [1,0] --run-dir viewed")
    assert code == 0, said
    assert "other classes" not in said


def test_another_order_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    was = zoo._inputs.Inputs(classes=("ant", "bee", "cow"))
    monkeypatch.setattr(zoo, "trained_on", lambda name: was)
    with pytest.warns(UserWarning, match=r"output 0 is 'ant', and here class 0 is 'cow'. --teacher-classes \[2,0,1\] "):
        tell_of_other_classes("mlp-8@run", ("cow", "ant", "bee"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tell_of_other_classes("mlp-8@run", ("ant", "bee", "cow"))
        tell_of_other_classes("mlp-8@run", ())
        tell_of_other_classes("mlp-8@run", ("ant", "bee"))  # whose outputs cannot be compared


@pytest.mark.parametrize("words", ["eval --network", "layers", "export --to x --formats safetensors --network"])
def test_without_data_the_error_names_those_of_the_run(command: Command, words: str) -> None:
    for name in (TRAINED, "tiny_world:small@runs/own"):
        code, said = command(f"{words} {name}")
        assert code == 2
        root = "--data imagefolder --root photos" if name == TRAINED else "--data tiny_world:loaders"
        assert f"Its training had {root}: say the same here" in said


def test_other_counts_of_classes_are_told_with_their_names(command: Command) -> None:
    code, said = command(f"eval --network {TRAINED} --data imagefolder --workers 0 --root three")
    assert code == 2
    assert "was trained for 2 classes (cat, dog), and here there are 3 (cat, dog, emu)" in said


def test_what_has_learned_gets_no_fresh_last_layer(command: Command) -> None:
    for line in (f"eval --network {TRAINED} --data imagefolder --root photos", f"export --network {TRAINED} --to x"):
        with pytest.raises(SystemExit):
            command(f"{line} --new-head")


def test_a_function_that_names_no_weights_is_told_and_noted(command: Command, tmp_path: Path) -> None:
    rest = "--data imagefolder --workers 0 --root photos --size 16"
    doubt = "tiny_world:small names no weights: if the function does not load them itself, these are random"
    code, said = command(f"export --network tiny_world:small {rest} --formats safetensors --to {tmp_path}")
    assert code == 0, said
    assert said.count(doubt) == 2  # the warning, and the note
    assert doubt in json.loads((tmp_path / "export.json").read_text())["about"]["note"]
    assert doubt in facts_in(str(tmp_path / "student.safetensors"))["note"]
    for words in (f"eval --network tiny_world:small {rest}", f"table tiny_world:small@random tiny_world:small {rest}"):
        code, said = command(words)
        assert code == 0, said
        assert said.count(doubt) == 1
    for name in ("tiny_world:small@random", TRAINED, "mlp-8"):
        assert unnamed_weights(name) is None
    assert unnamed_weights("tiny_world:small") is not None


def test_a_file_in_the_place_of_a_name_is_told(command: Command, world: Path) -> None:
    file = "runs/small/student.safetensors"
    rest = "--data imagefolder --workers 0 --root photos --size 16"
    for words in (
        f"distill kd --student tiny_world:small --teacher {file} {rest}",
        f"eval --network {file} {rest}",
        f"train --network {file} {rest} --run-dir new",
    ):
        code, said = command(words)
        assert code == 2
        assert f"{file} is a file: write NAME@{file}" in said
    with pytest.raises(ValueError, match="runs/small is a folder: write NAME@runs/small"):
        zoo.network("runs/small")


def test_a_table_has_the_short_name_of_a_network(command: Command) -> None:
    rest = "--data imagefolder --workers 0 --root photos --size 16"
    code, said = command(f"eval --network {TRAINED}/student.safetensors {rest}")
    assert code == 0, said
    assert "tiny_world:small parameters" in re.sub(r"[ ─]+", " ", said)
    assert ".safetensors" not in said
