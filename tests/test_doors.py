"""A task reaches every door: the calls of Python, and the commands, for networks and data that are the user's own."""

import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

import limbeck
from limbeck import methods, zoo
from limbeck.cli import main
from limbeck.core.files import read
from limbeck.core.task import answer_at
from limbeck.engine.assemble import assemble
from limbeck.engine.run import Run

HOUSE = """
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import limbeck


@dataclass
class Said:
    scores: Tensor
    hidden: Tensor


class Net(nn.Module):
    def __init__(self, width, outputs=3):
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, outputs)

    def forward(self, image):
        hidden = self.body(image).relu()
        return Said(self.head(hidden), hidden)


def small():
    return Net(4)


def large():
    return Net(16)


def wide(num_classes):
    return Net(16, num_classes)


class Tokens(Net):
    def forward(self, image):
        return {"tags": super().forward(image / 2).scores}


def doubled():
    return Tokens(16, 5)


def photos(batch_size=25):
    x = torch.randn(300, 6, generator=torch.Generator().manual_seed(0))
    rows = [{"image": row, "label": row[:3].argmax(), "path": f"{at}.png"} for at, row in enumerate(x)]
    return tuple(DataLoader(part, batch_size) for part in (rows[:100], rows[100:200], rows[200:]))


def sized():
    rows = [{"image": torch.ones(6), "label": at % 3, "size": torch.ones(2)} for at in range(60)]
    return DataLoader(rows, 20), DataLoader(rows, 20)


def two():
    return photos()[:2]


def train_alone():
    return photos()[0]


def as_data(batch_size, seed):
    return limbeck.data.load("digits-attributes", samples=100, batch_size=batch_size, seed=seed)


def numbers():
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(list(zip(x, (x[:, :3] > 0).float())), 20)
    return loader, loader, loader


def larger(image):
    return 2 * image


task = limbeck.Task(name="house", inputs=lambda batch: batch["image"], output=lambda out: out.scores)


def by_image():
    return limbeck.Task(inputs=lambda batch: batch["image"])


def no_task():
    return 3
"""
OWN = "--data house:photos --task house:by_image --output scores"
BRIEF = "--epochs 2 --accelerator cpu --progress false"
Command = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the user's own module."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("warnings.showwarning", None)  # main() sets its own; put back after the test
    monkeypatch.delitem(sys.modules, "house", raising=False)
    (tmp_path / "house.py").write_text(HOUSE)
    return tmp_path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command and returns what it prints; one that fails is the test's failure."""

    def command(line: str) -> str:
        assert main(line.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return command


@pytest.fixture
def fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command that the user can mend, and returns what it complains of."""

    def command(line: str) -> str:
        assert main(line.split()) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said

    return command


def trained(run: Command, words: str = OWN, network: str = "house:large", name: str = "teacher") -> str:
    run(f"train --network {network} {words} {BRIEF} --run-dir {name}")
    return f"{network}@{name}/student.safetensors"


# the command line


def test_a_house_model_on_loaders_of_dicts_passes_every_command(run: Command, monkeypatch) -> None:
    monkeypatch.setattr("limbeck.cli.evaluation.SECONDS", 0.001)
    monkeypatch.setattr("limbeck.cli.table.SECONDS", 0.001)
    monkeypatch.setenv("COLUMNS", "120")
    teacher = trained(run)
    pair = f"--student house:small --teacher {teacher} {OWN}"
    said = run(f"distill kd {pair} {BRIEF} --run-dir student")
    told = json.loads(Path("student/result.json").read_text())
    accuracy = f"{100 * told['networks']['student']['test']['accuracy']:.2f} %"
    assert "house:photos, its test data, after 2 epochs" in said
    assert accuracy in said
    student = "house:small@student/student.safetensors"

    assert "100 validation" in run(f"check kd {pair} --expect 0.5")
    measured = json.loads(run(f"eval --network {student} --teacher {teacher} {OWN} --json"))
    assert measured["samples"] == 100
    assert measured["classes"] == ["0", "1", "2"]
    assert measured["network"]["accuracy"] == pytest.approx(told["networks"]["student"]["test"]["accuracy"])
    assert accuracy in run(f"eval --network {student} {OWN}")
    assert "house:small" in run(f"table {teacher} {student} {OWN}")
    assert "head" in run(f"layers house:small house:large {OWN}")
    assert "student.safetensors" in run(f"export --network {student} --to out --formats safetensors {OWN}")
    run(f"compare kd {pair} --epochs 1 --seeds 2 --accelerator cpu --progress false --run-dir compared")
    compared = json.loads(Path("compared/results.json").read_text())
    assert [one["name"] for one in compared["rows"]] == ["teacher", "plain", "kd"]
    tuned = run(
        f"tune kd {pair} --search temperature=1,4 --trials 2 --final-seeds 1 --epochs 1 --accelerator cpu "
        "--progress false --run-dir tuned"
    )
    assert "--data house:photos --task house:by_image --output scores" in tuned
    assert "report.html" in run("report student")


def test_the_data_say_their_task_and_what_is_measured(run: Command, monkeypatch) -> None:
    monkeypatch.setattr("limbeck.cli.evaluation.SECONDS", 0.001)
    words = "--data house:as_data --batch-size 20"
    teacher = trained(run, words, "mlp-16")
    said = run(f"distill kd --student mlp-8 --teacher {teacher} {words} {BRIEF} --run-dir student")
    told = json.loads(Path("student/result.json").read_text())["networks"]["student"]["test"]
    assert told.keys() == {"mAP", "F1", "loss"}
    assert all(name in said for name in ("mAP", "F1", f"{100 * told['mAP']:.2f} %", f"{told['F1']:.4f}"))
    measured = json.loads(run(f"eval --network mlp-8@student/student.safetensors --teacher {teacher} {words} --json"))
    assert measured["score"] == {"name": "mAP", "unit": "%", "best": "highest"}
    assert measured["metrics"][0] == "mAP"
    assert measured["network"]["mAP"] == pytest.approx(told["mAP"])
    assert "confusion" not in measured["network"]
    shown = run(f"eval --network mlp-8@student/student.safetensors --noise 0.5 {words}")
    assert "mAP, noise 0.5" in shown
    assert "left out, since it needs one class a sample" in shown
    assert "accuracy" not in shown


def test_values_are_judged_by_their_error(run: Command) -> None:
    words = "--data diabetes --batch-size 100"
    teacher = trained(run, words, "mlp-16")
    said = run(f"distill logits --student mlp-4 --teacher [{teacher},{teacher}] {words} {BRIEF} --run-dir student")
    told = json.loads(Path("student/result.json").read_text())
    assert f"{told['networks']['student']['test']['RMSE']:#.4g}" in said
    alone = json.loads(Path("teacher/result.json").read_text())["networks"]["student"]["val"]
    assert told["teacher"]["RMSE"] == pytest.approx(alone["RMSE"])  # the mean of values that are alike


def test_weights_remember_their_task(run: Command, fails: Command) -> None:
    teacher = trained(run, "--data digits-attributes --samples 100", "mlp-8")
    assert read(Path("teacher/student.safetensors"), "")[1] == {"task": "multilabel"}
    assert zoo.trained_for(teacher) == "multilabel"
    said = fails(f"distill kd --student mlp-4 --teacher {teacher} --num-outputs 5 {BRIEF}")
    assert "the tasks of teacher and student differ" in said
    assert (
        "was trained for multilabel, and the task here is classification. Say task=limbeck.multilabel (--task" in said
    )


def test_what_was_trained_for_classification_says_nothing(tmp_path: Path) -> None:
    net = nn.Linear(3, 2)
    run = Run(tmp_path)
    run.write_networks({"a": net})
    run.write_networks({"b": net}, replace(limbeck.classification, output=answer_at("scores")))
    one, other = (tmp_path / f"{name}.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert zoo.trained_for(f"mlp-2@{one}") is None
    assert zoo.trained_for("mlp-2") is None
    assert zoo.trained_for("mlp-2@random") is None


def test_a_teacher_may_be_fed_and_read_otherwise(run: Command) -> None:
    """The doubled inputs undo the halving, so that the teacher says what one says that is read as the student is."""
    torch.manual_seed(0)
    weights = zoo.network("house:doubled", None, None).state_dict()
    torch.save(weights, "doubled.pt")
    picked = [4, 0, 2]
    head = {f"head.{part}": weights[f"head.{part}"][picked] for part in ("weight", "bias")}
    torch.save({**weights, **head}, "alike.pt")
    line = f"distill kd --student house:small {OWN} {BRIEF} --check false"
    run(f"{line} --teacher house:large@alike.pt --run-dir alike")
    view = "--teacher-output tags --teacher-inputs house:larger --teacher-classes [4,0,2]"
    run(f"{line} --teacher house:doubled@doubled.pt {view} --run-dir viewed")
    run(f"{line} --teacher [house:doubled@doubled.pt,house:doubled@doubled.pt] {view} --run-dir both")
    alike, viewed, both = (
        json.loads(Path(f"{name}/result.json").read_text())["networks"]["student"]["test"]["loss"]
        for name in ("alike", "viewed", "both")
    )
    assert viewed == pytest.approx(alike, rel=1e-5)
    assert both == pytest.approx(alike, rel=1e-5)


def test_a_teacher_may_have_more_outputs(run: Command) -> None:
    torch.save(zoo.network("house:wide", 7, None).state_dict(), "wide.pt")
    teacher = "--teacher house:wide@wide.pt --teacher-num-outputs 7 --teacher-classes [6,5,1]"
    assert "teacher accuracy" in run(f"check kd --student house:small {teacher} {OWN}")


def test_loaders_without_test_data_are_measured_on_the_validation_data(run: Command) -> None:
    said = run(f"train --network house:small {OWN.replace('photos', 'two')} {BRIEF} --run-dir run")
    assert "house:two, its validation data" in said


def test_tasks_are_listed(run: Command) -> None:
    header, *lines = run("list tasks").splitlines()
    assert header.split() == ["task", "what", "it", "is"]
    assert [line.split()[0] for line in lines] == ["classification", "multilabel", "regression", "segmentation"]
    assert "One class a sample" in lines[0]


WRONG = {
    "an unknown task": ("--data digits --task multilable", "unknown task 'multilable': did you mean multilabel?"),
    "no task like it": (
        "--data digits --task x",
        "there are classification, multilabel, regression, segmentation, or one of your own",
    ),
    "no module": ("--data digits --task nohouse:task", "no module 'nohouse'"),
    "nothing of the name": ("--data digits --task house:tsk", "house has no 'tsk'; perhaps task"),
    "what is no task": (
        "--data digits --task house:no_task",
        "expected a limbeck.Task, or a function that returns one",
    ),
    "no such output": (
        f"{OWN} --output score",
        "the output has no entry 'score': it is a Said with ['scores', 'hidden']",
    ),
    "an output that is no tensor": ("--data house:photos --task house:by_image --output 0", "no entry '0'"),
    "outputs that say nothing": (
        "--data house:photos --task house:by_image",
        "Say which is the answer, limbeck.Task(output=lambda out: out.scores) as task=, or --output scores",
    ),
    "batches that are not fed": (
        "--data house:sized --output scores",
        "Net takes ['image'], and is given a dict with ['image', 'size']",
    ),
    "several labels": (
        "--network mlp-4 --data house:numbers --num-outputs 3",
        "several labels a sample? task=limbeck.multilabel",
    ),
    "a network that asks": (
        "--network house:wide --data house:photos --task house:task",
        "house:wide is made by num_classes, which the data do not tell: say how many outputs it needs: --num-outputs N",
    ),
    "a network of the zoo": ("--network mlp-4 --data house:numbers", "--num-outputs N"),
    "a train loader": (
        "--data house:train_alone --task house:task",
        "loaders (train, val, test) or (train, val), got DataLoader",
    ),
    "an option unheard": (
        f"{OWN} --labels 10",
        "house:photos has no argument 'labels': give it one, or leave --labels out",
    ),
    "no function": ("--data house:phots", "house has no 'phots'; perhaps photos"),
    "data that are none": ("--data house:HOUSE", "house has no 'HOUSE'"),
    "the data's task": (
        "--network mlp-4 --data digits-attributes --task classification",
        "the data are for multilabel, and the method's task is classification: pass task=data.task (--task multilabel)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_user_can_mend(fails: Command, case: str) -> None:
    words, message = WRONG[case]
    network = "" if "--network" in words else "--network house:small"
    assert message in fails(f"train {network} {words} {BRIEF}")


# Python


@dataclass
class Said:
    scores: Tensor


class Net(nn.Module):
    def __init__(self, width: int, outputs: int = 4) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(6, width), nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Said:
        return Said(self.head(self.body(x).relu()))


def tags() -> tuple[DataLoader, ...]:
    x = torch.randn(90, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, :4] > 0).float()
    parts = [DataLoader(list(zip(x[a:b], y[a:b], strict=True)), 15) for a, b in ((0, 60), (60, 75), (75, 90))]
    return tuple(parts)


MULTILABEL = replace(limbeck.multilabel, output=lambda out: out.scores)
HOW = {"epochs": 1, "accelerator": "cpu", "progress": False}


def test_a_task_is_one_argument() -> None:
    torch.manual_seed(0)
    student = Net(4)
    result = limbeck.distill(student, Net(16), tags(), task=MULTILABEL, **HOW)
    assert {"test/student/mAP", "test/student/F1", "test/student/loss"} <= result.metrics.keys()
    again = limbeck.evaluate(student, tags()[2], MULTILABEL)
    assert again["mAP"] == pytest.approx(result.metrics["test/student/mAP"])


def test_the_task_is_the_datas_unless_another_is_given() -> None:
    data = limbeck.data.load("digits-attributes", samples=60)
    nets = [zoo.network(name, data.outputs, data.shape) for name in ("mlp-8", "mlp-4")]
    assert "test/student/mAP" in limbeck.distill(nets[1], nets[0], data, **HOW).metrics
    mine = replace(limbeck.multilabel, name="mine", score=limbeck.Score("F1"))
    result = limbeck.distill(nets[1], nets[0], data, task=mine, **HOW)
    assert "test/student/F1" in result.metrics
    method = limbeck.kd(nets[1], nets[0])
    with pytest.raises(
        ValueError, match="the data are for multilabel, and the method's task is classification: pass task="
    ):
        limbeck.fit(method, data, **HOW)
    assert limbeck.check(limbeck.kd(nets[1], nets[0], task=data.task), data).findings


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            replace(limbeck.classification, output=lambda out: out.scores),
            r"several labels a sample\? task=limbeck.multilabel",
        ),
        (
            replace(MULTILABEL, score=limbeck.Score("AUC")),
            r"is judged by 'AUC', but its metrics give .*'F1', 'loss', 'mAP'",
        ),
        (limbeck.multilabel, r"limbeck.Task\(output=lambda out: out.scores\)"),
        (replace(MULTILABEL, target=lambda batch: batch[1][:, :3]), "shape"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_go_together_is_told_before_the_training(task: limbeck.Task, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        limbeck.distill(Net(4), Net(16), tags(), task=task, **HOW)


@pytest.mark.parametrize("name", methods.__all__)
def test_every_method_can_be_given_a_task(name: str) -> None:
    assert "task" in inspect.signature(getattr(methods, name)).parameters


def test_assemble_hands_the_task_on() -> None:
    nets = Net(4), Net(16)
    assert assemble("kd", *nets, None, {}, task=MULTILABEL).task is MULTILABEL  # type: ignore[union-attr]
    assert assemble("kd", *nets, None, {}).task is limbeck.classification  # type: ignore[union-attr]


def test_masks_and_the_entry_that_holds_their_scores(run: Command, tmp_path: Path) -> None:
    """`--output` finds the entry; the task still turns its classes last."""
    (tmp_path / "dense.py").write_text(
        "from torch import nn\n\n\n"
        "class Dense(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.body = nn.Conv2d(3, 3, 3, padding=1)\n\n"
        "    def forward(self, x):\n        return {'maps': self.body(x), 'other': x}\n\n\n"
        "def dense():\n    return Dense()\n"
    )
    for split, count in (("train", 8), ("val", 4)):
        for number in range(count):
            pixels = torch.randint(256, (16, 20, 3), dtype=torch.uint8)
            for kind, image in (("images", pixels), ("masks", pixels[:, :, 0] // 86)):
                path = tmp_path / "pixels" / split / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(path)
    data = "--data masks --root pixels --size [12,16] --ignore 9 --batch-size 4"
    said = run(f"train --network dense:dense {data} --output maps --num-outputs 3 {BRIEF} --run-dir run")
    assert "mIoU" in said
