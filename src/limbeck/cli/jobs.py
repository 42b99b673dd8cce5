"""One command in several processes at once, which share its work among themselves."""

from __future__ import annotations

import _thread
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile
from typing import IO, Any

import torch

from limbeck.cli.terminal import STOPPED, complain
from limbeck.engine.interrupt import interruptible

Process = subprocess.Popen[bytes]

LOOK_EVERY = 0.1
"""Seconds between two looks at the processes."""
GRACE = 20.0
"""Seconds that a process has for its checkpoint once nobody waits for it any more; ours."""
WORKER = "import sys; from limbeck.cli.jobs import work; sys.exit(work(sys.argv[1:]))"
"""What a process runs: a file of its own would be left behind where all of them are killed."""


def share_out(command: str, own: Mapping[str, Any], jobs: int, devices: int) -> int:
    """Let several processes make the work of one command, each by the same words and in the same folder.

    Args:
        command: Its name.
        own: What was said of it, as ``--config`` takes it, with a folder.
        jobs: How many processes.
        devices: How many each would train on.

    Returns:
        The exit code.

    Raises:
        ValueError: Fewer than one process, or several devices each.
    """
    if jobs < 1 or devices > 1:
        raise ValueError(f"expected at least 1 job, each with one device, got jobs={jobs}, devices={devices}")
    own = {**own, "jobs": 1}
    return side_by_side(
        {command: own, "subcommand": command},
        {command: own | {"progress": False}, "subcommand": command},
        jobs,
    )


def side_by_side(first: Mapping[str, Any], others: Mapping[str, Any], jobs: int) -> int:
    """Run a command in several processes, of which the first tells the user how it goes and what comes out.

    GPUs are dealt out in turn, and the cores shared out equally. Ctrl-C reaches each of them, once. Where one fails, the
    others stop as if by Ctrl-C; and so do all where this process ends, however it ends.

    Args:
        first: The command, as ``--config`` takes it.
        others: The same for those who do not tell.
        jobs: How many, with the first.

    Returns:
        The exit code.
    """
    with ExitStack() as open_files, interruptible() as wants_stop:
        words = [open_files.enter_context(TemporaryFile()) for _ in range(jobs)]
        processes = [_start(first, None, _environment(0, jobs))]
        for index in range(1, jobs):
            processes.append(_start(others, words[index], _environment(index, jobs)))
        failed = _wait(processes, wants_stop)
        if failed is None:
            return processes[0].returncode
        words[failed].seek(0)
        said = words[failed].read().decode("utf-8", errors="replace")
        complain(f"process {failed + 1} of {jobs} {_end(processes[failed].returncode)}\n{said}".strip())
        return 2


def work(command: Sequence[str]) -> int:
    """Run a command as one of several processes, which ends with the one that started it; return the exit code.

    Its standard input is a pipe that the other one holds, and so is at its end when that one is, on every system.

    Args:
        command: The words of the command line.
    """
    from limbeck.cli import main

    threading.Thread(target=_end_with_parent, daemon=True).start()
    return main(command)


def _end_with_parent() -> None:
    """Stop as if by Ctrl-C once the starting process is no more, and at all costs a while after that."""
    while os.read(0, 1):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    _thread.interrupt_main()
    time.sleep(GRACE)
    os._exit(STOPPED)


def _start(command: Mapping[str, Any], words: IO[bytes] | None, environment: Mapping[str, str]) -> Process:
    """Start a process; one whose words go to a file says nothing to the user."""
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, "--config", json.dumps(dict(command)), command["subcommand"]],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=None if words is None else subprocess.DEVNULL,
        stderr=words,
        start_new_session=True,  # a terminal's Ctrl-C comes to this process alone, which passes it on
    )


def _environment(index: int, jobs: int) -> dict[str, str]:
    """Give a process its share of the cores, unless the user has said how many threads, and a GPU if there are any."""
    there = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(torch.cuda.device_count()))))
    gpus = [gpu for gpu in there.split(",") if gpu]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]} if gpus else {}
    return {"OMP_NUM_THREADS": str(max(1, cores // jobs)), **os.environ, **own}


def _wait(processes: Sequence[Process], wants_stop: Callable[[], bool]) -> int | None:
    """Wait for all; pass on Ctrl-C; return which one failed first, if any did."""
    failed: list[int] = []
    told = False
    try:
        while any(process.poll() is None for process in processes):
            failed = failed or _failed(processes)
            if not told and (failed or wants_stop()):
                _tell(processes)
                told = True
            time.sleep(LOOK_EVERY)
    except KeyboardInterrupt:  # the second one: they stop at once
        _tell(processes)
        for process in processes:
            process.wait()
        raise
    return next(iter(failed or _failed(processes)), None)


def _tell(processes: Sequence[Process]) -> None:
    """Ask all to stop."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)


def _failed(processes: Sequence[Process]) -> list[int]:
    fine = (None, 0, STOPPED, -signal.SIGINT)
    return [index for index, process in enumerate(processes) if process.poll() not in fine]


def _end(code: int) -> str:
    return f"ended with exit code {code}" if code > 0 else f"was killed by {signal.Signals(-code).name}"
