"""A run on disk: everything that a training leaves behind, in one folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from limbeck.core import files
from limbeck.core.files import Damaged, hold, keep, read, sha256_of, write
from limbeck.core.heard import Warned, heard_before, hearing
from limbeck.core.task import Task
from limbeck.core.wrapped import shipped
from limbeck.data.repeatable import Splits
from limbeck.engine.inputs import let_off, refuse_another
from limbeck.engine.learner import Row
from limbeck.nets.remade import facts_of
from limbeck.report.run import read_result
from limbeck.report.warned import read_warned, write_warned
from limbeck.tasks.classification import classification

logger = logging.getLogger("limbeck")

WHERE = {
    *("run_dir", "resume", "progress", "check", "root", "download", "workers"),
    *("accelerator", "devices", "nodes", "strategy", "channels_last", "compile", "teachers"),
}
"""Settings that say where and how a training runs, and not what it comes to: they may change when it goes on."""
EXTRA = "extra state"
"""What a file of weights calls the state of layers that is no tensor (``get_extra_state``), as JSON by name."""
FILES = ("config.yaml", "inputs.json", "metrics.csv", "examples.npz")
"""Of which ``result.json`` keeps checksums, beside the networks."""
ANOTHER = "take another run_dir"

Kept = tuple[dict[str, Tensor], dict[str, str]]
"""A network's tensors by their plain names, and what is to be known about it."""


class Occupied(ValueError):
    """Another process trains in this folder."""


def kept(net: nn.Module, about: Mapping[str, str] | None = None) -> Kept:
    """Return what is kept of a network: its tensors by the names of the plain network, and what is known ``about`` it.

    Where the network is made of a plain one, with exits or branches or several times, that says how: `limbeck.zoo.network`
    makes it again. State of layers that is no tensor is said under ``extra state``, as JSON.

    Raises:
        ValueError: A layer keeps state that is neither a tensor nor plain values.
    """
    plain = shipped(net)
    state = plain.state_dict()
    extra = {name: value for name, value in state.items() if not isinstance(value, Tensor)}
    for name, value in extra.items():
        if not _is_plain(value):
            raise ValueError(
                f"{type(plain).__name__} keeps extra state under {name!r} that no file of weights can hold, "
                f"{type(value).__name__}: let get_extra_state() return a tensor, or numbers and words in a dict or list"
            )
    told = {**(about or {}), **facts_of(plain), **({EXTRA: json.dumps(extra)} if extra else {})}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}, told


def packed(net: nn.Module, about: Mapping[str, str] | None = None) -> bytes:
    """Return a network's weights as a safetensors file, with what `kept` says of it."""
    return files.packed(*kept(net, about))


def about(task: Task) -> dict[str, str]:
    """Return what the file of a network says of its task; the default one goes without saying."""
    return {} if task.name == Task.name else {"task": task.name}


