from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import Namespace
from rich.table import Table

from limbeck.cli import COMMANDS
from limbeck.cli.options import answers, load_data
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import plain
from limbeck.core.layers import Layer, layers, pairs


def add(commands: Commands) -> None:
    """Add ``limbeck layers``."""
    parser = commands.add("layers", _layers, COMMANDS["layers"], looked_at, load_data, answers)
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
    """Show the layers of one network, or of two and their pairs."""
    from rich.console import Console

    from limbeck.cli.case import case_or_shape
    from limbeck.cli.networks import naming_its_data, network

    case = case_or_shape(leaf)
    names = [leaf.student] if leaf.teacher is None else [leaf.student, leaf.teacher]
    nets = []
    for name in names:
        with naming_its_data(name):
            nets.append(network(name, case))
    console = Console(emoji=False)
    for who, name, net in zip(("student", "teacher"), names, nets, strict=False):
        console.print(_layer_table(f"{who}: {name}", layers(net, case.example, case.task)))
    if leaf.teacher is not None:
        table = Table("student's layer", "teacher's layer", title="pairs that methods use by default")
        for pair in pairs(nets[0], nets[1], case.example, case.task):
            table.add_row(*map(plain, pair))
        console.print(table)
    return 0


def _layer_table(title: str, listed: Sequence[Layer]) -> Table:
    table = Table("layer", "class", "output", "parameters", title=title)
    for layer in listed:
        shape = "(N, " + ", ".join(map(str, layer.shape[1:])) + ")"
        table.add_row(plain(layer.path), layer.kind, shape, f"{layer.parameters:,}")
    return table
