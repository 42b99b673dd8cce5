"""Optuna's journal, in which a line that was changed, lost or put in is found."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend

from limbeck.core.files import SEAL, Damaged, write

REMEDY = "remove it: the search begins again and reads the trials that are trained"


class Journal(JournalFileBackend):
    """A journal in a file, each line of which ends in a checksum of itself and all lines before.

    Optuna and its dashboard read it as any other. A last line that is not whole is that of a process that was killed while
    it wrote: it is taken out. One process at a time may have it open. Lines without a checksum are an older limbeck's,
    and come before all others.

    Args:
        path: The file; it is made.

    Raises:
        Damaged: A line is not what was written; the message names it.
    """

    def __init__(self, path: Path) -> None:
        path.with_name(path.name + ".lock").unlink(missing_ok=True)  # the lock of Optuna outlives its process
        if path.exists() and not (content := path.read_bytes()).endswith(b"\n"):
            write(path, content[: content.rfind(b"\n") + 1])
        super().__init__(str(path))
        self._so_far = _checked(path)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write lines, sealed."""
        so_far, sealed = self._so_far.copy(), []
        for log in logs:
            so_far.update(_text(log))
            sealed.append({**log, SEAL: so_far.hexdigest()})
        super().append_logs(sealed)
        self._so_far = so_far


def _checked(path: Path) -> hashlib._Hash:
    """Return the checksum of all lines so far, each of which is compared with its own."""
    so_far, is_sealed = hashlib.sha256(), False
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            log = json.loads(line)
            seal = log.pop(SEAL, None)
        except (ValueError, AttributeError, TypeError) as error:
            raise Damaged(f"line {number} of {path} is damaged: expected a JSON object; {REMEDY}") from error
        so_far.update(_text(log))
        is_sealed = is_sealed or seal is not None
        if is_sealed and seal != so_far.hexdigest():
            raise Damaged(
                f"line {number} of {path} is damaged: it, or one before it, is not what its checksum says; {REMEDY}"
            )
    return so_far


def _text(log: dict[str, Any]) -> bytes:
    return json.dumps(log, separators=(",", ":")).encode()
