from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli.by_method import add_by_method, assembled
from limbeck.cli.parser import Commands
from limbeck.cli.terminal import waiting


def add(commands: Commands) -> None:
    """Add ``limbeck check METHOD``."""
    add_by_method(commands, "check", _check, doubts)


def doubts(
    expect: float | None = None,
    epochs: int | None = None,
    share: dict[str, float] | str | None = None,
    json: bool = False,
) -> None:
    """Say what to expect.

    Args:
        expect: The score that the teacher is known to have, as the task measures it: an accuracy in [0, 1], say.
        epochs: Of the training, for the estimate of its time.
        share: The share of the gradient that terms shall have, as attention=0.3 or attention=0.3,soft=0.2; the weights
            that give it are suggested. "attention" means attention.layer1, attention.layer2 and so on together.
        json: Print JSON.
    """


def _check(method: str, leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Show what `limbeck.check` finds."""
    from rich.console import Console

    from limbeck.cli.case import case_of
    from limbeck.verbs.check import check, console_table

    shares = shares_of(leaf.share) if isinstance(leaf.share, str) else leaf.share
    case = case_of(leaf)
    with waiting("looking for mistakes"):
        checkup = check(assembled(method, leaf, case), case.data, expect=leaf.expect, epochs=leaf.epochs, shares=shares)
    if leaf.json:
        print(checkup.json())
    else:
        Console(emoji=False).print(console_table(checkup))
    return 0 if checkup.ok else 1


def shares_of(words: str) -> dict[str, float]:
    """Read ``attention=0.3,soft=0.2``."""
    shares = {}
    for word in words.split(","):
        term, _, share = word.partition("=")
        try:
            shares[term] = float(share)
        except ValueError as error:
            raise ValueError(f"--share: expected TERM=SHARE,TERM=SHARE, as attention=0.3, got {word!r}") from error
    return shares
