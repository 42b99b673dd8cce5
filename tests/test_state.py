"""State that can be trusted: what a run keeps is whole or refused, and goes on with what it began with or not at all."""

import errno
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

import limbeck
from limbeck import S, T, classification, on
from limbeck.cli import main
from limbeck.core import files
from limbeck.core.files import Damaged, hold, keep
from limbeck.data.identity import described, identity
from limbeck.data.source import Encoded
from limbeck.engine.run import Occupied, Run

FEATURES, CLASSES, BATCH = 4, 3, 8
DRAW = torch.Generator().manual_seed(0)
INPUTS = torch.randn(24, FEATURES, generator=DRAW)
TARGETS = torch.arange(24) % CLASSES
BATCHES = list(zip(INPUTS.split(BATCH), TARGETS.split(BATCH), strict=True))
PER_EPOCH = len(BATCHES)

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")


class Alarm(nn.Identity):
    """Something happens in the training batch of a number that counts from 1."""

    def __init__(self, at: int, happens: Callable[[], None]) -> None:
        super().__init__()
        self.calls, self.at, self.happens = 0, at, happens

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        if self.training and self.calls == self.at:
            self.happens()
        return x


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def net(seed: int = 0, at: int = 0, happens: Callable[[], None] = ctrl_c, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), Alarm(at, happens), nn.Linear(width, CLASSES)
    )


def teacher(seed: int = 7) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(FEATURES, 5), nn.ReLU(), nn.Linear(5, CLASSES))


def sgd(parameters: list[nn.Parameter], lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9)


def fit(method: Any, folder: Path | None, data: Any = (BATCHES, BATCHES, BATCHES), **options: Any) -> limbeck.Result:
    settings = {"epochs": 2, "optimizer": sgd, "accelerator": "cpu", "progress": False, **options}
    return limbeck.fit(method, data, run_dir=folder, **settings)


