from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jsonargparse import Namespace

from limbeck.cli.console import show_networks
from limbeck.cli.networks import network, weighted
from limbeck.cli.options import call, load_data, network_of
from limbeck.cli.parser import Commands, first_line
from limbeck.engine.evaluate import evaluate


def add(commands: Commands) -> None:
    """Add ``limbeck eval``."""
    commands.add("eval", _eval, first_line(_eval), network_of, load_data)


def _eval(leaf: Namespace, config: Mapping[str, Any]) -> int:
    """Measure a network on the test data."""
    data = call(load_data, leaf)
    net = network(weighted(leaf.network, "network"), data)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    metrics = evaluate(net.to(device), data.to(device).test)
    show_networks(f"{data.name}, {len(data.test.ids):,} test images", {leaf.network: (net.cpu(), metrics)}, data)
    return 0
