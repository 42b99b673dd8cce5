"""What a checkup finds."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass

from torch.utils import _pytree as pytree

from limbeck.core.finding import Finding as Finding
from limbeck.core.finding import Status as Status


@dataclass(frozen=True)
class TermCheck:
    """What one term of one player does on one batch, half-way through the schedules of the weights.

    Args:
        player: Who learns from it.
        name: The term.
        value: Unweighted.
        weight: Its weight.
        gradient: Norm of the weighted term's gradient on the player's parameters.
        share: Of the sum of the norms of all the player's terms.
        cosines: Of its gradient and each other term's of the player.
        reaches: Whether it depends on the player's parameters at all.
        suggested: The weight that gives it the share asked for.
    """

    player: str
    name: str
    value: float
    weight: float
    gradient: float
    share: float
    cosines: dict[str, float]
    reaches: bool = True
    suggested: float | None = None


@dataclass(frozen=True)
class Checkup:
    """What `check` found.

    Args:
        findings: One for each check, in the order they were made.
        terms: One for each term of each player; none where a batch could not be played.
    """

    findings: tuple[Finding, ...]
    terms: tuple[TermCheck, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether no check failed; warnings may be left."""
        return not failed(self.findings)

    def __str__(self) -> str:
        """Return what `print` shows: what is wrong first, then all findings."""
        from limbeck.verbs.check.table import checkup_told

        return checkup_told(self).text()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: likewise."""
        from limbeck.verbs.check.table import checkup_told

        return checkup_told(self).html()

    def json(self) -> str:
        """Return everything as JSON; numbers that are not finite are null."""
        everything = {"ok": self.ok, **asdict(self)}
        finite = pytree.tree_map(
            lambda leaf: None if isinstance(leaf, float) and not math.isfinite(leaf) else leaf, everything
        )
        return json.dumps(finite, indent=2, ensure_ascii=False)


def failed(findings: Iterable[Finding]) -> list[Finding]:
    """Return the mistakes among findings."""
    return [finding for finding in findings if finding.status == "failed"]
