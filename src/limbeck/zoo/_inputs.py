"""What a network was fed as it was trained: said in the folder of its run, or in a file that `limbeck.export` wrote."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from limbeck.core.files import read
from limbeck.zoo._files import facts_in, split_key

REMEDY = "delete it, and say yourself how the inputs are prepared: --size, --mean and --std"


OPTIONS = ("size", "in_memory", "mean", "std")
"""What `limbeck.data.load` is told of how inputs are prepared."""


class Inputs(NamedTuple):
    """What the data of a training were, and how its inputs were prepared; empty where that is not known.

    Args:
        data: The name of the data.
        options: What they must be loaded with to be prepared alike, of ``OPTIONS``.
        shape: Of one input.
        mean: By which they were normalised.
        std: Likewise.
        classes: The names of the classes or labels, in the order of the outputs.
        words: How a command names the data: ``--data imagefolder --root photos``.
    """

    data: str = ""
    options: Mapping[str, Any] = {}
    shape: tuple[int, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    classes: tuple[str, ...] = ()
    words: str = ""


def inputs_of(words: str) -> Inputs:
    """Return what the network was fed whose weights ``FILE`` or ``RUN`` names.

    Raises:
        Damaged: What the run's folder says of it cannot be read.
    """
    place, _ = split_key(words)
    if not place.exists():
        return Inputs()
    folder = place if place.is_dir() else place.parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    if not (folder / "inputs.json").exists():
        return _of_file(words)
    pipeline = read(folder / "inputs.json", REMEDY).get("run", {}).get("pipeline")
    command = _command(folder / "config.yaml")
    seen = _of_pipeline(pipeline) if pipeline else Inputs()
    seen = seen._replace(words=_words(command) or seen.words)
    if ":" not in command.get("data", ""):
        return seen
    own = {name: command[name] for name in OPTIONS if command.get(name) is not None}  # of a function of the user's
    return seen._replace(data=command["data"], options=own)


def _of_pipeline(pipeline: Mapping[str, Any]) -> Inputs:
    """Read what `limbeck.data.load` found."""
    shape, mean, std = (tuple(pipeline[key]) for key in ("inputs", "mean", "std"))
    options: dict[str, Any] = {"mean": list(mean), "std": list(std)} if mean else {}
    if len(shape) == 3 and not pipeline["in_memory"]:
        height, width = shape[1:]
        options |= {"size": height if height == width else [height, width], "in_memory": False}
    classes = tuple(map(str, pipeline.get("classes", ())))
    return Inputs(pipeline["data"], options, shape, mean, std, classes, _words(pipeline))


def _command(config: Path) -> Mapping[str, Any]:
    """Read the options of a command, without its words."""
    said: Any = read(config, REMEDY) if config.exists() else {}
    while isinstance(said, Mapping) and len(said) == 1:
        said = next(iter(said.values()))
    return said if isinstance(said, Mapping) else {}


def _words(command: Mapping[str, Any]) -> str:
    """Write the options that name data as they are typed."""
    said = {name: command.get(name) for name in ("data", "root")}
    return " ".join(f"--{name} {shlex.quote(value)}" for name, value in said.items() if isinstance(value, str))


def _of_file(words: str) -> Inputs:
    """Read what an exported file says of itself."""
    facts = facts_in(words)
    shape, mean, std, classes = (json.loads(facts.get(key, "[]")) for key in ("input_shape", "mean", "std", "classes"))
    if not isinstance(shape, list):  # of inputs by name
        return Inputs()
    options = {"mean": mean, "std": std} if mean else {}
    return Inputs(
        facts.get("data", ""), options, tuple(shape), tuple(mean), tuple(std), tuple(map(str, classes)), _words(facts)
    )
