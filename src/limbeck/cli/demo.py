from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from limbeck.cli.console import STOPPED
from limbeck.cli.options import call
from limbeck.cli.parser import Commands, first_line
from limbeck.verbs.demo import demo


def add(commands: Commands) -> None:
    """Add ``limbeck demo``."""
    commands.add("demo", _demo, first_line(_demo), demo)


def _demo(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Watch a small network learn from a large one, on real digits, in a minute and a half."""
    try:
        call(demo, leaf)
    except KeyboardInterrupt:
        Console(emoji=False, highlight=False).print("stopped; the same command goes on")
        return STOPPED
    return 0