def tensors(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def identical(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# damage


def flipped(content: bytes) -> bytes:
    """One bit in the middle of what counts; of a zip, of its largest part."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "a bit": flipped,
    "cut": lambda content: content[: len(content) // 3],
    "empty": lambda content: b"",
    "binary": lambda content: bytes(range(256)) * 4,
    "a list": lambda content: b"[]\n",
    "another": lambda content: b'{"networks": null}\n',
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A finished run, and one that was interrupted."""
    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.engine.fit.exhibits_of", lambda *_: [limbeck.core.exhibits.Note("A note", "words")])
        fit(limbeck.kd(net(), teacher()), home / "finished")
        fit(limbeck.kd(net(at=2), teacher()), home / "interrupted")
    return home


@pytest.fixture
def copies(runs, tmp_path) -> Path:
    import shutil

    shutil.copytree(runs, tmp_path / "runs")
    return tmp_path / "runs"


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", ["config.yaml", "inputs.json", "result.json", "checkpoints/stage-0.ckpt"])
def test_a_damaged_file_is_refused_by_a_finished_run_that_goes_on(copies, file, damage):
    path = copies / "finished" / file
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(ValueError, match=rf"{path.name}.*(run_dir|--resume)"):
        fit(limbeck.kd(net(), teacher()), copies / "finished", resume=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_not_begun_anew(copies, damage):
    """And once it is removed the stage is trained anew, as the message says."""
    path = copies / "interrupted" / "checkpoints" / "last.ckpt"
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    student = net(at=1, happens=lambda: pytest.fail("it trains"))
    with pytest.raises(Damaged, match=r"last\.ckpt.*remove it, and the stage is trained anew"):
        fit(limbeck.kd(student, teacher()), copies / "interrupted", resume=True)
    path.unlink()
    assert fit(limbeck.kd(net(), teacher()), copies / "interrupted", resume=True).finished


@pytest.mark.parametrize("file", ["config.yaml", "metrics.csv", "result.json", "examples.npz"])
def test_the_command_line_says_which_file_is_damaged_and_what_to_do(copies, file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    path = copies / "finished" / file
    whole = path.read_bytes()
    for name, damage in DAMAGE.items():
        path.write_bytes(damage(whole))
        assert main(["report", str(copies / "finished")]) == 2, name
        said = capsys.readouterr().err
        assert str(path) in said, name
        assert "run_dir" in said or "remove" in said, name
        assert "Traceback" not in said, name
    path.write_bytes(whole)
    assert main(["report", str(copies / "finished")]) == 0


def test_a_foreign_checkpoint_is_named(copies):
    path = copies / "interrupted" / "checkpoints" / "last.ckpt"
    for foreign in (net().state_dict(), [1, 2], {"limbeck": 3}):
        torch.save(foreign, path)
        with pytest.raises(Damaged, match=r"last\.ckpt is no checkpoint of a run"):
            fit(limbeck.kd(net(), teacher()), copies / "interrupted", resume=True)
    keep(path, {"limbeck": {"format": 99}})
    with pytest.raises(Damaged, match="has format 99, of another version of limbeck"):
        fit(limbeck.kd(net(), teacher()), copies / "interrupted", resume=True)


def test_a_run_of_an_older_version_is_refused_by_name_and_its_page_drawn(copies):
    folder = copies / "finished"
    (folder / "inputs.json").unlink()
    result = json.loads((folder / "result.json").read_text())
    older = {
        name: value for name, value in result.items() if name not in ("files", "missing", "sha256", "limbeck_format")
    }
    (folder / "result.json").write_text(json.dumps(older))
    with pytest.raises(ValueError, match=r"inputs\.json, as runs of an older limbeck do not"):
        fit(limbeck.kd(net(), teacher()), folder, resume=True)
    assert main(["report", str(folder)]) == 0


def test_a_run_of_another_version_is_refused_by_name(copies):
    path = copies / "finished" / "inputs.json"
    inputs = files.read(path, "")
    keep(path, {**inputs, "run": {**inputs["run"], "limbeck": "0.0.1"}})
    with pytest.raises(ValueError, match=r"begun by limbeck 0\.0\.1, and this is .*go on with that version"):
        fit(limbeck.kd(net(), teacher()), copies / "finished", resume=True)


# what a run depends on


def halved(answer: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(answer, target) / 2


def relabelled() -> Any:
    targets = TARGETS.clone()
    targets[5] = (targets[5] + 1) % CLASSES
    batches = list(zip(INPUTS.split(BATCH), targets.split(BATCH), strict=True))
    return batches, BATCHES, BATCHES


def by_loader(inputs: Tensor = INPUTS, targets: Tensor = TARGETS, batch: int = BATCH) -> Any:
    loader = DataLoader(TensorDataset(inputs, targets), batch, shuffle=True)
    return loader, BATCHES


def one_more(tensor: Tensor, place: int) -> Tensor:
    other = tensor.clone()
    other.view(-1)[place] += 1
    return other


def falling(optimizer: torch.optim.Optimizer, updates: int, by: float = 0.9) -> LambdaLR:
    return LambdaLR(optimizer, lambda update: by**update)


def staged(method: str, **options: Any) -> Any:
    return lambda: getattr(limbeck, method)(net(), teacher(), **options)


FITNETS = {"guided": "2", "hint": "1", "example": INPUTS}

OTHER: dict[str, tuple[tuple[Callable[[], Any], dict[str, Any]], tuple[Callable[[], Any], dict[str, Any]], str]] = {
    "an option": (
        (staged("kd", temperature=4.0), {}),
        (staged("kd", temperature=1.0), {}),
        "temperature: 4.0, and not 1.0",
    ),
    "a weight": ((staged("kd", alpha=0.9), {}), (staged("kd", alpha=0.5), {}), "weight: 0.09"),
    "a method": ((staged("kd"), {}), (staged("dist"), {}), "terms"),
    "no teacher": ((staged("kd"), {}), (lambda: limbeck.plain(net()), {}), "terms"),
    "a teacher": ((staged("kd"), {}), (lambda: limbeck.kd(net(), teacher(8)), {}), "teachers teachers.teacher weights"),
    "a view": (
        (staged("kd"), {}),
        (lambda: limbeck.kd(net(), limbeck.Frozen(teacher(), inputs=lambda x: -x)), {}),
        "teachers teachers.teacher inputs",
    ),
    "a student": ((staged("kd"), {}), (lambda: limbeck.kd(net(width=7), teacher()), {}), ""),
    "a task": (
        (staged("kd"), {}),
        (staged("kd", task=replace(classification, loss=halved)), {}),
        "",
    ),
    "clip": ((staged("kd"), {}), (staged("kd"), {"clip": 1.0}), "clip: None, and not 1.0"),
    "accumulate": ((staged("kd"), {}), (staged("kd"), {"accumulate": 2}), "accumulate"),
    "an optimizer": (
        (staged("kd"), {}),
        (staged("kd"), {"optimizer": torch.optim.Adam}),
        "optimizer student class: SGD",
    ),
    "a rate": ((staged("kd"), {}), (staged("kd"), {"optimizer": partial(sgd, lr=0.2)}), "lr: 0.1, and not 0.2"),
    "a rate in a lambda": (
        (staged("kd"), {"optimizer": lambda p: torch.optim.Adam(p, 1e-3)}),
        (staged("kd"), {"optimizer": lambda p: torch.optim.Adam(p, 2e-3)}),
        "lr: 0.001, and not 0.002",
    ),
    "no schedule": ((staged("kd"), {"schedule": falling}), (staged("kd"), {}), "schedule"),
    "a schedule": (
        (staged("kd"), {"schedule": falling}),
        (staged("kd"), {"schedule": partial(falling, by=0.8)}),
        "schedule student rates",
    ),
    "a label": ((staged("kd"), {}), (staged("kd"), {"data": relabelled()}), "data train content"),
    "a label in a loader": (
        (staged("kd"), {"data": by_loader()}),
        (staged("kd"), {"data": by_loader(targets=(one_more(TARGETS, 11) % CLASSES))}),
        "data train samples tensors 1",
    ),
    "a number in a loader": (
        (staged("kd"), {"data": by_loader()}),
        (staged("kd"), {"data": by_loader(one_more(INPUTS, 50))}),
        "data train samples tensors 0",
    ),
    "a batch size": ((staged("kd"), {"data": by_loader()}), (staged("kd"), {"data": by_loader(batch=6)}), "data train"),
    "generations": ((staged("ban", generations=2), {}), (staged("ban", generations=1), {}), ""),
    "a weight of ban": ((staged("ban", generations=1), {}), (staged("ban", generations=1, hard=0.5), {}), "terms"),
    "soft of fitnets": (
        (staged("fitnets", **FITNETS), {}),
        (staged("fitnets", **FITNETS, soft=(3.0, 1.0)), {}),
        "weight",
    ),
    "a share of fitnets": (
        (staged("fitnets", **FITNETS), {}),
        (staged("fitnets", **FITNETS, hint_share=0.4), {}),
        "share",
    ),
    "a function that weighs": (
        (lambda: limbeck.Distill(net(), teacher(), (lambda p: 1 - p) * on(F.mse_loss, S, T) + classification.hard), {}),
        (
            lambda: limbeck.Distill(
                net(), teacher(), (lambda p: 1 - p / 2) * on(F.mse_loss, S, T) + classification.hard
            ),
            {},
        ),
        "weight",
    ),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_run_does_not_go_on_as_another(tmp_path, what):
    (begun, first), (other, second), message = OTHER[what]

    def kept() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix in (".json", ".safetensors")}

    result = fit(begun(), tmp_path, **first)
    before = kept()
    with pytest.raises(ValueError, match=f"the run in .* has another .*{message}.*Go on with the same settings"):
        fit(other(), tmp_path, resume=True, **second)
    assert kept() == before
    assert fit(begun(), tmp_path, resume=True, **first).history == result.history


def test_a_run_goes_on_in_the_same_session_with_all_that_it_had(tmp_path):
    """The student was moved, loaders have drawn, and counters have counted."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = 0

        def forward(self, student: Tensor) -> Tensor:
            self.calls += 1
            return student.square().mean()

    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(INPUTS, TARGETS), BATCH, shuffle=True, generator=generator)
    student = net(at=4)
    method = limbeck.Distill(
        student, teacher(), on(Counting(), S, name="own") + limbeck.kd(student, teacher()).objective
    )
    assert not fit(method, tmp_path, (loader, BATCHES)).finished
    assert fit(method, tmp_path, (loader, BATCHES), resume=True).finished


def test_where_and_how_a_run_goes_on_may_change(tmp_path):
    settings = {"epochs": 2, "run_dir": "there", "workers": 1, "progress": True}
    fit(limbeck.kd(net(at=2), teacher()), tmp_path, settings=settings)
    elsewhere = {"epochs": 2, "run_dir": "here", "workers": 0, "progress": False}
    assert fit(limbeck.kd(net(), teacher()), tmp_path, settings=elsewhere, resume=True).finished


def test_distill_refuses_another_method_and_task(tmp_path):
    def distill(method: str, **options: Any) -> limbeck.Result:
        settings = {"epochs": 1, "accelerator": "cpu", "progress": False, "run_dir": tmp_path, "check": False}
        return limbeck.distill(net(), teacher(), (BATCHES, BATCHES), method, **settings, **options)

    distill("kd", temperature=2.0)
    for method, options in (("kd", {"temperature": 3.0}), ("rkd", {}), ("kd", {"temperature": 2.0, "seed": 1})):
        with pytest.raises(ValueError, match="has another"):
            distill(method, resume=True, **options)
    assert json.loads((tmp_path / "result.json").read_text())["method"] == "kd"


def test_the_command_line_refuses_another_teacher_student_or_image_under_the_same_name(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    data, run = pictures(tmp_path / "data"), tmp_path / "run"

    def weights(name: str, seed: int) -> Path:
        torch.manual_seed(seed)
        made = limbeck.zoo.network("mlp-4", 2, (1, 8, 8))
        Run(tmp_path).write_networks({name: made})
        return tmp_path / f"{name}.safetensors"

    def refused() -> str:
        assert main([*command, "--resume"]) == 2
        return capsys.readouterr().err

    words = "distill kd --data imagefolder --epochs 1 --batch-size 3 --accelerator cpu --progress false --check false"
    networks = ["--teacher", f"mlp-4@{weights('big', 1)}", "--student", f"mlp-4@{weights('small', 2)}"]
    command = [*words.split(), "--root", str(data), "--run-dir", str(run), *networks]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    capsys.readouterr()
    weights("big", 3)
    assert "another teachers teachers.teacher weights" in refused()
    weights("big", 1)
    weights("small", 3)
    assert "another files student mlp-4@" in refused()
    weights("small", 2)
    pictures(data, shade=41)
    assert "has another" in refused()
    pictures(data)
    (data / "train" / "dark" / "2.png").unlink()
    assert "has another" in refused()
    pictures(data)
    assert main([*command, "--resume"]) == 0


# data and functions


def pictures(home: Path, shade: int = 40) -> Path:
    for split in ("train", "val", "test"):
        for label, name in enumerate(("dark", "light")):
            for index in range(3):
                place = home / split / name
                place.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), shade + 60 * label + index).save(place / f"{index}.png")
    return home


def test_files_are_known_by_name_size_and_content_wherever_they_lie(tmp_path):
    def told(home: Path) -> str:
        return described(Encoded(sorted(map(str, home.rglob("*.png"))), "somewhere"))

    one, other = pictures(tmp_path / "one"), pictures(tmp_path / "other")
    assert told(one) == told(other)
    file = other / "val" / "light" / "2.png"
    whole = file.read_bytes()
    file.write_bytes(flipped(whole))
    assert told(one) != told(other)
    file.write_bytes(whole)
    file.rename(file.with_name("3.png"))
    assert told(one) != told(other)


def test_of_more_files_than_are_read_whole_sizes_and_ends_count(tmp_path, monkeypatch):
    monkeypatch.setattr("limbeck.data.identity.WHOLE", 10)
    monkeypatch.setattr("limbeck.data.identity.ENDS", 4)
    file = tmp_path / "a"

    def told(content: bytes) -> str:
        file.write_bytes(content)
        return described(Encoded([str(file)], "somewhere"))

    first = told(b"head" + b"-" * 20 + b"tail")
    assert told(b"head" + b"-" * 19 + b"tail") != first
    assert told(b"heap" + b"-" * 20 + b"tail") != first
    assert told(b"head" + b"-" * 20 + b"tall") != first
    assert told(b"head" + b"+" * 20 + b"tail") == first  # as the docstring says


def test_data_by_name_are_known_by_pixels_labels_and_how_they_are_served():
    def digits(**options: Any) -> Any:
        return identity(limbeck.data.load("digits", samples=60, **options))

    assert digits() == digits()
    for other in ({"seed": 1}, {"batch_size": 32}, {"labels": 20}, {"augment": "none"}, {"split_seed": 1}):
        assert digits() != digits(**other), other


class Drawing:
    """Samples that draw, each time others, from a generator of their own."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.randn(FEATURES, generator=self.generator), index % CLASSES


def test_data_that_never_come_the_same_are_known_by_their_form(tmp_path):
    data = DataLoader(Drawing(), 4), BATCHES
    assert not fit(limbeck.plain(net(at=2)), tmp_path, data).finished
    with pytest.raises(ValueError, match="data train batches: 3, and not 2"):
        fit(limbeck.plain(net()), tmp_path, (DataLoader(Drawing(), 6), BATCHES), resume=True)
    assert fit(limbeck.plain(net()), tmp_path, data, resume=True).finished


class Served:
    """A loader of the user's own."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_another_loader_of_ones_own_is_known_by_what_it_shows_first(tmp_path):
    assert not fit(limbeck.plain(net(at=2)), tmp_path, (Served(BATCHES), BATCHES)).finished
    with pytest.raises(ValueError, match="another data train a few"):
        fit(limbeck.plain(net()), tmp_path, (Served(relabelled()[0]), BATCHES), resume=True)
    assert fit(limbeck.plain(net()), tmp_path, (Served(BATCHES), BATCHES), resume=True).finished


def test_functions_are_known_by_what_they_hold_and_read():
    def times(factor: float) -> Callable[[Tensor], Tensor]:
        return lambda x: factor * x

    assert described(times(2.0)) == described(times(2.0))
    assert described(times(2.0)) != described(times(3.0))
    assert described(lambda out: out.scores) != described(lambda out: out.tags)
    assert described(lambda out: out[0]) != described(lambda out: out[1])
    assert described(partial(F.cross_entropy, label_smoothing=0.1)) != described(F.cross_entropy)
    assert "0x" not in json.dumps(described({"a": times(2.0), "b": object(), "c": nn.Hardtanh(), "d": Drawing()}))


# one at a time


def test_a_folder_is_trained_in_by_one_at_a_time(tmp_path):
    def second() -> None:
        with pytest.raises(
            Occupied, match=f"another process trains in {tmp_path}: wait for it, or take another run_dir"
        ):
            fit(limbeck.plain(net()), tmp_path, resume=True)
        assert Run(tmp_path).exists
        assert not Run(tmp_path).begun
        tried.append(True)

    tried: list[bool] = []
    fit(limbeck.plain(net(at=1, happens=second)), tmp_path)
    assert tried
    with hold(tmp_path / ".lock") as free:
        assert free


def test_a_run_that_fails_before_anything_is_trained_leaves_its_folder_free(tmp_path):
    def broken() -> None:
        raise RuntimeError("shapes")

    with pytest.raises(RuntimeError, match="shapes"):
        fit(limbeck.plain(net(at=2, happens=broken)), tmp_path)
    assert fit(limbeck.plain(net()), tmp_path, clip=1.0).finished
    with pytest.raises(ValueError, match="holds a run already"):
        fit(limbeck.plain(net()), tmp_path, clip=1.0)


# kills, and full disks


def two_stages(student: nn.Module) -> Iterator[limbeck.Stage]:
    yield limbeck.Stage(limbeck.kd(student, teacher()), 0.5, name="first")
    with torch.no_grad():
        student[-1].weight *= 0.5 + torch.rand(())
    yield limbeck.Stage(limbeck.plain(student), 0.5, name="second")


@pytest.fixture(scope="module")
def undisturbed() -> tuple[dict[str, Tensor], list[Any]]:
    student = net()
    history = fit(two_stages(student), None).history
    return tensors(student), [{**row, "seconds": 0} for row in history]


def ends_well(folder: Path, undisturbed: tuple[dict[str, Tensor], list[Any]]) -> None:
    student = net(1 if Run(folder).begun else 0)
    result = fit(two_stages(student), folder, resume=True)
    assert result.finished
    assert identical(tensors(student), undisturbed[0])
    assert identical(load_file(folder / "student.safetensors"), undisturbed[0])
    assert [{**row, "seconds": 0} for row in result.history] == undisturbed[1]
    assert not list(folder.rglob(f".*.{os.getpid()}.*"))


def killed(folder: Path, at: int, late: bool) -> None:
    """Train until the process is killed as it moves its nth file to its place, before or after."""
    moves = [0]

    def move(source: Any, target: Any) -> None:
        moves[0] += 1
        if moves[0] == at and not late:
            os.kill(os.getpid(), signal.SIGKILL)
        os.rename(source, target)
        if moves[0] == at:
            os.kill(os.getpid(), signal.SIGKILL)

    files.os.replace = move  # type: ignore[attr-defined]  # of this process alone
    fit(two_stages(net()), folder)


@pytest.mark.parametrize(("at", "late"), [(1, False), (2, True), (4, False), (6, True), (8, False), (11, True)])
def test_a_kill_at_any_file_costs_nothing_that_was_there(tmp_path, processes, undisturbed, at, late):
    child = processes.Process(target=killed, args=(tmp_path, at, late))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    ends_well(tmp_path, undisturbed)


def test_a_full_disk_at_any_file_costs_nothing_that_was_there(tmp_path, undisturbed, monkeypatch):
    """Each session writes one file more than the one before, until the run is finished."""
    flush, left = files._flush, [0]

    def full(path: Path) -> None:
        if path.is_file():
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        flush(path)

    monkeypatch.setattr(files, "_flush", full)
    sessions = 0
    for room in range(1, 40):
        left[0] = room
        sessions += 1
        try:
            finished = fit(two_stages(net()), tmp_path, resume=True).finished
        except OSError:
            continue
        assert finished
        if left[0] >= 0:
            break
    else:
        pytest.fail("it never ended")
    assert sessions > 3
    monkeypatch.setattr(files, "_flush", flush)
    ends_well(tmp_path, undisturbed)


def test_no_checkpoint_goes_through_another_folder(tmp_path, monkeypatch):
    """Where the temporary folder is on another file system, or cannot be written to, nothing changes."""
    nowhere = tmp_path / "nowhere"
    monkeypatch.setattr("tempfile.tempdir", str(nowhere))
    monkeypatch.setenv("TMPDIR", str(nowhere))
    assert not fit(limbeck.plain(net(at=5)), tmp_path / "run").finished
    assert fit(limbeck.plain(net()), tmp_path / "run", resume=True).finished


# what comes after


class Failing:
    """A test loader that is found broken when all is done."""

    def __iter__(self) -> Iterator[Any]:
        raise OSError("the disk of the test data is gone")

    def __len__(self) -> int:
        return 1


def of_nothing(*_: Any) -> Any:
    raise RuntimeError("no such thing")


AFTER = {
    "the cost of student": "limbeck.engine.fit.cost",
    "the test metrics of student": "limbeck.engine.fit.evaluate",
    "the examples": "limbeck.engine.fit.exhibits_of",
    "the page": "limbeck.engine.fit.run_report",
}


@pytest.mark.parametrize("what", AFTER)
def test_what_follows_the_training_may_fail_and_be_made_later(tmp_path, monkeypatch, what):
    student = net()
    with monkeypatch.context() as patch:
        patch.setattr(AFTER[what], of_nothing)
        with pytest.warns(UserWarning, match=f"networks are kept, but without {what}: RuntimeError: no such thing"):
            result = fit(limbeck.kd(student, teacher()), tmp_path)
    assert result.finished
    both = {what, what.replace("student", "teacher")}  # who is measured by the same function
    assert result.missing == dict.fromkeys(both, "RuntimeError: no such thing")
    assert result.metrics["val/student/accuracy"] == result.history[-1]["val/student/accuracy"]
    assert identical(load_file(tmp_path / "student.safetensors"), tensors(student))
    told = json.loads((tmp_path / "result.json").read_text())
    assert told["finished"]
    assert told["missing"] == result.missing
    assert f"without {what}" in (tmp_path / "train.log").read_text()
    assert main(["report", str(tmp_path)]) == 0
    assert f"Without {what}: RuntimeError: no such thing" in (tmp_path / "report.html").read_text()
    again = fit(limbeck.kd(net(), teacher()), tmp_path, resume=True)
    assert again.missing == {}
    assert json.loads((tmp_path / "result.json").read_text())["missing"] == {}
    assert "test/student/accuracy" in again.metrics


class AlwaysTrains(nn.BatchNorm1d):
    def train(self, mode: bool = True) -> nn.BatchNorm1d:
        return super().train(True)


def test_a_student_that_cannot_be_measured_alone_is_kept(tmp_path):
    student = net()
    student[1] = AlwaysTrains(6)
    with pytest.warns(UserWarning, match="without the cost of student"):
        result = fit(limbeck.plain(student), tmp_path)
    assert "the cost of student" in result.missing
    assert (tmp_path / "student.safetensors").exists()


def always_training() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), AlwaysTrains(6), nn.Linear(6, 2))


def test_the_command_line_ends_well_where_a_cost_is_missing(tmp_path, capsys):
    words = "train --data imagefolder --epochs 1 --batch-size 3 --accelerator cpu --progress false --check false"
    places = ["--root", str(pictures(tmp_path / "data")), "--run-dir", str(tmp_path / "run")]
    assert main([*words.split(), *places, "--network", f"{__name__}:always_training"]) == 0
    assert "the cost of student" in json.loads((tmp_path / "run" / "result.json").read_text())["missing"]
    assert "but without the cost of student" in capsys.readouterr().err


class Scaled(nn.Linear):
    """A layer that keeps more than tensors."""

    def __init__(self, state: Any) -> None:
        super().__init__(6, CLASSES)
        self.state = state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state


def test_extra_state_is_kept_and_what_cannot_be_is_found_before_the_first_epoch(tmp_path):
    student = net()
    student[4] = Scaled({"scale": 2.0, "recipe": ["e4m3"]})
    assert fit(limbeck.plain(student), tmp_path / "plain").finished
    _, facts = files.read(tmp_path / "plain" / "student.safetensors", "")
    assert json.loads(facts["extra state"]) == {"4._extra_state": {"scale": 2.0, "recipe": ["e4m3"]}}

    for state in (Alarm(0, ctrl_c), {1, 2}, object()):
        student = net(at=1, happens=lambda: pytest.fail("it trains"))
        student[4] = Scaled(state)
        with pytest.raises(
            ValueError, match=r"extra state under '4\._extra_state' .*let get_extra_state\(\) return a tensor"
        ):
            fit(limbeck.plain(student), tmp_path / "other")


def test_a_scripted_teacher(tmp_path):
    scripted = torch.jit.script(teacher().eval())
    fit(limbeck.kd(net(), scripted), tmp_path)
    assert fit(limbeck.kd(net(), torch.jit.script(teacher().eval())), tmp_path, resume=True).finished
    with pytest.raises(ValueError, match=r"another teachers teachers\.teacher weights"):
        fit(limbeck.kd(net(), torch.jit.script(teacher(9).eval())), tmp_path, resume=True)


# networks


@pytest.mark.parametrize("at", [2, PER_EPOCH, PER_EPOCH + 1])
def test_the_networks_of_an_interrupted_run_can_be_read(tmp_path, at):
    student = net(at=at)
    assert not fit(limbeck.kd(student, teacher()), tmp_path).finished
    assert not (tmp_path / "student.safetensors").exists()
    networks = Run(tmp_path).networks_so_far()
    assert list(networks) == ["student"]
    assert identical(networks["student"][0], tensors(student))


def test_the_networks_between_two_stages_can_be_read(tmp_path):
    exits = limbeck.with_exits(nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU(), nn.Linear(6, CLASSES)), INPUTS, ["1"])
    fit(limbeck.plain(exits), tmp_path, epochs=1)
    state, about = Run(tmp_path).networks_so_far()["student"]
    assert identical(state, tensors(exits))
    assert json.loads(about["exits"]) == ["1"]
    with pytest.raises(FileNotFoundError, match="holds no checkpoint yet"):
        Run(tmp_path / "none").networks_so_far()


def test_a_wrapped_student_is_kept_by_its_plain_names(tmp_path):
    plain = net()
    fit(limbeck.plain(nn.DataParallel(plain)), tmp_path)
    assert identical(load_file(tmp_path / "student.safetensors"), tensors(plain))
    assert identical(Run(tmp_path).networks_so_far()["student"][0], tensors(plain))
