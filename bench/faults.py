"""Break limbeck's runs on purpose, and count wrong results: kills, full disks, flipped bits, inputs that changed.

    python bench/faults.py --kills 100 --full 20 --flips 50 --changes 20

A trial begins a command (`distill` of one and of several stages, `compare`, `tune`), disturbs it, and lets it go on as a
user would. What comes out is held against a run that nobody disturbed: weights byte for byte, and every number but times.
It is *right* if that is equal and nothing that was finished is trained again; or if the command refuses in words that name
the file or what changed, and nothing was lost. Everything else is a wrong result, and the exit code is 1.

A trial draws from --seed and its number alone, so that one can be made again; with --folder trials that are in its
``done.jsonl`` are not made again. The processes are forks of one that has imported limbeck, since that takes longer than
what they do.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import gc
import itertools
import json
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib.figure  # noqa: F401  # imported before processes are forked
import numpy as np
import optuna  # noqa: F401
import torch
from PIL import Image

import limbeck
import limbeck.cli
from limbeck.core.files import SEAL
from limbeck.tasks.classification import classification  # noqa: F401

DATA = "--labels 100 --batch-size 128 --accelerator cpu --progress false"
COMMANDS = {
    "distill": f"distill kd --student mlp-8 --teacher mlp-16@teacher.safetensors --epochs 3 {DATA}",
    "stages": f"distill fitnets --student mlp-8 --teacher mlp-16@teacher.safetensors --epochs 3 {DATA}",
    "images": "distill kd --student mlp-8 --teacher mlp-8@random --data imagefolder --root images --epochs 2 "
    "--batch-size 8 --accelerator cpu --progress false",
    "compare": f"compare kd --student mlp-8 --teacher mlp-16@teacher.safetensors --epochs 2 --seeds 2 {DATA}",
    "tune": "tune kd --search alpha=0.1:1 --trials 2 --final-seeds 1 --student mlp-8 --teacher mlp-16@teacher.safetensors "
    f"--epochs 2 {DATA}",
}
"""What is disturbed. Teacher and images are in the trial's own folder, where they can be changed."""
OFTEN = ("distill", "stages", "compare", "distill", "stages", "compare", "images", "tune")
TIMES = ("seconds", "latency_ms", "time", "Training", "seconds_of")
READ_BACK = (".yaml", ".json", ".csv", ".npz", ".safetensors", ".ckpt", ".journal")
NOT_READ = ("table.csv",)
"""Tables for other programs, which limbeck itself never reads."""
OTHER_DISK = Path("/dev/shm")


class Wrong(Exception):
    """A wrong result, or something lost."""


