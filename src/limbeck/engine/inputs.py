"""What a training depends on, in words and digests: kept in its folder, and compared when it goes on.

The weights of those who teach are compared. Of what trains it is the architecture alone: a checkpoint brings the weights,
whatever the network holds that is to go on with them, and a student that was made anew without a seed, or that an
interruption left in the middle, must not keep anybody from going on. Files that the command names for networks that begin
are compared.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from limbeck.core.files import VERSION, digest, sha256_of
from limbeck.core.frozen import Frozen, bare
from limbeck.core.method import Make, Method, assign, parameters
from limbeck.core.objective import Objective, Source, Term, Weight
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.core.wrapped import unwrapped
from limbeck.data.identity import comes_again, described, differences, identity, made_of
from limbeck.data.repeatable import Repeatable, Splits
from limbeck.engine.schedule import Schedule, scheduled
from limbeck.nets.elsewhere import Elsewhere

BEGIN = ("student", "network", "peers", "assistants", "options")
"""What a command names networks by that begin."""
SHOWN = ("examine", "exhibit")
"""Of a task, what is but looked at."""
STEPS = 1000
"""Updates over which a schedule is followed, and points of a training at which a weight is looked at."""


def inputs_of(
    loaders: Splits, task: Task, training: Mapping[str, Any], settings: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what a whole run depends on, whatever its stages.

    Args:
        loaders: The data.
        task: Theirs.
        training: How many epochs, which seed, and so on: plain values by name.
        settings: The command, in which files may be named.
    """
    return {
        "limbeck": importlib.metadata.version("limbeck"),
        "format": VERSION,
        **training,
        "task of the data": describe_task(task),
        "data": identity(loaders),
        "files": dict(_files(settings or {})),
    }


def describe_stage(stage: Stage, few: Any = None) -> dict[str, Any]:
    """Return what a stage depends on as it begins: its method and those who teach.

    Args:
        stage: The stage.
        few: A batch of a few samples, for teachers without weights, as a forest's, which are told apart by their answers.
    """
    method = stage.method
    trains = None if stage.trains is None else _digest([architecture_of(module) for module in stage.trains])
    return {
        "name": stage.name,
        "share": stage.share,
        "trains": trains,
        "method": _describe_method(method),
        "task": describe_task(method.task),
        "networks": {name: architecture_of(net) for name, net in method.networks().items()},
        "teachers": {name: describe_teacher(teacher, method.task, few) for name, teacher in _teachers(method)},
    }


def describe_updates(
    stage: Stage, make: Make | Mapping[str, Make], schedule: Schedule | None, updates: int
) -> dict[str, Any]:
    """Return how a stage's players descend: what their optimizers and schedules are, and not how these were written.

    Args:
        stage: The stage.
        make: Makes the optimizers.
        schedule: Makes the schedules.
        updates: How many there will be.
    """
    owned = parameters(stage.method, stage.trains)
    optimizers = assign(owned, stage.optimizer or make, stage.method)
    told: dict[str, Any] = {"optimizer": {player: _optimizer(each) for player, each in optimizers.items()}}
    if schedule is not None:
        told["schedule"] = {
            player: _schedule(scheduled(schedule, each, updates), updates) for player, each in optimizers.items()
        }
    return told


def describe_task(task: Task) -> dict[str, Any]:
    """Return what a task is to a training: its name, what judges, and its functions, but for what is only looked at."""
    return {
        each.name: described(getattr(task, each.name)) for each in dataclasses.fields(task) if each.name not in SHOWN
    }


def describe_optimizer(make: Make | Mapping[str, Make] | None) -> Any:
    """Return what an optimizer is, by what is made: functions cannot be compared."""
    if isinstance(make, Mapping):
        return {player: describe_optimizer(each) for player, each in make.items()}
    if make is None:
        return None
    return _optimizer(assign({"student": [nn.Parameter(torch.zeros(1))]}, make)["student"])


def describe_schedule(schedule: Schedule | None, updates: int = 100) -> Any:
    """Return what a schedule is, by what it makes of so many updates."""
    if schedule is None:
        return None
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    return _schedule(scheduled(schedule, optimizer, updates), updates)


def weights_of(net: nn.Module) -> str:
    """Return what tells a network's weights and buffers from others: a digest of names, types, shapes and values."""
    state = unwrapped(bare(net)).state_dict()
    others = {name: json.dumps(described(value)) for name, value in state.items() if not isinstance(value, Tensor)}
    return digest({name: value for name, value in state.items() if isinstance(value, Tensor)}, others)[:16]


def architecture_of(net: nn.Module) -> str:
    """Return what tells a network from others whatever its weights: its modules as they print, and names and shapes."""
    plain = unwrapped(bare(net))
    tensors = [*plain.named_parameters(), *plain.named_buffers()]
    return _digest([described(plain), [(name, list(tensor.shape)) for name, tensor in tensors]])


