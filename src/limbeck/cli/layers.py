from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.table import Table

from limbeck.cli.case import Case, case_of
from limbeck.cli.console import plain
from limbeck.cli.networks import network
from limbeck.cli.options import answers, load_data
from limbeck.cli.parser import Commands, first_line
from limbeck.cli.tasks import asked
from limbeck.core.layers import Layer, layers, pairs
from limbeck.tasks import classification

SHAPE = (3, 32, 32)
"""Of one input, where nobody says anything."""


def add(commands: Commands) -> None:
    """Add ``limbeck layers``."""
    parser = commands.add("layers", _layers, first_line(_layers), looked_at, load_data, answers)
    parser.set_defaults(data=None)  # where there are none, any input of a shape will do
    parser.add_argument("student", type=str, help="a network of `limbeck list networks`")
    parser.add_argument("teacher", type=str | None, nargs="?", help="a second one, to pair their layers")


def looked_at(shape: list[int] | None = None, new_head: bool = False) -> None:
    """Say what the networks are fed here.

    Args:
        shape: Of one input, where no data are named: [C,H,W]; by default [3,32,32], for 10 classes. With data, their inputs
            are taken as a training takes them, so that the pairs are those of the run.
        new_head: Begin with a fresh last layer where the file of weights is for another number of classes; all else must
            fit.
    """


def _layers(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Show a network's layers, or which of the student's belongs to which of the teacher's."""
    case = _case(leaf)
    names = [leaf.student] if leaf.teacher is None else [leaf.student, leaf.teacher]
    nets = [network(name, case) for name in names]
    console = Console(emoji=False)
    for who, name, net in zip(("student", "teacher"), names, nets, strict=False):
        console.print(_layer_table(f"{who}: {name}", layers(net, case.example, case.task)))
    if leaf.teacher is not None:
        table = Table("student's layer", "teacher's layer", title="pairs that methods use by default")
        for pair in pairs(nets[0], nets[1], case.example, case.task):
            table.add_row(*map(plain, pair))
        console.print(table)
    return 0


def _case(leaf: Namespace) -> Case:
    """Take inputs of the data, or any of the shape."""
    if leaf.data is not None:
        if leaf.shape is not None:
            raise ValueError(
                f"--shape is for networks without data, and the inputs of {leaf.data} have theirs: leave it out"
            )
        return case_of(leaf)
    example = torch.randn(2, *(leaf.shape or SHAPE), generator=torch.Generator().manual_seed(0))
    task = asked(leaf.task, leaf.output, classification)
    return Case("", None, task, leaf.num_outputs or 10, example, new_head=leaf.new_head)


def _layer_table(title: str, listed: Sequence[Layer]) -> Table:
    table = Table("layer", "class", "output", "parameters", title=title)
    for layer in listed:
        shape = "(N, " + ", ".join(map(str, layer.shape[1:])) + ")"
        table.add_row(plain(layer.path), layer.kind, shape, f"{layer.parameters:,}")
    return table
