"""What a notebook and `print` show of a result: a sentence or two and a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LINE = "border-bottom:1px solid rgba(127,127,127,.4);padding:.25em .8em .25em 0"


@dataclass(frozen=True)
class Told:
    """What is told of a result.

    Args:
        title: What it is of.
        sentences: What it says, the most important first.
        header: Names of the table's columns; no table without.
        rows: Their cells.
        foot: Where more is to be seen.
    """

    title: str
    sentences: Sequence[str]
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    foot: str = ""

    def html(self) -> str:
        """Return a compact piece of HTML in the notebook's own colours, without a script; every text is escaped."""
        said = "".join(f'<p style="margin:.3em 0;max-width:50em">{escape(one)}</p>' for one in self.sentences)
        parts = [f'<p style="margin:.3em 0"><b>{escape(self.title)}</b></p>', said]
        if self.header:
            parts.append(f'<div style="overflow-x:auto">{_table(self.header, self.rows)}</div>')
        if self.foot:
            parts.append(f'<p style="margin:.3em 0;opacity:.75">{escape(self.foot)}</p>')
        return f"<div>{''.join(parts)}</div>"

    def text(self) -> str:
        """Return it as Markdown."""
        table = markdown(self.header, self.rows) if self.header else ""
        return "\n\n".join(part for part in (self.title, *self.sentences, table.rstrip(), self.foot) if part)


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, whose first two columns are words."""
    lines = [header, ("---", "---", *["---:"] * (len(header) - 2)), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col" style="{LINE};text-align:left">{escape(name)}</th>' for name in header)
    body = "".join(
        f'<tr><th scope="row" style="{LINE};text-align:left">{escape(first)}</th>'
        + "".join(f'<td style="{LINE};text-align:left">{escape(cell)}</td>' for cell in cells)
        + "</tr>"
        for first, *cells in rows
    )
    return (
        '<table style="border-collapse:collapse;font-variant-numeric:tabular-nums">'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )
