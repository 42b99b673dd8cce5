from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from limbeck import zoo
from limbeck.cli.as_trained import tell_of_other_inputs
from limbeck.cli.case import Case, shape_of
from limbeck.cli.options import ELSEWHERE, several
from limbeck.core.frozen import Frozen
from limbeck.core.task import logits
from limbeck.engine.named import (
    its_data,
    refuse_another_task,
    refuse_other_classes,
    tell_of_other_classes,
    weighted,
)
from limbeck.nets.elsewhere import Elsewhere
from limbeck.nets.ensemble import Ensemble

if TYPE_CHECKING:
    from limbeck.verbs.runs import Entry


class Name(str):
    """A network's name that makes the network, with weights drawn at each call; in tables and files it is a word."""

    case: Case

    def __call__(self) -> nn.Module:
        """Make it."""
        return network(self, self.case)


def network(name: str, case: Case) -> nn.Module:
    """Make a network that suits the data, by its name, to be trained: `limbeck.zoo.network` says what begins anew."""
    return zoo.network(name, case.outputs, case.shape, new_head=case.new_head or None)


def trained(name: str, role: str, case: Case, *, renamed: bool = False) -> nn.Module:
    """Make a network that has learned, to be measured or shipped: with all its weights, and for the classes it knows.

    Args:
        name: With its weights.
        role: What it is called where it has none.
        case: What it works on.
        renamed: Whether the user says that its outputs are the data's classes, whatever they were called in its training.
    """
    weighted(name, role)
    if case.new_head:
        raise ValueError(
            f"--new-head: a fresh last layer has learned nothing, and {name} is to be measured or shipped as it is. Train "
            f"it first, `limbeck train --network {name} --new-head`"
        )
    if not renamed:
        refuse_other_classes(name, case.classes)
    tell_of_other_inputs(name, case)
    with naming_its_data(name):
        return zoo.network(name, case.outputs, case.shape, new_head=False)


@contextmanager
def naming_its_data(name: str) -> Iterator[None]:
    """Say of a network that cannot be made what data its training had: without --data they are others."""
    try:
        yield
    except ValueError as error:
        if not (had := its_data(name)):
            raise
        raise ValueError(f"{error}{had}") from error


def short_names(names: Sequence[str]) -> list[str]:
    """Leave away of the files of weights what is not needed to tell networks apart: resnet8, or else resnet8 kd."""
    split = [zoo.split_name(name) for name in names]
    bases = [base for base, _ in split]
    folders = [f"{base} {_folder(Path(weights or '')).name}" for base, weights in split]
    counts = Counter(bases), Counter(folders)
    return [
        base if counts[0][base] == 1 else folder if counts[1][folder] == 1 else name
        for base, folder, name in zip(bases, folders, names, strict=True)
    ]


def _folder(weights: Path) -> Path:
    """Return the folder that weights lie in: a run's, or their file's."""
    return weights if weights.is_dir() else weights.parent


def taught_by(names: list[str] | str, case: Case) -> nn.Module:
    """Make the teacher: a network, or of several the ensemble that averages answers, which suits every temperature."""
    if names == ELSEWHERE:
        return Elsewhere()
    nets = [_teacher(weighted(name, "teacher"), case) for name in several(names)]
    if len(nets) == 1:
        return nets[0]
    ensemble = Ensemble(nets, mean="geometric", output=case.task.output)
    return ensemble if case.task.output is logits else Frozen(ensemble, output=_as_it_is)


def _teacher(name: str, case: Case) -> nn.Module:
    """Make a teacher, fed and read as the user says, or else as the student is."""
    if not case.view:
        refuse_another_task(name, case.task)
    if "inputs" not in case.view:
        tell_of_other_inputs(name, case)
    if "classes" not in case.view:
        tell_of_other_classes(name, case.classes)
    fed = case.view.get("inputs", _as_it_is)(case.example)
    net = zoo.network(name, case.teacher_outputs or case.outputs, shape_of(fed), new_head=False)
    return Frozen(net, **case.view) if case.view else net


def _as_it_is(answer: Any) -> Any:
    return answer


def with_networks(entry: Entry, case: Case, seed: int) -> Entry:
    """Let the names of networks among an entry's options stand for networks; in the table it is called as before.

    Peers and assistants are made by each run. ``teacher`` is the same for all, and drawn of the seed alone: in every
    process, and whatever stands beside it.
    """
    from limbeck.verbs.runs import NETWORKS

    options = {name: _makes(value, case) if name in NETWORKS else value for name, value in entry.options.items()}
    if options.get("teacher") is None:  # null: the method without one
        return replace(entry, options=options)
    said = options.pop("teacher")
    names = said if isinstance(said, list) else [said]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{entry.name}: expected teacher=NAME@FILE or teacher=NAME@random, or several in brackets, got {said!r}"
        )
    torch.manual_seed(seed)
    untrained = all(zoo.split_name(name)[1] == "random" for name in names)
    return replace(entry, options=options, teacher=taught_by(names, case), control=untrained)


def _makes(value: Any, case: Case) -> Any:
    """Return a name, or a list of names, that makes what it names."""
    if isinstance(value, list):
        return [_makes(each, case) for each in value]
    name = Name(value)
    name.case = case
    return name