class Place:
    """A folder of one trial: the inputs of a command, and its run.

    Args:
        home: Where it is.
        kind: Which of `COMMANDS`.
    """

    def __init__(self, home: Path, kind: str) -> None:
        self.home, self.kind, self.run = home, kind, home / "run"
        self.said = home / "said.txt"

    @property
    def words(self) -> list[str]:
        """The command."""
        return shlex.split(f"{COMMANDS[self.kind]} --run-dir run")

    @property
    def on(self) -> list[str]:
        """The command that goes on."""
        return [*self.words, *(["--resume"] if self.words[0] == "distill" else [])]

    def copy(self, home: Path) -> Place:
        """Return a copy of all, elsewhere; settings say no places that count."""
        shutil.copytree(self.home, home)
        return Place(home, self.kind)

    def start(self, words: Sequence[str], before: Callable[[], object] = lambda: None) -> int:
        """Begin a command in a process of its own; return its id."""
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            file = os.open(self.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            os.chdir(self.home)
            before()
            code = limbeck.cli.main(list(words))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:  # noqa: BLE001  # a traceback is what a trial looks for
            os.write(2, traceback.format_exc().encode())
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def do(self, words: Sequence[str], before: Callable[[], object] = lambda: None) -> int:
        """Make a command from its beginning to its end; return its exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start(words, before), 0)[1])

    def words_said(self) -> str:
        """What it printed."""
        return self.said.read_text(errors="replace") if self.said.exists() else ""

    def must(self, words: Sequence[str], what: str) -> None:
        """Make a command that has to work."""
        if code := self.do(words):
            raise Wrong(f"{what} ended with {code}: {self.words_said()[-1500:]}")

    def outcome(self) -> dict[str, Any]:
        """All that the run came to, but for times: weights, tables and numbers by their files."""
        found: dict[str, Any] = {}
        for path in sorted(self.run.rglob("*")):
            name = path.relative_to(self.run).as_posix()
            if path.suffix == ".safetensors":
                found[name] = path.read_bytes()
            elif path.name in ("result.json", "results.json", "tuning.json"):
                found[name] = _timeless(json.loads(path.read_text()))
            elif path.name == "metrics.csv":
                with path.open(newline="") as file:
                    found[name] = [{key: row[key] for key in row if key not in TIMES} for row in csv.DictReader(file)]
            elif path.name == "report.html":
                found[name] = "a page"
        return found

    def finished(self) -> dict[str, tuple[bytes, int]]:
        """The finished runs: their weights, and how often they were trained."""
        found = {}
        for path in self.run.rglob("result.json"):
            with contextlib.suppress(ValueError, OSError):
                if json.loads(path.read_text()).get("finished"):
                    log = path.with_name("train.log")
                    began = log.read_text().count(" batches\n") if log.exists() else 0
                    found[path.parent.relative_to(self.run).as_posix()] = (
                        (path.parent / "student.safetensors").read_bytes(),
                        began,
                    )
        return found

    def same_as(self, reference: dict[str, Any]) -> None:
        """See that the run came to what the undisturbed one did."""
        mine = self.outcome()
        if other := [name for name in {**reference, **mine} if reference.get(name) != mine.get(name)]:
            raise Wrong(f"another result: {', '.join(other)}")


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        dropped = (*TIMES, SEAL, "files", "findings")
        return {key: _timeless(each) for key, each in value.items() if key not in dropped}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


# what is undisturbed -------------------------------------------------------------------------------------------------


class Bench:
    """What all trials share: undisturbed runs by command, finished and stopped on their way, with their times.

    Args:
        folder: Where everything is.
        seed: Of all draws.
        kinds: The commands that are tried.
    """

    def __init__(self, folder: Path, seed: int, kinds: Sequence[str]) -> None:
        self.folder, self.seed, self.kinds = folder, seed, kinds
        self.often = [kind for kind in OFTEN if kind in kinds]
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}

    def inputs(self, home: Path, seed: int = 0) -> None:
        """Write what commands read: a trained teacher, and a folder of images."""
        home.mkdir(parents=True, exist_ok=True)
        teacher = self.folder / f"teacher-{seed}"
        if not (teacher / "run/student.safetensors").exists():
            shutil.rmtree(teacher, ignore_errors=True)
            teacher.mkdir(parents=True)
            trained = Place(teacher, "teacher")
            words = f"train --network mlp-16 --epochs 3 --seed {seed} --accelerator cpu --progress false --run-dir run"
            trained.must(shlex.split(words), "the teacher's training")
        shutil.copy(next((teacher / "run").glob("*.safetensors")), home / "teacher.safetensors")
        draw = np.random.default_rng(seed)
        for split, label, index in itertools.product(("train", "val", "test"), ("a", "b"), range(8)):
            path = home / "images" / split / label / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 255, (8, 8, 3), dtype=np.uint8) // (1 + (label == "b"))
            Image.fromarray(pixels).save(path)

    def undisturbed(self, kind: str) -> Place:
        """Return a finished run, made once."""
        place = Place(self.folder / "undisturbed" / kind, kind)
        if kind not in self.outcomes:
            if not (place.home / "whole").exists():
                shutil.rmtree(place.home, ignore_errors=True)
                self.inputs(place.home)
                began = _spent()
                place.must(place.words, f"undisturbed {kind}")
                (place.home / "whole").write_text(str(_spent() - began))
            self.seconds[kind] = float((place.home / "whole").read_text())
            self.outcomes[kind] = place.outcome()
        return place

    def stopped(self, kind: str) -> Place:
        """Return a run that was killed with a checkpoint of a stage under way, made once; of several runs in the second."""
        self.undisturbed(kind)
        place = Place(self.folder / "stopped" / kind, kind)
        if not (place.home / "half").exists():
            shutil.rmtree(place.home, ignore_errors=True)
            self.inputs(place.home)
            finished = int(kind in ("compare", "tune"))

            def is_half() -> bool:
                return len([*place.run.rglob("result.json")]) > finished or (
                    len([*place.run.rglob("result.json")]) == finished and any(place.run.rglob("last.ckpt"))
                )

            _killed(place, is_half)
            (place.home / "half").touch()
        return place

    def draws(self, kind: str, number: int) -> random.Random:
        """Return the draws of a trial."""
        return random.Random(f"{self.seed} {kind} {number}")


def _killed(place: Place, now: Callable[[], bool], before: Callable[[], object] = lambda: None) -> None:
    """Begin a command and kill it at a moment, if it is still there."""
    pid = place.start(place.words, before)
    while not now():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _spent() -> float:
    """Seconds that processes have computed: what others do on this machine makes no moment come too late."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _in(seconds: float) -> Callable[[], bool]:
    """Return whether so many seconds have passed since now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _goes_on(bench: Bench, place: Place, elsewhere: Callable[[], object] = lambda: None) -> None:
    """Let a disturbed run go on, and see that all is as if nothing had happened."""
    before = place.finished()
    if code := place.do(place.on, elsewhere):
        raise Wrong(f"it does not go on but ends with {code}: {place.words_said()[-1500:]}")
    place.same_as(bench.outcomes[place.kind])
    after = place.finished()
    if lost := [name for name, was in before.items() if after.get(name) != was]:
        raise Wrong(f"finished and trained again, or changed: {', '.join(lost)}")


# the trials ----------------------------------------------------------------------------------------------------------


def kill(bench: Bench, number: int, home: Path) -> str:
    """SIGKILL at a random moment, every third time with the temporary folder on another file system; and perhaps again."""
    draw = bench.draws("kill", number)
    kind = bench.often[number % len(bench.often)]
    bench.undisturbed(kind)
    place, elsewhere = Place(home, kind), _elsewhere if number % 3 == 2 else lambda: None
    bench.inputs(home)
    moments = [draw.uniform(0.02, 1.05) * bench.seconds[kind] for _ in range(1 + (draw.random() < 0.2))]
    for moment in moments:
        _killed(place, _in(moment), elsewhere)
        if OTHER_TMP.is_dir() and (left := list(OTHER_TMP.iterdir())):
            raise Wrong(f"left behind in TMPDIR: {left}")
    _goes_on(bench, place, elsewhere)
    return f"{kind}, killed after {', '.join(f'{moment:.2f} s' for moment in moments)}"


def full(bench: Bench, number: int, home: Path) -> str:
    """No space at a random write: at the n-th flush or rename, or at every file beyond some size."""
    draw = bench.draws("full", number)
    kind = bench.often[number % len(bench.often)]
    bench.undisturbed(kind)
    place, what = Place(home, kind), ""
    bench.inputs(home)
    if number % 2:
        size = int(10 ** draw.uniform(2, 4.5))
        what = f"files of more than {size} bytes"
        code = place.do(place.words, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)))
    else:
        moment = draw.randrange(60 if kind in ("compare", "tune") else 16)
        what = f"from the {moment + 1}th flush or rename on"
        code = place.do(place.words, lambda: _no_space(moment))
    said = place.words_said()
    if code not in (0, 2) or ("Traceback" in said and "--- Logging error ---" not in said):
        raise Wrong(f"{kind} with {what} ended with {code}: {said[-1500:]}")
    _goes_on(bench, place)
    return f"{kind}, no space for {what}: exit code {code}"


def flip(bench: Bench, number: int, home: Path) -> str:
    """One bit of a file that is read back, in a finished run or one under way, every kind of file in its turn."""
    draw = bench.draws("flip", number)
    kind = bench.often[number % len(bench.often)]
    turn = [bench.often[other % len(bench.often)] for other in range(number)].count(kind)
    sources = bench.undisturbed(kind), bench.stopped(kind)
    choices = [(source, paths) for source in sources for paths in _read_back(source.run).values()]
    random.Random(f"{bench.seed} {kind}").shuffle(choices)
    source, paths = choices[turn % len(choices)]
    chosen = draw.choice(paths)
    place = source.copy(home)
    path = place.run / chosen.relative_to(source.run)
    bits, at = bytearray(path.read_bytes()), draw.randrange(8 * path.stat().st_size)
    bits[at // 8] ^= 1 << at % 8
    path.write_bytes(bytes(bits))
    what = f"{kind}, bit {at} of {path.relative_to(place.run)}"
    told = [_page(source, place, path)] if source.home.parent.name == "undisturbed" else []
    code = place.do(place.on)
    if code == 0:
        place.same_as(bench.outcomes[kind])
        return f"{what}: {', '.join([*told, 'the same result'])}"
    said = place.words_said()
    if code != 2 or "Traceback" in said or not _named(path, said):
        raise Wrong(f"{what}: exit code {code}, {said[-1500:]}")
    shutil.copy(chosen, path)  # what the user has of it in a backup
    _goes_on(bench, place)
    return f"{what}: {', '.join([*told, 'refused by name'])}"


def _read_back(run: Path) -> dict[str, list[Path]]:
    """The files that limbeck reads back, by their kind."""
    found: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*")):
        left = path.name.startswith(".")  # by a kill in the middle of a write
        if path.suffix in READ_BACK and path.name not in NOT_READ and not left:
            found.setdefault(path.suffix if path.suffix == ".safetensors" else path.name, []).append(path)
    return found


def _page(source: Place, place: Place, path: Path) -> str:
    """See that a page drawn of a damaged folder is the right one, or none."""
    pages: list[Path] = []
    for each in (source, place):
        pages.append(each.home / "drawn.html")  # beside its run, to which its links go
        code = each.do(["report", str(each.run), "--to", str(pages[-1])])
    if code == 0:
        one, other = (page.read_text().replace(str(source.home), "").replace(str(place.home), "") for page in pages)
        if one != other:
            raise Wrong(f"report draws another page, with a bit of {path.relative_to(place.run)} flipped")
        return "the same page"
    said = place.words_said()
    if code != 2 or "Traceback" in said or not _named(path, said):
        raise Wrong(f"report of a damaged {path.relative_to(place.run)}: exit code {code}, {said[-1500:]}")
    return "no page"


def _named(path: Path, said: str) -> bool:
    """Whether an error says which file: it, or one that holds its checksum."""
    return path.name in said.replace("\n", "")


Change = Callable[[Bench, Place], Sequence[str] | None]
"""Changes what a run depends on, in files, or returns other words for its command."""


def changed(bench: Bench, number: int, home: Path) -> str:
    """An input that is another behind the run's back, of a finished run or of one under way."""
    possible = [one for one in CHANGES if set(one[1]) & set(bench.kinds)]
    name, kinds, change = possible[number % len(possible)]
    draw = bench.draws("change", number)
    kind = draw.choice([kind for kind in kinds if kind in bench.kinds])
    source = bench.stopped(kind) if draw.random() < 0.5 else bench.undisturbed(kind)
    place = source.copy(home)
    backup = home.with_name(f"{home.name}-backup")
    shutil.rmtree(backup, ignore_errors=True)
    place.copy(backup)
    where = f"{kind} ({source.home.parent.name}), {name}"
    try:
        words = change(bench, place)
    except FileNotFoundError:  # one under way does not have that file yet
        shutil.rmtree(backup)
        return f"{where}: not there yet"
    before, inside = place.outcome(), _content(place.run) != _content(backup / "run")
    code, said = place.do(place.on if words is None else words), place.words_said()
    if code == 0 and inside:
        place.same_as(bench.outcomes[kind])
        shutil.rmtree(backup)
        return f"{where}: written again as it was"
    if code != 2 or "Traceback" in said or "limbeck: error:" not in said:
        raise Wrong(f"{where}: exit code {code}, {said[-1500:]}")
    if place.outcome() != before:
        raise Wrong(f"{where}: refused, but files were changed")
    shutil.rmtree(home)
    Place(backup, kind).copy(home)
    shutil.rmtree(backup)
    _goes_on(bench, place)
    return f"{where}: refused, and it goes on with what it began with"


def _content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _another(*words: str) -> Change:
    """Put other values of options in place of the command's."""

    def change(bench: Bench, place: Place) -> Sequence[str]:
        said = list(place.on)
        for name, value in zip(words[::2], words[1::2], strict=True):
            if name in said:
                said[said.index(name) + 1] = value
            else:
                said += [name, value]
        return said

    return change


def _other_teacher(bench: Bench, place: Place) -> None:
    bench.inputs(place.home / "other", seed=1)
    shutil.copy(place.home / "other/teacher.safetensors", place.home / "teacher.safetensors")


def _in_images(does: Callable[[Path], object]) -> Change:
    def change(bench: Bench, place: Place) -> None:
        does(place.home / "images/train/a")

    return change


def _edited(name: str, was: str, now: str) -> Change:
    """Change words of a file by hand."""

    def change(bench: Bench, place: Place) -> None:
        path = next(iter(sorted(place.run.rglob(name))), place.run / name)
        text = path.read_text()
        if was not in text:
            raise FileNotFoundError(f"{path} has no {was}")
        path.write_text(text.replace(was, now, 1))

    return change


def _moved(name: str) -> Change:
    """Put a file of one seed's run in the place of another seed's."""

    def change(bench: Bench, place: Place) -> None:
        shutil.copy(place.run / "kd/seed-1" / name, place.run / "kd/seed-0" / name)

    return change


TAUGHT = ("distill", "stages", "compare", "tune")
CHANGES: list[tuple[str, Sequence[str], Change]] = [
    ("the teacher's file replaced", TAUGHT, _other_teacher),
    ("an image changed", ("images",), _in_images(lambda at: shutil.copy(at / "../b/1.png", at / "1.png"))),
    ("an image added", ("images",), _in_images(lambda at: shutil.copy(at / "1.png", at / "9.png"))),
    ("an image removed", ("images",), _in_images(lambda at: (at / "1.png").unlink())),
    ("an image renamed", ("images",), _in_images(lambda at: (at / "1.png").rename(at / "7x.png"))),
    ("another option of the method", ("distill",), _another("--temperature", "2")),
    ("another student", TAUGHT, _another("--student", "mlp-9")),
    ("another optimizer", TAUGHT, _another("--optimizer", "adam")),
    ("another learning rate", TAUGHT, _another("--lr", "0.01")),
    ("another schedule", TAUGHT, _another("--schedule", "cosine")),
    ("other labels", TAUGHT, _another("--labels", "90")),
    ("another split", TAUGHT, _another("--split-seed", "1")),
    ("other batches", TAUGHT, _another("--batch-size", "64")),
    ("another task", ("distill", "compare"), _another("--task", "faulty:task")),
    ("a score edited", ("distill", "compare"), _edited("result.json", '"accuracy": 0.', '"accuracy": 0.9')),
    ("a setting edited", TAUGHT, _edited("config.yaml", "epochs: ", "epochs: 1")),
    ("an epoch edited", ("distill", "compare"), _edited("metrics.csv", "train,1,", "train,1,1")),
    ("a trial's score edited", ("tune",), _edited("study.journal", '"values":[0.', '"values":[0.9')),
    ("another seed's result", ("compare",), _moved("result.json")),
    ("another seed's weights", ("compare",), _moved("student.safetensors")),
    ("another seed's settings", ("compare",), _moved("config.yaml")),
    ("other epochs", TAUGHT, _another("--epochs", "4")),
]
TASK = """
import dataclasses

import limbeck
from limbeck.tasks.classification import classification

task = dataclasses.replace(classification, score=limbeck.Score("loss", "", best="lowest"))
"""


# the bench -----------------------------------------------------------------------------------------------------------


OTHER_TMP = OTHER_DISK / f"limbeck-faults-{os.getpid()}"
"""The temporary folder on another file system, if there is one."""


def _elsewhere() -> None:
    if OTHER_DISK.is_dir():
        OTHER_TMP.mkdir(exist_ok=True)
        os.environ["TMPDIR"] = tempfile.tempdir = str(OTHER_TMP)


def _no_space(moment: int) -> None:
    """Let every flush and rename from a certain one on fail as on a full disk."""
    left = [moment]

    def failing(does: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return does(*given, **options)

        return call

    os.fsync, os.replace = failing(os.fsync), failing(os.replace)


TRIALS = {"kills": kill, "full": full, "flips": flip, "changes": changed}


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the trials; return 1 if there was a wrong result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, does in TRIALS.items():
        parser.add_argument(f"--{name}", type=int, default=0, metavar="N", help=(does.__doc__ or "").rstrip("."))
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="which; by default all")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--first", type=int, default=0, metavar="K", help="number of the first trial of each kind")
    parser.add_argument("--folder", type=Path, help="keep everything there, and go on with what is there")
    asked = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        folder = asked.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "faulty.py").write_text(TASK)
        sys.path.insert(0, str(folder))
        stack.callback(lambda: sys.path.remove(str(folder)))
        stack.callback(lambda: shutil.rmtree(OTHER_TMP, ignore_errors=True))
        torch.set_num_threads(1)
        gc.freeze()
        counts = Counter(ok for _, ok in _all(asked, folder.resolve()))
    print(f"{counts[True]} right, {counts[False]} wrong")
    return int(counts[False] > 0)


def _all(asked: argparse.Namespace, folder: Path) -> Iterator[tuple[str, bool]]:
    bench, done = Bench(folder, asked.seed, asked.commands), folder / "done.jsonl"
    known = {tuple(json.loads(line)[:3]) for line in done.read_text().splitlines()} if done.exists() else set()
    for name, does in TRIALS.items():
        for number in range(asked.first, asked.first + getattr(asked, name)):
            if (name, number, asked.seed) in known:
                continue
            home = folder / f"{name}-{number}"
            shutil.rmtree(home, ignore_errors=True)
            began = time.monotonic()
            try:
                said, right = does(bench, number, home), True
                shutil.rmtree(home)
            except Wrong as error:
                again = f"python bench/faults.py --{name} 1 --first {number} --seed {asked.seed}"
                said, right = f"WRONG: {error}\n    `{again}` makes it again; its folder is {home}", False
            print(f"{name} {number}, {time.monotonic() - began:.1f} s: {said}", flush=True)
            with done.open("a") as file:
                file.write(json.dumps([name, number, asked.seed, right, said]) + "\n")
            yield name, right


if __name__ == "__main__":
    sys.exit(main())
