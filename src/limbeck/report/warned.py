"""What was warned of while something was trained, in its folder and on its page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from limbeck.core.files import Damaged, keep, read
from limbeck.core.heard import Warned, heard_before, hearing
from limbeck.report.page import Section

FILE = "warnings.json"
"""Its name in the folder of a run or a comparison."""
OF_PROGRAMMERS = (
    "DeprecationWarning",
    "PendingDeprecationWarning",
    "FutureWarning",
    "ImportWarning",
    "ResourceWarning",
)
"""Kinds that say nothing of a training."""
REMEDY = "remove it, and the page goes without"


@contextmanager
def keeping_warnings(folder: Path) -> Iterator[None]:
    """Keep in a folder what is warned of while the block runs, as it comes, after what was heard before."""
    write_warned(heard_before(), folder)
    with hearing(lambda one: write_warned([one], folder)):
        yield


def write_warned(warned: Iterable[Warned], folder: Path) -> None:
    """Keep what was warned of, each once, after what is kept already."""
    before = read_warned(folder)
    there = list(dict.fromkeys([*before, *(one for one in warned if one.kind not in OF_PROGRAMMERS)]))
    if there != before:
        keep(folder / FILE, {"warnings": [asdict(one) for one in there]})


def read_warned(folder: Path) -> list[Warned]:
    """Read what was warned of; nothing where nothing was.

    Raises:
        Damaged: The file is not what was written.
    """
    path = folder / FILE
    if not path.exists():
        return []
    try:
        return [Warned(**one) for one in read(path, REMEDY)["warnings"]]
    except (KeyError, TypeError) as error:
        raise Damaged(f"{path} holds no warnings of limbeck's ({type(error).__name__}: {error}); {REMEDY}") from error


def warned_section(warned: Mapping[str, str]) -> Section | None:
    """Return the section that says what was warned of; None where nothing was.

    Args:
        warned: Where each came from, by its message; empty where there is nothing to tell apart.
    """
    if not warned:
        return None
    said = [f"{as_sentence(message)}{place and f' ({place})'}" for message, place in warned.items()]
    return Section("What was warned of", said)


def as_sentence(message: str) -> str:
    """Return a warning as a sentence: "The teacher is no better than chance."."""
    return f"{message[:1].upper()}{message[1:]}{'' if message.endswith(('.', '!', '?')) else '.'}"