def refuse_another(where: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """See that what a run began with is what it goes on with.

    Args:
        where: Its folder.
        was: What it began with.
        now: The same now.

    Raises:
        ValueError: It is not; the first difference, and what to do.
    """
    now = json.loads(json.dumps(now))
    if was.get("limbeck") != now.get("limbeck"):
        raise ValueError(
            f"the run in {where} was begun by limbeck {was.get('limbeck')}, and this is {now.get('limbeck')}, which may "
            f"train otherwise: go on with that version, or take another run_dir"
        )
    for path, before, after in differences(was, now):
        raise ValueError(
            f"the run in {where} has another {path}: {_shown(before)}, and not {_shown(after)}{_meaning(path)}. Go on with "
            "the same settings, or take another run_dir"
        )


def _meaning(path: str) -> str:
    """Say what has changed where a difference is one of digests, which tell nobody anything."""
    split = next((word for word in path.split() if word in ("train", "val", "test")), None)
    if split is None or not path.startswith(("data", "pipeline")):
        return ""
    return f": the {split} samples have changed since (files, labels, or how they are prepared)"


def let_off(was: Mapping[str, Any], now: Mapping[str, Any], loaders: Splits) -> dict[str, Any]:
    """Return ``now``, with a few samples of a loader as they were where it shows others at every look: nobody can compare.

    Args:
        was: What a run began with.
        now: The same now.
        loaders: The data now.
    """
    data = dict(now["data"])
    for name, loader in zip(data, loaders, strict=False):
        before = (was.get("data") or {}).get(name) or {}
        if isinstance(loader, Repeatable) and "a few" in before and before["a few"] != data[name].get("a few"):
            few = data[name]["a few"] if comes_again(loader) else before["a few"]
            data[name] = {**data[name], "a few": few}
    return {**now, "data": data}


def _describe_method(method: Method) -> dict[str, Any]:
    """A method: who plays, what each of its parts was made of, and each objective's terms."""
    named = dict(method.named_modules())
    return {
        "players": {name: len(parts) for name, parts in method.players().items()},
        "made of": {name or "itself": _made_of(part) for name, part in named.items() if isinstance(part, Method)},
        "terms": {name: _describe_objective(part) for name, part in named.items() if isinstance(part, Objective)},
        "shapes": _digest([(name, list(value.shape)) for name, value in method.named_parameters()]),
    }


def _made_of(method: Method) -> dict[str, Any]:
    """A method's class and options; its networks, objectives and task are described apart."""
    own = {name: value for name, value in made_of(method).items() if not isinstance(value, (nn.Module, Task))}
    return {"class": type(method).__qualname__, **{name: described(value) for name, value in own.items()}}


def _describe_objective(objective: Objective) -> dict[str, Any]:
    return {
        name: {"weight": _weight(weight), **_describe_term(term)}
        for name, (weight, term) in zip(objective.names, objective.entries, strict=True)
    }


def _describe_term(term: Term) -> dict[str, Any]:
    return {
        "loss": described(term.loss),
        "options": {name: described(value) for name, value in term.options.items()},
        "places": [_place(source) for source in term.places],
        "placed": {name: _place(source) for name, source in term.placed.items()},
    }


def _place(source: Source) -> Any:
    where = f"{source.role}:{source.path}" if source.path else source.role
    return [where, *map(described, source.steps)] if source.steps else where


def _weight(weight: Weight) -> Any:
    """A weight; of one that changes, its values over the training."""
    if not callable(weight):
        return described(float(weight))
    values = [float(weight(step / STEPS)) for step in range(STEPS + 1)]
    return f"{', '.join(f'{value:g}' for value in values[:: STEPS // 4])}, and between {_digest(values)}"


def _teachers(method: Method) -> Iterator[tuple[str, Frozen]]:
    return ((name, part) for name, part in method.named_modules() if isinstance(part, Frozen))


def describe_teacher(teacher: Frozen, task: Task, few: Any) -> dict[str, Any]:
    """Who teaches: weights and architecture, and how it is asked."""
    told = {
        "network": type(unwrapped(teacher.net)).__name__,
        "weights": weights_of(teacher),
        "mode": teacher.mode,
        "classes": teacher.classes,
        "inputs": described(teacher._seen[0]),
        "output": described(teacher.output),
    }
    here = few is not None and not isinstance(teacher.net, Elsewhere)
    if here and not any(isinstance(value, Tensor) for value in teacher.net.state_dict().values()):
        with torch.no_grad():
            answer = task.feed(teacher, task.inputs(few))
        told["answers"] = described(answer.round(decimals=4) if isinstance(answer, Tensor) else answer)
    return told


def _optimizer(made: Optimizer) -> Any:
    groups = [
        {name: described(value) for name, value in group.items() if name != "params"}
        | {"tensors": len(group["params"])}
        for group in made.param_groups
    ]
    return {"class": type(made).__name__, "groups": groups}


def _schedule(made: LRScheduler, updates: int) -> Any:
    """What a schedule is: its state as it begins, and the rates of its first updates."""
    state = {name: described(value) for name, value in made.state_dict().items() if not name.startswith("_")}
    rates: list[Any] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule that steps before its optimizer, which here is made for nothing
        for _ in range(0 if isinstance(made, ReduceLROnPlateau) else min(updates, STEPS)):
            rates.append([float(group["lr"]) for group in made.optimizer.param_groups])
            made.step()
    return {"class": type(made).__name__, "state": _digest(state), "rates": _digest(rates)}


def _files(settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files that a command names for networks that begin, NAME@FILE, with their digests."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _files(value)
        elif name in BEGIN:
            for word in [value] if isinstance(value, str) else value if isinstance(value, Sequence) else []:
                path = Path(str(word).rpartition("@")[2]).expanduser()
                if "@" in str(word) and path.is_file():
                    yield f"{name} {word}", sha256_of(path)[:16]


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
