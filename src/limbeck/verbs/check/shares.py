"""The weights that give terms the shares of the gradient that are asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from limbeck.verbs.check.findings import TermCheck


def suggested(terms: Sequence[TermCheck], shares: Mapping[str, float]) -> list[TermCheck]:
    """Return the terms, those of the first player with the weights that give each its share of the gradient's norm.

    Raises:
        ValueError: A term that is not there or has no gradient, or shares that do not add up.
    """
    own = [term for term in terms if term.player == terms[0].player]
    asked: dict[str, str] = {}
    for key, share in shares.items():
        members = [term.name for term in own if term.name == key or term.name.startswith(f"{key}.")]
        if not 0 < share < 1:
            raise ValueError(f"the share of {key!r} must lie in (0, 1), got {share}")
        if not sum(term.gradient for term in own if term.name in members) > 0:
            raise ValueError(f"no term {key!r} with a gradient: there are {[term.name for term in own]}")
        asked |= dict.fromkeys(members, key)
    total = sum(shares.values())
    rest = sum(term.gradient for term in own if term.name not in asked)
    if (rest and total >= 1) or (not rest and not math.isclose(total, 1)):
        raise ValueError(f"shares must add up to {'less than 1' if rest else '1'}, got {total:g}")
    # the others keep their weights, and so their norms; of all terms the sum of the norms stays
    whole = rest / (1 - total) if rest else sum(term.gradient for term in own)
    factors = {
        key: share * whole / sum(term.gradient for term in own if asked.get(term.name) == key)
        for key, share in shares.items()
    }
    return [
        replace(term, suggested=term.weight * factors.get(asked.get(term.name, ""), 1.0)) if term in own else term
        for term in terms
    ]
