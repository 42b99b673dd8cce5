"""The progress bar: one line of a terminal's width, epochs as tables count them, and one output of a notebook's cell."""

import io
import re
import sys
import types

import pytest
import torch
from rich.console import Console
from torch import nn

import limbeck
from limbeck.engine.progress import LossBar, bars

pytestmark = pytest.mark.filterwarnings("ignore::limbeck.ChanceWarning")  # it learns from noise
CLASSES, EPOCHS, BATCHES = 3, 4, 12


class Screen(io.StringIO):
    """What a terminal was sent."""

    def frames(self) -> list[str]:
        """Each state of its last lines, without colours and movements."""
        drawn = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frame) for frame in re.split(r"\r", self.getvalue())]
        return [frame.strip("\n") for frame in drawn if frame.strip()]


def console(width: int) -> Console:
    return Console(file=Screen(), force_terminal=True, width=width)


class EveryFrame(LossBar):
    """Draws each state, and not as many as there is time for."""

    def _draw(self, *place) -> None:
        super()._draw(*place)
        self.line.refresh()


def train(screen: Console, monkeypatch: pytest.MonkeyPatch, method=None, **options) -> None:
    monkeypatch.setattr("limbeck.engine.fit.bars", lambda progress: [EveryFrame(screen)])
    torch.manual_seed(0)
    data = [(torch.randn(8, 4), torch.arange(8) % CLASSES) for _ in range(BATCHES)]
    settings = {"epochs": EPOCHS, "optimizer": lambda p: torch.optim.SGD(p, 0.1), "accelerator": "cpu", **options}
    limbeck.fit(method or limbeck.plain(nn.Linear(4, CLASSES)), (data, data), **settings)


@pytest.mark.parametrize("width", [40, 80, 110])
def test_it_is_one_line_whatever_the_width(width, monkeypatch):
    screen = console(width)
    train(screen, monkeypatch)
    frames = screen.file.frames()
    assert len(frames) > EPOCHS
    assert all("\n" not in frame and len(frame) <= width for frame in frames), max(frames, key=len)


@pytest.mark.parametrize("width", [80, 110])
def test_epochs_count_from_one_with_the_loss_and_the_score_of_the_last(width, monkeypatch):
    screen = console(width)
    train(screen, monkeypatch)
    shown = "\n".join(screen.file.frames())
    assert list(dict.fromkeys(re.findall(r"epoch (\d+)/4", shown))) == [str(epoch + 1) for epoch in range(EPOCHS)]
    assert re.search(r"epoch 4/4 .* 47/48 .* loss \d\.\d+, accuracy \d+\.\d\d %", shown)
    assert "epoch 1/4, validating" in shown
    first = shown.partition("epoch 2/4")[0]
    assert "loss" in first
    assert "accuracy" not in first  # nothing was measured yet


def test_a_stage_has_its_name_and_scores_of_its_own(monkeypatch):
    """Of the generation before, which is another network, nothing is shown."""
    screen = console(110)
    train(screen, monkeypatch, limbeck.ban(nn.Linear(4, 3), nn.Linear(4, 3), generations=2))
    shown = screen.file.frames()
    second = [frame for frame in shown if "generation-2" in frame]
    assert second
    assert "measuring the teacher" in second[0]
    assert not any("accuracy" in frame for frame in second if "epoch 1/2" in frame)
    assert "accuracy" in second[-1]
    assert "epoch 2/2" in second[-1]


def test_nothing_is_drawn_where_nobody_looks_on_or_by_other_processes(monkeypatch):
    assert bars(None) == []
    assert bars(False) == []
    assert len(bars(True)) == 1
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert len(bars(None)) == 1
    screen = console(80)
    monkeypatch.setattr(
        "lightning.pytorch.callbacks.ProgressBar.setup", lambda bar, *_, **__: bar.disable()
    )  # not the first
    train(screen, monkeypatch, epochs=1)
    assert screen.file.getvalue() == ""


class Cell:
    """What IPython gives back for an output that may be drawn anew."""

    def __init__(self) -> None:
        self.outputs: list[object] = []
        self.redrawn: list[str] = []

    def display(self, shown: object, display_id: bool) -> "Cell":
        assert display_id
        self.outputs.append(shown)
        return self

    def update(self, shown: object) -> None:
        told = Console(width=115, file=io.StringIO())
        told.print(shown)
        self.redrawn.append(told.file.getvalue())


def test_a_notebooks_cell_has_one_output_that_is_drawn_anew(monkeypatch):
    cell, page = Cell(), types.ModuleType("IPython.display")
    page.display = cell.display
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    screen = Console(file=Screen(), force_jupyter=True)
    train(screen, monkeypatch)
    assert len(cell.outputs) == 1
    assert "epoch 4/4" in cell.redrawn[-1]
    assert re.search(r"48/48 .* accuracy \d+\.\d\d %", cell.redrawn[-1])
    assert len(cell.redrawn) < EPOCHS * BATCHES / 2  # not one a batch
