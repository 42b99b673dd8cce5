"""What the worlds share: three steps by limbeck, compared with a loop written by hand, and a training end to end."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import limbeck
from limbeck.core.method import Make


class Loader:
    """Batches that are there."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Any:
        return iter(self.batches)


def play(method: limbeck.Method, batches: Iterable[Any], make: Make) -> list[dict[str, float]]:
    """Play some batches, from the same random numbers each time."""
    torch.manual_seed(7)
    method.train()
    optimizers = limbeck.optimizers(method, make)
    return [limbeck.play(method, batch, optimizers) for batch in batches]


def difference(*pairs: tuple[nn.Module, nn.Module]) -> float:
    """The largest difference of weights and buffers."""
    both = [(value, other.state_dict()[name]) for one, other in pairs for name, value in one.state_dict().items()]
    return max(float((a.double() - b.double()).abs().max()) for a, b in both if a.numel())


def moved(net: nn.Module, before: dict[str, Tensor]) -> float:
    """How far a network's weights went."""
    return max(float((value.double() - before[name].double()).abs().max()) for name, value in net.state_dict().items())


def kept(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def trained(method: limbeck.Method, data: Any, folder: Path, *sections: str, optimizer: Make) -> dict[str, float]:
    """Train an epoch, with all that it writes, and the sections that its page has; return its metrics."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the task .* cannot show its examples")
        warnings.filterwarnings("ignore", category=limbeck.ChanceWarning)
        result = limbeck.fit(
            method, data, epochs=1, optimizer=optimizer, run_dir=folder, progress=False, accelerator="cpu"
        )
    score = method.task.score.name
    assert result.finished
    assert torch.isfinite(torch.tensor(list(result.metrics.values()))).all()
    said = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    shipped = next(iter(said["networks"]))
    assert said["networks"][shipped]["test"][score] == result.metrics[f"test/{shipped}/{score}"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert score in page
    assert not [title for title in sections if f">{title}<" not in page]
    beside = [name for name in said["networks"][shipped]["test"] if "accuracy" in name]  # other metrics have a column
    assert "accuracy" not in page or score == "accuracy" or beside
    return result.metrics


def checked(method: limbeck.Method, data: Any) -> limbeck.Checkup:
    """Check a set-up in which nothing is wrong."""
    before = kept(method)
    checkup = limbeck.check(method, data)
    assert checkup.ok, [finding for finding in checkup.findings if finding.status == "failed"]
    assert checkup.terms
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    return checkup
