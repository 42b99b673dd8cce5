from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import student_of
from limbeck.cli.parser import Commands
from limbeck.verbs.initialize import Channels


def add(commands: Commands) -> None:
    """Add ``limbeck initialize``."""
    commands.add("initialize", _initialize, COMMANDS["initialize"], student_of, beginning)


def beginning(
    teacher: str,
    to: str,
    channels: Channels = "largest",
    blocks: dict[str, list[int]] | None = None,
    shape: list[int] = [3, 32, 32],  # noqa: B006  # the parser copies it
    num_outputs: int = 10,
    seed: int = 0,
) -> None:
    """Say who gives what to the student, and where it goes.

    Args:
        teacher: A deeper or wider network of its family, with its weights, as resnet56@teacher.safetensors.
        to: The file of the student's weights, student.safetensors.
        channels: The largest of the teacher's channels, or the first.
        blocks: Which of the teacher's blocks to take, by the row's path: '{layer1: [0, 4]}'; by default evenly spread.
        shape: Of one input: [C,H,W].
        num_outputs: How many outputs the networks have.
        seed: Of the weights that the teacher does not have.
    """


def _initialize(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Write the weights that `limbeck.initialize` gives a student."""
    import torch
    from lightning import seed_everything
    from rich.console import Console

    from limbeck import zoo
    from limbeck.core.files import keep
    from limbeck.engine.named import weighted
    from limbeck.engine.run import kept
    from limbeck.verbs.initialize import initialize

    to = Path(leaf.to)
    if to.suffix != ".safetensors":
        raise ValueError(f"to: expected a file ending in .safetensors, got {leaf.to!r}")
    seed_everything(leaf.seed, verbose=False)
    shape = tuple(leaf.shape)
    student = zoo.network(leaf.student, leaf.num_outputs, shape, new_head=leaf.new_head or None)
    teacher = zoo.network(weighted(leaf.teacher, "teacher"), leaf.num_outputs, shape, new_head=False)
    report = initialize(student, teacher, example=torch.randn(2, *shape), channels=leaf.channels, blocks=leaf.blocks)
    keep(to, kept(student))
    console = Console(emoji=False, highlight=False)
    console.print(report)
    console.print(f"written to {to}: begin with --student {zoo.split_name(leaf.student)[0]}@{to}", soft_wrap=True)
    return 0
