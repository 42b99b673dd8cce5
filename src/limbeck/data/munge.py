"""Rows without labels, made up of those that there are: for a teacher to answer.

Buciluă, Caruana, Niculescu-Mizil, "Model Compression", KDD 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

Pairs = tuple[Tensor, Tensor]


def munge(
    rows: Tensor,
    generator: torch.Generator,
    *,
    passes: int = 1,
    swap: float = 0.5,
    variance: float = 5.0,
    follow: bool = False,
    categorical: Collection[int] = (),
) -> Tensor:
    """Make rows that lie where the given ones lie: MUNGE.

    Each pass goes through a fresh copy of the rows. Row e meets its nearest neighbour e', and for each attribute, with
    probability ``swap``, both change: categories are swapped; of numbers, e takes one of N(e', σ) and e' one of
    N(e, σ), with σ = |e − e'| / ``variance``, all from the values before this edit.

    Neighbours are found once, among the given rows, by the Euclidean distance of numbers scaled to [0, 1], where a
    category that differs counts 1; or, with ``follow``, among the rows as edited so far. The paper's text was not to be
    had, and sources differ on which it is: the first costs one search however many passes there are, the second a search
    for each row of each pass. Edits that share no row are made at once, the others in the order of the rows, so the result
    is that of one row after the other.

    Args:
        rows: (N, D), N ≥ 2; columns of categories hold whole numbers.
        generator: Where chance comes from, on the CPU.
        passes: How many; 400,000 rows of 4,000, a hundred passes, were the paper's most.
        swap: In [0, 1]; 0 copies the rows. 0.5 as in the R port; the paper tunes it.
        variance: The local variance parameter, positive: the larger, the closer to the values there are. 5 as in the R
            port; the paper tunes it.
        follow: Look for neighbours among the rows as edited so far.
        categorical: The columns that hold categories.

    Returns:
        (passes · N, D), pass after pass.

    Raises:
        TypeError: Rows that are no floating-point tensor.
        ValueError: Missing or infinite values, or a range that is infinite in the rows' precision; too few rows or no
            columns; an option out of its range.

    Example:
        >>> rows = torch.rand(100, 3)
        >>> munge(rows, torch.Generator().manual_seed(0), passes=5).shape
        torch.Size([500, 3])
    """
    _check(rows, categorical)
    if not 0 <= swap <= 1:
        raise ValueError(f"swap is a probability and must lie in [0, 1], got {swap}")
    if not variance > 0:  # nor NaN
        raise ValueError(f"variance divides a distance and must be positive, got {variance}")
    if passes < 1:
        raise ValueError(f"passes must be at least 1, got {passes}")
    discrete, place = _mask(rows, categorical), _places(rows, categorical)
    edits = [] if follow else _edits(neighbours(rows, categorical))
    made = []
    for _ in range(passes):
        copied = rows.clone()
        made.append(_pass(copied, _following(copied, place) if follow else edits, discrete, swap, variance, generator))
    rows = torch.cat(made)
    if not rows.isfinite().all():
        raise ValueError(
            f"variance={variance} is so small that made-up values are infinite in {rows.dtype}: they lie about "
            "|e − e'| / variance from the given ones"
        )
    return rows


def uniform(rows: Tensor, count: int, generator: torch.Generator, *, categorical: Collection[int] = ()) -> Tensor:
    """Draw each attribute by itself, uniformly: a number between its extremes, a category out of those there are.

    The paper's RANDOM, its weakest rows: a control.

    Args:
        rows: (N, D); columns of categories hold whole numbers.
        count: How many to draw.
        generator: Where chance comes from, on the CPU.
        categorical: The columns that hold categories.

    Returns:
        (count, D).

    Raises:
        TypeError: Rows that are no floating-point tensor.
        ValueError: As for `munge`.
    """
    _check(rows, categorical)
    low, high = rows.amin(0), rows.amax(0)
    drawn = low + (high - low) * torch.rand(count, rows.shape[1], generator=generator, dtype=rows.dtype)
    for column in categorical:
        there = torch.unique(rows[:, column])
        drawn[:, column] = there[torch.randint(len(there), (count,), generator=generator)]
    return drawn


def neighbours(rows: Tensor, categorical: Collection[int] = ()) -> Tensor:
    """Return for each row (N, D) the index (N,) of its nearest other row; see `munge` for the distance."""
    from sklearn.neighbors import NearestNeighbors

    points = _places(rows, categorical)(rows)
    narrow = points.dtype in (torch.float16, torch.bfloat16)  # which NumPy or scikit-learn cannot search
    search = NearestNeighbors(n_neighbors=1).fit((points.float() if narrow else points).numpy())
    return torch.from_numpy(search.kneighbors(return_distance=False)[:, 0])  # without an argument no row is its own


def _places(rows: Tensor, categorical: Collection[int]) -> Callable[[Tensor], Tensor]:
    """Return what maps rows like these to points whose Euclidean distance is theirs."""
    discrete = _mask(rows, categorical)
    low, high = rows.amin(0), rows.amax(0)
    kinds = {column: torch.unique(rows[:, column]) for column in sorted(categorical)}

    def place(some: Tensor) -> Tensor:
        numbers = ((some - low) / (high - low).where(high > low, 1))[:, ~discrete]
        # two one-hot vectors that differ are √2 apart, so that divided by √2 a mismatch adds 1 to the squared distance
        one_hot = [(some[:, column, None] == there).to(some.dtype) / 2**0.5 for column, there in kinds.items()]
        return torch.cat([numbers, *one_hot], 1)

    return place


def _following(rows: Tensor, place: Callable[[Tensor], Tensor]) -> Iterator[Pairs]:
    """Yield each row with its nearest neighbour among the rows as they are by then."""
    points = place(rows)
    for row in range(len(rows)):
        distances = (points - points[row]).square().sum(1)
        distances[row] = torch.inf
        pair = torch.tensor([row, int(distances.argmin())])
        yield pair[:1], pair[1:]
        points[pair] = place(rows[pair])


def _edits(nearest: Tensor) -> list[Pairs]:
    """Sort the edits (i, nearest[i]) into rounds in which no row occurs twice, each after those that it depends on."""
    last = [0] * len(nearest)
    rounds = []
    for row, other in enumerate(nearest.tolist()):
        last[row] = last[other] = max(last[row], last[other]) + 1
        rounds.append(last[row])
    order = torch.tensor(rounds)
    firsts = [torch.nonzero(order == number).flatten() for number in range(1, max(rounds) + 1)]
    return [(first, nearest[first]) for first in firsts]


def _pass(
    rows: Tensor, edits: Iterable[Pairs], discrete: Tensor, swap: float, variance: float, generator: torch.Generator
) -> Tensor:
    """Edit ``rows`` in place, each with its neighbour."""
    swapped = torch.rand(rows.shape, generator=generator) < swap
    noise = torch.randn(2, *rows.shape, generator=generator, dtype=rows.dtype)
    for first, second in edits:
        mine, its, chosen = rows[first], rows[second], swapped[first]
        spread = ((mine - its).abs() / variance).masked_fill(discrete, 0)
        rows[first] = torch.where(chosen, its + spread * noise[0, first], mine)
        rows[second] = torch.where(chosen, mine + spread * noise[1, first], its)
    return rows


def _mask(rows: Tensor, categorical: Collection[int]) -> Tensor:
    mask = torch.zeros(rows.shape[1], dtype=torch.bool)
    mask[list(categorical)] = True
    return mask


def _check(rows: Tensor, categorical: Collection[int]) -> None:
    if not isinstance(rows, Tensor) or not rows.is_floating_point():
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(
            f"rows: expected a floating-point tensor (N, D), got {kind}. Text has no distance: number its categories "
            "and name the column in categorical; limbeck.data.tabular.load does both"
        )
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(
            f"rows: expected at least two rows (N, D), each to be the other's neighbour, got {tuple(rows.shape)}"
        )
    if not rows.shape[1]:
        raise ValueError(f"rows: expected at least one column, got shape {tuple(rows.shape)}")
    if rows.device.type != "cpu":
        raise ValueError(f"rows: expected them on the CPU, where chance comes from, got {rows.device}: rows.cpu()")
    if unknown := [column for column in categorical if not 0 <= column < rows.shape[1]]:
        raise ValueError(f"categorical: expected columns 0 to {rows.shape[1] - 1}, got {unknown[0]}")
    if len(broken := torch.nonzero(~rows.isfinite().all(0)).flatten()):
        count = int((~rows[:, broken[0]].isfinite()).sum())
        raise ValueError(
            f"rows: column {int(broken[0])} has {count} values that are missing or infinite, which have no distance: leave "
            "those rows out, or fill them in (sklearn.impute.SimpleImputer)"
        )
    ranges = rows.amax(0) - rows.amin(0)
    if len(wide := torch.nonzero(~ranges.isfinite()).flatten()):
        column = int(wide[0])
        raise ValueError(
            f"rows: column {column} reaches from {float(rows[:, column].min()):.3g} to {float(rows[:, column].max()):.3g}, "
            f"a range that is infinite in {rows.dtype}: divide the column by 10, say, or take rows.double()"
        )
