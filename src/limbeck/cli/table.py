from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import answers, load_data
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import plain

SECONDS = 0.5
"""For the times of each network: more than elsewhere, since they are what is asked for."""


def add(commands: Commands) -> None:
    """Add ``limbeck table``."""
    parser = commands.add("table", _table, COMMANDS["table"], shown, load_data, answers)
    parser.add_argument("teacher", type=str, help="a network with its weights, as resnet56@teacher.safetensors")
    parser.add_argument("students", type=str, nargs="+", help="others, likewise")


def shown(json: bool = False, markdown: bool = False) -> None:
    """Say how to show it.

    Args:
        json: Print JSON, with all digits.
        markdown: Print a Markdown table.
    """


def _table(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Measure the networks, and print a row for each."""
    import torch
    from rich.console import Console

    from limbeck.cli.as_trained import as_trained
    from limbeck.cli.case import case_of
    from limbeck.cli.networks import short_names, trained
    from limbeck.data import Data
    from limbeck.measure import accounts
    from limbeck.report.accounts import console_table, legend, markdown_table, records

    case = case_of(as_trained(leaf, [leaf.teacher, *leaf.students]))
    torch.manual_seed(leaf.seed)  # of NAME@random
    names = [leaf.teacher, *leaf.students]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{twice[0]} is named twice")
    roles = ["teacher", *("student" for _ in leaf.students)]
    made = (trained(name, role, case) for name, role in zip(names, roles, strict=True))
    nets = dict(zip(short_names(names), made, strict=True))
    data = case.data if isinstance(case.data, Data) else (*case.data[:2], case.held_out)
    found = accounts(nets, data, seconds=SECONDS, task=case.task)
    if leaf.json:
        print(json.dumps(records(found), ensure_ascii=False))
    elif leaf.markdown:
        print(markdown_table(found), end="")
    else:
        console = Console(emoji=False)
        console.print(console_table(found, case.title))
        console.print(plain(legend(found)), highlight=False)
    return 0
