"""Optuna's journal, which several processes may write, and in which a line that was changed, lost or put in is found."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from limbeck.core.files import SEAL, Damaged, hold

REMEDY = "remove it: the search begins again and reads the trials that are trained"


class Journal(JournalFileBackend):
    """A journal in a file, each line of which ends in a checksum of itself and all lines before.

    Optuna and its dashboard read it as any other. Who writes holds a lock beside it, which the operating system takes back
    when the process ends, however it ends; Optuna's own outlives it. A last line that is not whole is of a process that was
    killed while it wrote: the next that writes takes it out. Lines without a checksum are of an older limbeck, and come
    before all others.

    Args:
        path: The file; it is made.

    Raises:
        Damaged: A line is not what was written; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, _Lines(path)
        with self._alone():
            super().__init__(str(path))

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, sealed, after those that others have written meanwhile.

        Raises:
            Damaged: One of these is not what was written.
        """
        with self._alone(), self._path.open("ab") as file:
            file.write(self._lines.sealed(logs))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep others from writing; all that is there is then whole, and known."""
        with hold(self._path.with_name(f".{self._path.name}.lock"), wait=True):
            self._lines.catch_up()
            yield


class _Lines:
    """The lines of a journal that this process knows, its own and others'.

    Args:
        path: The journal.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._so_far = path, hashlib.sha256()
        self._bytes, self._count, self._are_sealed = 0, 0, False

    def catch_up(self) -> None:
        """Read the lines that are new, compare each with its checksum, and take out one that is not whole.

        Raises:
            Damaged: One is not what its checksum says, or the journal is shorter than it was.
        """
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._bytes:
            raise Damaged(f"{self.path} is shorter than it was: somebody removed or cut it while this process searches")
        if size == self._bytes:
            return
        with self.path.open("rb") as file:
            file.seek(self._bytes)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        if len(whole) < len(new):
            os.truncate(self.path, self._bytes + len(whole))
        for line in whole.splitlines():
            self._read(line)
        self._bytes += len(whole)

    def sealed(self, logs: list[dict[str, Any]]) -> bytes:
        """Return logs as the next lines; these count once they are read."""
        so_far, lines = self._so_far.copy(), []
        for log in logs:
            so_far.update(_text(log))
            lines.append(json.dumps({**log, SEAL: so_far.hexdigest()}, separators=(",", ":")).encode() + b"\n")
        return b"".join(lines)

    def _read(self, line: bytes) -> None:
        self._count += 1
        try:
            log = json.loads(line)
            seal = log.pop(SEAL, None)
        except (ValueError, AttributeError, TypeError) as error:
            raise Damaged(f"line {self._count} of {self.path} is damaged: expected a JSON object; {REMEDY}") from error
        self._so_far.update(_text(log))
        self._are_sealed = self._are_sealed or seal is not None
        if self._are_sealed and seal != self._so_far.hexdigest():
            raise Damaged(
                f"line {self._count} of {self.path} is damaged: it, or one before it, is not what its checksum says; "
                f"{REMEDY}"
            )


def _text(log: dict[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()
