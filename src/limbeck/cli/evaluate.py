from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from limbeck.cli import COMMANDS
from limbeck.cli.options import answers, load_data, trained_of, views
from limbeck.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add ``limbeck eval``."""
    commands.add("eval", _eval, COMMANDS["eval"], trained_of, measures, views, load_data, answers)


def measures(
    teacher: str | None = None,
    noise: list[float] | str | None = None,
    macs: str | None = None,
    accuracy: float | None = None,
    to: str | None = None,
    json: bool = False,
) -> None:
    """Say what to measure.

    Args:
        teacher: Another network with its weights, to compare with: agreement, likeness of layers, change of each class.
        noise: Standard deviations of Gaussian noise on the normalised inputs, as 0.1,0.5, to measure the score with too.
        macs: Of a network with exits: set its thresholds on the validation data to the most accurate within so many
            multiply-accumulates a sample on average, as 2.5M.
        accuracy: Or to the cheapest that reaches this accuracy there, in [0, 1].
        to: A file for the weights with these thresholds, as early.safetensors.
        json: Print JSON, with the confusion matrices, and of a network with exits the whole curve.
    """


def _eval(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Measure the networks, and print what was found."""
    from limbeck.cli.evaluation import evaluated

    return evaluated(leaf)
