"""Ctrl-C while the program is still being imported, which takes seconds: it ends at once and quietly. Imported first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import FrameType


def listen() -> None:
    """Let Ctrl-C from now on be the KeyboardInterrupt that the program waits for."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)  # an exception would be lost in what is half imported, and another one found there


_PROGRAM = "limbeck.cli" in sys.orig_argv or Path(*sys.argv[:1]).stem == "limbeck"
if (  # the program itself, and neither a library nor a child, nor one that was told not to listen
    _PROGRAM
    and multiprocessing.parent_process() is None
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, _end)
