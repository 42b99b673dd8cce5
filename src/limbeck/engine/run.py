"""A run on disk: everything that a training leaves behind, in one folder."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save as to_safetensors
from torch import nn

from limbeck.core.files import write
from limbeck.core.task import Task
from limbeck.engine.learner import Row
from limbeck.nets.remade import facts_of
from limbeck.tasks.classification import classification

logger = logging.getLogger("limbeck")

WHERE = {"run_dir", "resume", "progress", "check", "root", "download", "workers", "accelerator", "devices", "strategy"}
"""Settings that say where and how a training runs, and not what it comes to: they may change when it goes on."""


def packed(net: nn.Module, about: Mapping[str, str] | None = None) -> bytes:
    """Return a network's weights as a safetensors file, with what is to be known ``about`` them.

    Where the network is made of a plain one, with exits or branches or several times, that says how: `limbeck.zoo.network`
    makes it again.
    """
    # clones, since shared storage (tied weights) is more than the format can say
    state = {key: value.detach().cpu().clone().contiguous() for key, value in net.state_dict().items()}
    return to_safetensors(state, {**(about or {}), **facts_of(net)} or None)


class Run:
    """The folder of a run.

    ``config.yaml``, ``metrics.csv``, ``train.log``, ``checkpoints/``, ``student.safetensors``, ``result.json``,
    ``examples.npz`` and ``report.html``. Every file but the log is replaced as a whole.

    Args:
        folder: Where it is.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    @property
    def exists(self) -> bool:
        """Whether there is a run already."""
        return any((self.folder / "checkpoints").glob("*.ckpt")) or (self.folder / "result.json").exists()

    @property
    def last(self) -> Path:
        """The checkpoint of the stage that is being trained."""
        return self.folder / "checkpoints" / "last.ckpt"

    def finished(self, stage: int) -> Path:
        """Return where a stage is kept once it has been trained."""
        return self.folder / "checkpoints" / f"stage-{stage}.ckpt"

    def keep(self, path: Path, state: Mapping[str, Any]) -> None:
        """Write a state as a file of torch."""
        write(path, lambda beside: torch.save(dict(state), beside))

    def write_config(self, settings: Mapping[str, Any]) -> None:
        """Write ``config.yaml``."""
        write(self.folder / "config.yaml", yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True))

    def check(self, settings: Mapping[str, Any], resume: bool) -> None:
        """See that a training may begin here, or go on as it began.

        Args:
            settings: As for `write_config`.
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
        was, before = _words(yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8")))
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
        about = {} if task.name == Task.name else {"task": task.name}
        for name, net in networks.items():
            write(self.folder / f"{name}.safetensors", packed(net, about))

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write ``result.json``."""
        write(self.folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Append what limbeck logs, and what it warns of, to ``train.log``."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self.folder / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        level, show = logger.level, warnings.showwarning
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)

        def note(message: Warning | str, category: type[Warning], *place: Any, **line: Any) -> None:
            logger.warning("%s: %s", category.__name__, message)
            show(message, category, *place, **line)

        warnings.showwarning = note
        try:
            yield
        except BaseException as error:
            logger.error("stopped by %s: %s", type(error).__name__, error)
            raise
        finally:
            warnings.showwarning = show
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
