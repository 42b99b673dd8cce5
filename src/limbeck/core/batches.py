"""The samples of a batch, whatever it is made of.

A batch is a tuple, list or dict of columns. A column is a tensor with a sample a row; a list or tuple with a sample an
entry, where samples are ragged (the images and boxes of a detector); or a dict of columns (the inputs of a language model).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

Rows = slice | list[int]


def take(batch: Any, rows: Rows) -> Any:
    """Return some samples of a batch."""
    if isinstance(batch, (tuple, list)):
        return tuple(part(column, rows) for column in batch)
    return part(batch, rows)


def part(column: Any, rows: Rows) -> Any:
    """Return some samples of a column: of a batch's inputs, say. What has no samples stays as it is."""
    if isinstance(column, Mapping):
        return {name: part(own, rows) for name, own in column.items()}
    if isinstance(column, Tensor):
        return column[rows] if column.ndim else column
    if isinstance(column, (list, tuple)):
        return column[rows] if isinstance(rows, slice) else [column[row] for row in rows]
    return column


def count(batch: Any) -> int:
    """Return how many samples a batch has.

    Raises:
        ValueError: Its columns do not agree, or there are none.
    """
    columns = batch if isinstance(batch, (tuple, list)) else [batch]
    lengths = sorted({length for column in columns for length in _lengths(column)})
    if len(lengths) != 1:
        raise ValueError(
            f"the samples of a batch cannot be counted: its columns have the lengths {lengths}. A batch is a tuple or dict "
            "of columns, each a tensor with a sample a row, a list with a sample an entry, or a dict of such columns; "
            "several inputs of a network are a dict"
        )
    return lengths[0]


def samples(column: Any) -> int:
    """Return how many samples a column has."""
    return count((column,))


def tensors(values: Any) -> list[Tensor]:
    """Return the tensors in anything."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _lengths(column: Any) -> Iterator[int]:
    if isinstance(column, Mapping):
        for own in column.values():
            yield from _lengths(own)
    elif isinstance(column, (list, tuple)) or (isinstance(column, Tensor) and column.ndim):
        yield len(column)
