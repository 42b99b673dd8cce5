"""What a checkup found, as tables of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.core.digits import digits
from limbeck.report.notebook import Told
from limbeck.verbs.check.findings import Checkup, Status

if TYPE_CHECKING:
    from rich.console import Group

COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


def checkup_told(checkup: Checkup) -> Told:
    """Return what is told of a checkup: what is wrong first, then all findings."""
    counts = {status: sum(one.status == status for one in checkup.findings) for status in COLOURS}
    found = ", ".join(f"{count} {_counted(status, count)}" for status, count in counts.items() if count)
    verdict = "Nothing is wrong" if checkup.ok else "Something is wrong"
    rank = list(reversed(COLOURS))
    listed = sorted(checkup.findings, key=lambda one: rank.index(one.status))
    cells = [(one.name, one.status, one.message) for one in listed]
    return Told("Checkup", [f"{verdict}: {found}." if found else f"{verdict}."], ("check", "", "finding"), cells)


def _counted(status: Status, count: int) -> str:
    return status if status != "warning" or count == 1 else "warnings"


def console_table(checkup: Checkup) -> Group:
    """Return the findings, and what each term weighs, for `rich.print`."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    findings = Table("", "check", "finding", box=box.SIMPLE_HEAD)
    for finding in checkup.findings:
        status = Text(finding.status, COLOURS[finding.status])
        findings.add_row(status, Text(finding.name), Text(finding.message))  # Text: [brackets] are no markup
    if not checkup.terms:
        return Group(findings)
    asked = any(term.suggested is not None for term in checkup.terms)
    terms, names = Table(box=box.SIMPLE_HEAD), [f"{term.player}/{term.name}" for term in checkup.terms]
    terms.add_column("term", overflow="fold")
    for heading in ("value", "weight", "gradient", "share", *(["weight for\nthat share"] if asked else [])):
        terms.add_column(heading, justify="right")
    for name, term in zip(names, checkup.terms, strict=True):
        cells = [digits(number) for number in (term.value, term.weight, term.gradient)]
        last = ["–" if term.suggested is None else digits(term.suggested)] if asked else []
        terms.add_row(Text(name), *cells, f"{term.share:.1%}", *last)
    return Group(findings, terms)
