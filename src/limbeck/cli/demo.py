from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from limbeck.cli import COMMANDS
from limbeck.cli.options import call
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import STOPPED
from limbeck.verbs.demo import demo


def add(commands: Commands) -> None:
    """Add ``limbeck demo``."""
    commands.add("demo", _demo, COMMANDS["demo"], demo)


def _demo(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Run the demonstration."""
    try:
        call(demo, leaf)
    except KeyboardInterrupt:
        Console(emoji=False, highlight=False).print("stopped; the same command goes on")
        return STOPPED
    return 0
