"""What a comparison shows, in one sentence for all its rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from limbeck.measure import Judgement
from limbeck.measure.evidence import Verdict
from limbeck.report.table import Candidate, amount, judgements, unsigned

ORDER: tuple[Verdict, ...] = ("helps", "no difference", "hurts", "cannot tell")
NAMED = 8
"""How many networks of one verdict are named; of more the first ones, and how many others there are."""
UNDECIDED = 5
"""How many networks that were not told are named."""


class _Row(NamedTuple):
    candidate: Candidate
    judgement: Judgement

    @property
    def gain(self) -> float:
        """By how much it is better than its baseline."""
        return self.candidate.score.gain(self.judgement.pair.difference, 0.0)

    @property
    def is_control(self) -> bool:
        return self.candidate.role == "control"

    @property
    def kind(self) -> tuple[int, str, bool]:
        """Which rows are told together, in their order: those of one verdict against one baseline."""
        verdict = self.judgement.verdict
        if verdict == "cannot tell":
            return ORDER.index(verdict), "", False
        return ORDER.index(verdict), self.candidate.against, verdict != "no difference" and self.judgement.is_small


def verdict_of_all(candidates: Sequence[Candidate]) -> str:
    """Say whether it helped, of all rows: the best first, controls named as such; empty where nothing is compared.

    Args:
        candidates: Of one comparison.
    """
    judged = zip(candidates, judgements(candidates), strict=True)
    rows = [_Row(candidate, judgement) for candidate, judgement in judged if judgement is not None]
    if not rows:
        return ""
    rows.sort(key=lambda row: (row.is_control, -row.gain))
    clauses = list(_clauses(rows))
    if all(row.judgement.verdict == "cannot tell" for row in rows):
        return f"Nothing is shown: {clauses[0]}."
    return f"{'; '.join(clauses)}."


def _clauses(rows: Sequence[_Row]) -> Iterator[str]:
    """Yield what is told of the rows of each kind; a baseline is named where it is another than before."""
    before: str | None = None
    for kind in sorted({row.kind for row in rows}):
        same = [row for row in rows if row.kind == kind]
        verdict, against = ORDER[kind[0]], kind[1]
        if verdict == "cannot tell":
            yield _undecided(same, others=len(same) < len(rows))
            continue
        whom = "" if against == before else f" {quoted(against) if against else 'the plain student'}"
        before = against
        yield _told(same, verdict, whom)


def _told(rows: Sequence[_Row], verdict: Verdict, whom: str) -> str:
    names, score, smallest = _names(rows, NAMED), rows[0].candidate.score, rows[0].judgement.smallest or 0.0
    one, limit = len(rows) == 1, unsigned(amount(score, smallest))
    if verdict == "no difference":
        return f"{names} {'makes' if one else 'make'} no difference{whom and f' to{whom}'} that is larger than {limit}"
    does = verdict if one else verdict.removesuffix("s")
    though = f", though by less than {limit}" if rows[0].judgement.is_small else ""
    return f"{names} {does}{though}: {_amounts(rows)}{whom and f' against{whom}'}"


def _amounts(rows: Sequence[_Row]) -> str:
    """Return their differences: each of two, the best and the least of more."""
    score, pairs = rows[0].candidate.score, [row.judgement.pair.difference for row in rows]
    if len(rows) == 1:
        return amount(score, pairs[0])
    if len(rows) == 2:
        return f"{score.difference(pairs[0])} and {amount(score, pairs[1])}"
    best, least = (choose(rows, key=lambda row: row.gain).judgement.pair.difference for choose in (max, min))
    return f"{score.difference(best)} to {amount(score, least)}"


def _undecided(rows: Sequence[_Row], *, others: bool) -> str:
    counts = sorted({row.judgement.pair.n for row in rows})
    seeds = f"{counts[0]} to {counts[-1]} seeds cannot" if len(counts) > 1 else f"{counts[0]} seeds cannot"
    if counts == [1]:
        seeds = "a single seed cannot"
    if len(rows) > UNDECIDED:
        whom = f"the {len(rows)} others help" if others else f"any of the {len(rows)} helps"
        return f"{seeds} tell whether {whom}"
    return f"{seeds} tell whether {_names(rows, UNDECIDED)} {'helps' if len(rows) == 1 else 'help'}"


def _names(rows: Sequence[_Row], most: int) -> str:
    """List networks by their names, the controls after the others."""
    shown = rows if len(rows) <= most else rows[: most - 1]
    controls = [quoted(row.candidate.name) for row in shown if row.is_control]
    named = [quoted(row.candidate.name) for row in shown if not row.is_control]
    if controls:
        named.append(f"the {'control' if len(controls) == 1 else 'controls'} {_listed(controls)}")
    if left := len(rows) - len(shown):
        named.append(f"{left} others")
    return _listed(named)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def quoted(name: str) -> str:
    """Return a name as a sentence can hold it: one of several words in quotation marks."""
    return f"“{name}”" if any(mark in name for mark in ", ;") else name
