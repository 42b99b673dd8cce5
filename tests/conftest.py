from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.queues import Queue
from pathlib import Path
from queue import Empty
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tiny tensors gain nothing from threads
os.environ["LIMBECK_DECODED"] = "off"  # the user's folder is no place of tests, nor of processes that they start

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", metavar="DIR", help="run tests/parity on this folder of vectors instead of our own")


LONG = (
    "contract.py",
    "test_faults.py",
    "test_docs.py",
    "test_side_by_side.py",
    "test_devices.py",
    "test_export.py",
    "test_compare.py",
    "test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, since two processes take files in this order and the last should end together."""
    items.sort(key=lambda item: item.path.name not in LONG)


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
    context.set_forkserver_preload(["limbeck.cli", "limbeck.verbs.distill", "limbeck.verbs.compare"])
    return context


@pytest.fixture(scope="session")
def together(processes: ForkServerContext) -> Callable[[Callable[[int, int, Queue], None], int], list[Any]]:
    """Runs ``work(rank, port, results)`` as two processes and returns so many results, or fails as soon as one does."""

    def run(work: Callable[[int, int, Queue], None], count: int) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results, told = processes.Queue(), []
        ranks = [processes.Process(target=work, args=(rank, port, results), daemon=True) for rank in range(2)]
        for rank in ranks:
            rank.start()
        try:
            while len(told) < count:
                broken = [rank.exitcode for rank in ranks if rank.exitcode]
                try:
                    told.append(results.get(timeout=1))
                except Empty:
                    assert not broken, f"one of two processes ended with {broken[0]}: its error stands above"
        finally:
            for rank in ranks:
                rank.kill()  # Lightning would not let go at a word
            for rank in ranks:
                rank.join(10)
        return told

    return run
