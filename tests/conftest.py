from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors gain nothing from threads

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="run tests/parity on this folder of vectors instead of our own")


def undrawn(folder: Path) -> None:
    (folder / "report.html").touch()


@pytest.fixture(scope="session", autouse=True)
def unreported() -> Iterator[None]:
    """Runs have an empty page, since to draw one takes ten times as long as their training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("limbeck.engine.fit.run_report", undrawn)
        yield


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs do draw them."""
    from limbeck.report.run import run_report

    monkeypatch.setattr("limbeck.engine.fit.run_report", run_report)


@pytest.fixture(scope="session")
def processes() -> ForkServerContext:
    """Starts processes, of one that has imported already what takes seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["limbeck.cli"])
    return context
