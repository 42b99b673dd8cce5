from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import answers, load_data, several, trained_of
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import plain


def add(commands: Commands) -> None:
    """Add ``limbeck export``."""
    commands.add("export", _export, COMMANDS["export"], trained_of, destination, load_data, answers)


def destination(
    to: str,
    formats: str = "safetensors,torch_export,onnx,int8",
    tolerance: float = 1e-4,
    classes: list[str] | None = None,
    also: list[str] | str | None = None,
    json: bool = False,
) -> None:
    """Say what to write, and where.

    Args:
        to: The folder that the files go to.
        formats: Which of safetensors, torch_export, onnx and int8, with commas between them.
        tolerance: The largest absolute difference of an output that is allowed; int8 differs by design.
        classes: The names of the classes, as [cat,dog], where the data do not say them; or those of the data, where the
            network's training had others and its outputs are these all the same.
        also: What else of that which the network returns becomes an output of the graphs, as embedding, or [embedding,aux].
        json: Print JSON.
    """


def _export(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Write the files, and say what each of them is like."""
    from limbeck import zoo
    from limbeck.cli.as_trained import as_trained
    from limbeck.cli.case import case_of
    from limbeck.cli.networks import trained
    from limbeck.data import Data
    from limbeck.engine.named import unnamed_weights
    from limbeck.verbs.export import ExportError, export

    said = as_trained(leaf, [leaf.network])
    case = case_of(said)
    renamed = leaf.classes is not None and tuple(leaf.classes) == case.classes
    net = trained(leaf.network, "network", case, renamed=renamed)
    data = case.data if isinstance(case.data, Data) else case.held_out
    formats: Any = [word.strip() for word in leaf.formats.split(",") if word.strip()]
    name, _ = zoo.split_name(leaf.network)
    mean, std = (said.mean, said.std) if said.mean and said.std else (None, None)  # one alone tells nothing
    try:
        exported = export(
            net,
            data,
            leaf.to,
            formats=formats,
            tolerance=leaf.tolerance,
            name=name,
            task=case.task,
            mean=mean,
            std=std,
            classes=leaf.classes,
            also=several(leaf.also),
            notes=[f"{doubt}."] if (doubt := unnamed_weights(leaf.network)) else [],
        )
    except ExportError as error:
        _show(error.exported, leaf.json)
        raise
    _show(exported, leaf.json)
    return 0


def _show(exported: Any, json: bool) -> None:
    from rich.console import Console

    from limbeck.verbs.export import console_table

    if json:
        print(exported.json())
        return
    console = Console(emoji=False, highlight=False, soft_wrap=True)
    console.print(console_table(exported))
    for note in exported.notes:
        console.print(plain(note))
    for file in (*(artefact.file for artefact in exported.artefacts), "export.json"):
        console.print(plain(str(exported.folder / file)))
