from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from limbeck import zoo
from limbeck.cli.options import several
from limbeck.data import Data
from limbeck.nets.ensemble import Ensemble
from limbeck.runs import NETWORKS, Entry


class Name(str):
    """A network's name that makes the network, with weights drawn at each call; in tables and files it is a word."""

    data: Data

    def __call__(self) -> nn.Module:
        """Make it."""
        return network(self, self.data)


def network(name: str, data: Data) -> nn.Module:
    """Make a network that suits the data, by its name."""
    return zoo.network(name, data.num_classes, data.shape)


def weighted(name: str, role: str) -> str:
    """Insist on weights; a function of the user's own may bring its own."""
    base, weights = zoo.split_name(name)
    own = ":" in base and not base.startswith(("torchvision:", "timm:"))
    if weights is None and not own:
        raise ValueError(
            f"the {role} {name} has no weights: name their file, {name}@FILE "
            f"(train one with `limbeck train --network {name}`), or take {name}@random for an untrained one"
        )
    return name


def taught_by(names: list[str] | str, data: Data) -> nn.Module:
    """Make the teacher: a network, or of several the ensemble that averages logits, which suits every temperature."""
    nets = [network(weighted(name, "teacher"), data) for name in several(names)]
    return nets[0] if len(nets) == 1 else Ensemble(nets, mean="geometric")


def with_networks(entry: Entry, data: Data, seed: int) -> Entry:
    """Let the names of networks among an entry's options stand for networks; in the table it is called as before.

    Peers and assistants are made by each run. ``teacher`` is the same for all, and drawn of the seed alone: in every
    process, and whatever stands beside it.
    """
    options = {name: _makes(value, data) if name in NETWORKS else value for name, value in entry.options.items()}
    if "teacher" not in options:
        return replace(entry, options=options)
    said = options.pop("teacher")
    names = said if isinstance(said, list) else [said]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(
            f"{entry.name}: expected teacher=NAME@FILE or teacher=NAME@random, or several in brackets, got {said!r}"
        )
    torch.manual_seed(seed)
    untrained = all(zoo.split_name(name)[1] == "random" for name in names)
    return replace(entry, options=options, teacher=taught_by(names, data), control=untrained)


def _makes(value: Any, data: Data) -> Any:
    """Return a name, or a list of names, that makes what it names."""
    if isinstance(value, list):
        return [_makes(each, data) for each in value]
    name = Name(value)
    name.data = data
    return name
