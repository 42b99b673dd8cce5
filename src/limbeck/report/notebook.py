"""What a notebook shows of a result: a sentence or two and a table, in the notebook's own colours, without a script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

LINE = "border-bottom:1px solid rgba(127,127,127,.4);padding:.25em .8em .25em 0"


def as_html(
    title: str, sentences: Sequence[str], header: Sequence[str] = (), rows: Sequence[Sequence[str]] = (), foot: str = ""
) -> str:
    """Return a compact piece of HTML; every text is escaped.

    Args:
        title: What it is of.
        sentences: What it says, the most important first.
        header: Names of the table's columns; no table without.
        rows: Their cells.
        foot: Where more is to be seen.
    """
    said = "".join(f'<p style="margin:.3em 0;max-width:50em">{escape(sentence)}</p>' for sentence in sentences)
    parts = [f'<p style="margin:.3em 0"><b>{escape(title)}</b></p>', said]
    if header:
        parts.append(f'<div style="overflow-x:auto">{_table(header, rows)}</div>')
    if foot:
        parts.append(f'<p style="margin:.3em 0;opacity:.75">{escape(foot)}</p>')
    return f"<div>{''.join(parts)}</div>"


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