class Run:
    """The folder of a run.

    ``config.yaml``, ``inputs.json``, ``metrics.csv``, ``train.log``, ``checkpoints/``, ``student.safetensors``,
    ``warnings.json`` if anything was warned of,
    ``result.json``, ``examples.npz`` and ``report.html``. Every file but the log is replaced as a whole, and what is read
    back has a checksum: its own, or the one that ``result.json`` keeps of it under ``files`` once the run is finished.

    The checkpoints, ``last.ckpt`` of the stage under way and ``stage-N.ckpt`` of those that are trained, hold the networks
    as they stand under ``["limbeck"]["networks"][NAME]``: ``"state"``, tensors by the plain network's names, and
    ``"about"``, what ``NAME.safetensors`` would say.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"run_dir: expected a folder, got the file {self.folder}: take another folder")

    @property
    def exists(self) -> bool:
        """Whether there is a run already: from its configuration on."""
        return self.config.exists() or self.begun

    @property
    def begun(self) -> bool:
        """Whether there is something trained."""
        return self.latest is not None or (self.folder / "result.json").exists()

    @property
    def config(self) -> Path:
        """What was asked for."""
        return self.folder / "config.yaml"

    @property
    def last(self) -> Path:
        """The checkpoint of the stage that is being trained."""
        return self.folder / "checkpoints" / "last.ckpt"

    def finished(self, stage: int) -> Path:
        """Return where a stage is kept once it has been trained."""
        return self.folder / "checkpoints" / f"stage-{stage}.ckpt"

    @property
    def latest(self) -> Path | None:
        """The checkpoint that went furthest; None where there is none."""
        if self.last.exists():
            return self.last
        stages = {int(path.stem[6:]): path for path in self.last.parent.glob("stage-*.ckpt") if path.stem[6:].isdigit()}
        return stages[max(stages)] if stages else None

    def networks_so_far(self) -> dict[str, Kept]:
        """Return the networks of the checkpoint that went furthest, the one to ship first, finished or not.

        Raises:
            FileNotFoundError: There is no checkpoint yet.
            Damaged: It cannot be read, or is of an older version, which did not keep them so.
        """
        path = self.latest
        if path is None:
            raise FileNotFoundError(
                f"{self.folder} holds no checkpoint yet: let the run go on (--resume), or train anew"
            )
        saved = self.checkpoint(path)["limbeck"]
        if "networks" not in saved:
            raise Damaged(
                f"{path} is of an older limbeck, which kept no networks in it: let the run go on (--resume) once"
            )
        return {name: (each["state"], each["about"]) for name, each in saved["networks"].items()}

    def checkpoint(self, path: Path) -> dict[str, Any]:
        """Read one of the run's checkpoints.

        Raises:
            Damaged: It is not whole, or no checkpoint of a run.
        """
        remedy = (
            "remove it, and the stage is trained anew" if path == self.last else "remove it and those of later stages"
        )
        saved = read(path, f"{remedy}; or {ANOTHER}")
        if not isinstance(saved, dict) or not isinstance(
            saved.get("limbeck", saved if "method" in saved else None), dict
        ):
            raise Damaged(f"{path} is no checkpoint of a run, but {type(saved).__name__}: {remedy}; or {ANOTHER}")
        own = saved.setdefault("limbeck", {})
        if own.get("format", files.VERSION) != files.VERSION:
            raise Damaged(
                f"{path} has format {own['format']}, of another version of limbeck, and this one reads {files.VERSION}: go "
                f"on with that version, or {ANOTHER}"
            )
        return saved

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep others from training in this folder; the operating system ends that with the process, however it ends.

        Raises:
            Occupied: Another one does.
        """
        with hold(self.folder / ".lock") as mine:
            if not mine:
                raise Occupied(f"another process trains in {self.folder}: wait for it, or {ANOTHER}")
            files.sweep(self.last.parent)  # checkpoints are large, and kills many where machines are lent
            yield

    def begin(self, settings: Mapping[str, Any], inputs: Mapping[str, Any]) -> None:
        """Write what the run depends on and what was asked for: from now on there is a run."""
        keep(self.config, settings)
        keep(self.inputs, {"config": sha256_of(self.config), "run": dict(inputs), "stages": {}})

    def forget(self) -> None:
        """Take back `begin`, of a run that failed before anything was trained."""
        self.config.unlink(missing_ok=True)
        self.inputs.unlink(missing_ok=True)

    @property
    def inputs(self) -> Path:
        """What the run depends on."""
        return self.folder / "inputs.json"

    def check(self, settings: Mapping[str, Any], resume: bool) -> None:
        """See that a training may begin here, or go on as it began.

        Args:
            settings: As for `begin`.
            resume: Whether it may go on.

        Raises:
            ValueError: There is a run, or one of another training.
        """
        if not self.exists:
            return
        if not resume:
            raise ValueError(
                f"{self.folder} holds a run already: pass resume=True (--resume) to go on with it, or another run_dir"
            )
        self.result()  # if it is damaged, better now than after the training
        was, before = _words(read(self.config, ANOTHER))
        if self.begun and self.inputs.exists() and self._depends().get("config") != sha256_of(self.config):
            raise Damaged(
                f"{self.config} was changed since the run began, by the checksum in {self.inputs.name}: {ANOTHER}"
            )
        word, now = _words(settings)
        if was and word and was != word:
            raise ValueError(
                f"the run in {self.folder} is one of `limbeck {was}`, and not of `limbeck {word}`: take another run_dir"
            )
        other = [name for name in now if name in before and name not in WHERE and before[name] != now[name]]
        if other:
            raise ValueError(
                f"the run in {self.folder} has another {other[0]}: {before[other[0]]}, and not {now[other[0]]}. "
                "Go on with the same settings, or take another run_dir"
            )

    def compare(self, now: Mapping[str, Any], loaders: Splits) -> None:
        """See that a run that goes on depends on what it did.

        Args:
            now: As for `begin`.
            loaders: The data.

        Raises:
            ValueError: It does not, or nobody knows.
        """
        was = self._depends()["run"]
        refuse_another(self.folder, was, let_off(was, now, loaders))

    def compare_stage(self, stage: int, now: Mapping[str, Any]) -> None:
        """See that a stage depends on what it did, or keep what it depends on if it was never there.

        Raises:
            ValueError: It does not.
        """
        depends = self._depends()
        stages = depends["stages"]
        if str(stage) in stages:
            refuse_another(self.folder, stages[str(stage)], now)
        else:
            keep(self.inputs, {**depends, "stages": {**stages, str(stage): dict(now)}})

    def _depends(self) -> dict[str, Any]:
        if not self.inputs.exists():
            raise ValueError(
                f"{self.folder} does not say what its run depends on, in {self.inputs.name}, as runs of an older limbeck "
                f"do not: nobody can tell whether this is the same training. Go on with that version, or {ANOTHER}"
            )
        depends = read(self.inputs, ANOTHER)
        if not isinstance(depends.get("run"), dict) or not isinstance(depends.get("stages"), dict):
            raise Damaged(f"{self.inputs} does not say what a run depends on, but has {sorted(depends)}: {ANOTHER}")
        return depends  # type: ignore[no-any-return]

    def write_metrics(self, history: Sequence[Row]) -> None:
        """Write ``metrics.csv``, one line an epoch; a column is empty where a stage does not have it."""
        columns = list(dict.fromkeys(name for row in history for name in row))
        text = io.StringIO(newline="")
        table = csv.DictWriter(text, columns)
        table.writeheader()
        table.writerows(history)
        write(self.folder / "metrics.csv", text.getvalue().encode())

    def write_networks(self, networks: Mapping[str, nn.Module], task: Task = classification) -> None:
        """Write each network as ``NAME.safetensors``, which loads into the plain network and says what it was trained for.

        Args:
            networks: By name.
            task: Theirs; the default one goes without saying.
        """
        for name, net in networks.items():
            keep(self.folder / f"{name}.safetensors", kept(net, about(task)))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``, with the checksums of a finished run's files."""
        there = [
            *sorted(self.folder.glob("*.safetensors")),
            *(self.folder / name for name in FILES),
        ]
        sums = {path.name: sha256_of(path) for path in there if path.exists()} if result.get("finished") else {}
        warned = [asdict(one) for one in read_warned(self.folder)]
        keep(self.folder / "result.json", {**result, "warnings": warned, "files": sums})

    def result(self) -> dict[str, Any]:
        """Read ``result.json``; empty where there is none."""
        return read_result(self.folder)

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Append what limbeck logs, and what it warns of, to ``train.log``, and keep the warnings for the page."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.folder / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

        def note(warned: Warned) -> None:
            logger.warning("%s: %s", warned.kind, warned.message)
            write_warned([warned], self.folder)

        write_warned(heard_before(), self.folder)
        try:
            with hearing(note):
                yield
        except BaseException as error:
            logger.error("stopped by %s: %s", type(error).__name__, error)
            raise
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)
            handler.close()


def _words(settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Take a command apart: its words, and its options; there are no words where it was a call."""
    words = []
    while len(settings) == 1 and isinstance(inner := next(iter(settings.values())), Mapping):
        words.append(next(iter(settings)))
        settings = inner
    return " ".join(words), settings


def _is_plain(value: Any) -> bool:
    """Whether JSON gives back what it is given."""
    try:
        return bool(json.loads(json.dumps(value)) == value)
    except (TypeError, ValueError):
        return False
