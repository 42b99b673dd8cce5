"""What a checkup found, as tables of a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.verbs.check.findings import Checkup, Status

if TYPE_CHECKING:
    from rich.console import Group

COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "failed": "bold red"}


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
    terms = Table("term", box=box.SIMPLE_HEAD)
    for heading in ("value", "weight", "gradient", "share", *(["weight for that share"] if asked else [])):
        terms.add_column(heading, justify="right")
    for term in checkup.terms:
        cells = [f"{number:.3g}" for number in (term.value, term.weight, term.gradient)]
        last = ["–" if term.suggested is None else f"{term.suggested:.3g}"] if asked else []
        terms.add_row(Text(f"{term.player}/{term.name}"), *cells, f"{term.share:.1%}", *last)
    return Group(findings, terms)
