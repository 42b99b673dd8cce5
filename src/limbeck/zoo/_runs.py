"""Where the folder of a run keeps its networks: as files once it is finished, and in its checkpoints until then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from limbeck.core.files import read

GO_ON = "let the run go on (--resume), or train again with another run_dir"


def in_run(folder: Path, network: str | None = None) -> Path:
    """Return the file of a run's network, or the checkpoint that went furthest where the run is not finished.

    Args:
        folder: Of the run.
        network: Its name; by default the student, or else the one that ``result.json`` names first.

    Raises:
        ValueError: The folder is none of a run, has no such network, or nothing was trained yet.
    """
    if not any((folder / name).exists() for name in ("result.json", "config.yaml", "checkpoints")):
        raise ValueError(_no_run(folder))
    result = read(folder / "result.json", GO_ON) if (folder / "result.json").exists() else {}
    listed = result.get("networks")
    named = list(listed) if isinstance(listed, Mapping) else []
    files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    furthest = _furthest(folder / "checkpoints")
    if result.get("finished", bool(files)) or furthest is None:
        wanted = [network] if network is not None else ["student", *named]
        found = next((files[name] for name in wanted if name in files), None)
        if found is None:
            there = f"it has {', '.join(files)}" if files else "it has none yet" if not result else "its files are gone"
            which = network or " or ".join(dict.fromkeys(wanted))
            raise ValueError(f"the run in {folder} has no weights of {which}, as {which}.safetensors: {there}; {GO_ON}")
        return found
    return furthest


def is_checkpoint(content: Any) -> bool:
    """Whether what was read is a checkpoint of a run that says which networks it holds."""
    own = content.get("limbeck") if isinstance(content, Mapping) else None
    return isinstance(own, Mapping) and isinstance(own.get("networks"), Mapping) and bool(own["networks"])


def so_far(
    content: Mapping[str, Any], network: str | None, place: Path
) -> tuple[str, Mapping[str, Tensor], Mapping[str, str]]:
    """Return a network of a run's checkpoint: its name, weights, and what is known of it.

    Args:
        content: Of the checkpoint.
        network: Which; by default the student, or else the first, which is the one to ship.
        place: What the user named.

    Raises:
        ValueError: It does not hold this network.
    """
    networks = content["limbeck"]["networks"]
    name = network or ("student" if "student" in networks else next(iter(networks)))
    if name not in networks:
        raise ValueError(f"{place} has no network {name!r}: it has {', '.join(networks)}")
    return name, networks[name]["state"], networks[name]["about"]


def how_far(content: Mapping[str, Any], place: Path) -> str:
    """Say of what epoch a run's checkpoint is."""
    own = content.get("limbeck", {})
    history = own.get("history") or content.get("history") or []
    epochs, last = len(history), history[-1] if history else {}
    stage, within = last.get("stage"), own.get("past", 0) + own.get("step", 0) > last.get("step", 0)
    when = (
        f"after {epochs} epoch{'s' * (epochs != 1)}" + ", within the next" * within if epochs else "in its first epoch"
    )
    where = f", in its stage {stage}" if stage not in (None, "train") else ""
    what = "a run that is not finished" if place.is_dir() else "a checkpoint of a training"
    return f"{place} is {what}: the network is taken as it was {when}{where}"


def _furthest(checkpoints: Path) -> Path | None:
    """Return the checkpoint that went furthest."""
    last = checkpoints / "last.ckpt"
    if last.exists():
        return last
    stages = {int(path.stem[6:]): path for path in checkpoints.glob("stage-*.ckpt") if path.stem[6:].isdigit()}
    return stages[max(stages)] if stages else None


def _no_run(folder: Path) -> str:
    """Say what a folder is, and which runs lie in it."""
    runs = [
        path.parent.relative_to(folder)
        for depth in ("*", "*/*", "*/*/*")
        for path in folder.glob(f"{depth}/config.yaml")
    ]
    if runs:
        return f"{folder} is a folder with runs in it, and none itself: name one of them, as {folder / sorted(runs)[0]}"
    there = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    listed = ", ".join(there[:6]) + (", ..." if len(there) > 6 else "")
    holds = f"holds {listed}" if there else "is empty"
    return (
        f"{folder} is a folder that {holds}, and not a run, which has config.yaml and checkpoints/: name a run's folder, "
        "or a file of weights"
    )
