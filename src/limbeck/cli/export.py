from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from limbeck import zoo
from limbeck.cli.case import case_of
from limbeck.cli.console import plain
from limbeck.cli.networks import trained
from limbeck.cli.options import answers, load_data, network_of
from limbeck.cli.parser import Commands, first_line
from limbeck.data import Data
from limbeck.verbs.export import FORMATS, Exported, ExportError, console_table, export


def add(commands: Commands) -> None:
    """Add ``limbeck export``."""
    commands.add("export", _export, first_line(_export), network_of, destination, load_data, answers)


def destination(to: str, formats: str = ",".join(FORMATS), tolerance: float = 1e-4, json: bool = False) -> None:
    """Say what to write, and where.

    Args:
        to: The folder that the files go to.
        formats: Which of safetensors, torch_export, onnx and int8, with commas between them.
        tolerance: The largest absolute difference of an output that is allowed; int8 differs by design.
        json: Print JSON.
    """


def _export(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Write a network as files that ship, each compared with it on the test data."""
    case = case_of(leaf)
    net = trained(leaf.network, "network", case)
    data = case.data if isinstance(case.data, Data) else case.held_out
    formats: Any = [word.strip() for word in leaf.formats.split(",") if word.strip()]
    name, _ = zoo.split_name(leaf.network)
    try:
        exported = export(net, data, leaf.to, formats=formats, tolerance=leaf.tolerance, name=name, task=case.task)
    except ExportError as error:
        _show(error.exported, leaf.json)
        raise
    _show(exported, leaf.json)
    return 0


def _show(exported: Exported, json: bool) -> None:
    if json:
        print(exported.json())
        return
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    console.print(console_table(exported))
    for file in (*(artefact.file for artefact in exported.artefacts), "export.json"):
        console.print(plain(str(exported.folder / file)))
