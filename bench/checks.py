"""Which silent faults `limbeck check` names, and what it says of sound set-ups: the tables in docs/check.md.

python bench/checks.py [--write]
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "check.md"
sys.path.insert(0, str(ROOT / "tests"))

import faults  # noqa: E402
import limbeck  # noqa: E402
import sound  # noqa: E402


def main() -> None:
    """Check every set-up, and print both tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put them into docs/check.md")
    write = parser.parse_args().write
    warnings.simplefilter("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    tables = {"faults": table(of_faults()), "sound": table(of_sound())}
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables.items():
        print(f"\n{text}")
        page = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", lambda m, t=text: f"{m[1]}\n{t}\n\n{m[2]}", page, flags=re.S
        )
    if write:
        PAGE.write_text(page, encoding="utf-8")


def of_faults() -> Iterator[tuple[str, ...]]:
    """Yield a row for each fault: what it is, who reported it, and the finding that names it."""
    yield "", "fault", "reported in", "named", "by the finding"
    for number, fault in enumerate(faults.FAULTS, 1):
        checkup = limbeck.check(*sound.made(fault.build))
        named = [
            one
            for one in checkup.findings
            if one.status != "ok" and one.name == fault.title and fault.words in one.message
        ]
        by = f"{named[0].name}, {named[0].status}" if named else "–"
        yield str(number), fault.what, fault.link, "yes" if named else "no", by


def of_sound() -> Iterator[tuple[str, ...]]:
    """Yield a row for each sound set-up: its name, what was found, and how long it took."""
    yield "", "set-up", "found", "seconds"
    for number, build in enumerate(sound.SOUND, 1):
        method, data = sound.made(build)
        begin = time.perf_counter()
        found = [one.name for one in limbeck.check(method, data).findings if one.status != "ok"]
        seconds = time.perf_counter() - begin
        yield str(number), build.__name__.replace("_", " "), ", ".join(found) or "nothing", f"{seconds:.1f}"


def table(rows: Iterable[tuple[str, ...]]) -> str:
    """Return rows as a table in Markdown, the first its heading."""
    heading, *rest = rows
    lines = [heading, ("---",) * len(heading), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
