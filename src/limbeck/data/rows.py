from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from limbeck.core.task import Batch
from limbeck.data.epochs import Epochs, Piece, classes_in

if TYPE_CHECKING:
    from typing_extensions import Self


@final
class Rows(Epochs):
    """Batches (rows, targets, ids) from tensors in memory, as they are: the rows of a table, embeddings, images as floats.

    The order of batches, distribution over processes, ``set_epoch``, ``state_dict``: see ``Epochs``.

    Args:
        rows: what networks are fed, a sample a row, (N, ...).
        targets: a target a row, see ``Loader``: classes int64 (N,), labels (N, K), values (N, M), or a teacher's answers.
        batch_size: rows in a batch, over all processes.
        shuffle: permute every view; marks a loader for training.
        seed: of the order.

    Example:
        >>> rows, values = torch.randn(10, 3), torch.randn(10, 1)
        >>> [tuple(inputs.shape) for inputs, _, _ in Rows(rows, values, batch_size=4)]
        [(4, 3), (4, 3), (2, 3)]
    """

    targets: Tensor

    def __init__(self, rows: Tensor, targets: Tensor, *, batch_size: int, shuffle: bool = False, seed: int = 0) -> None:
        if len(rows) != len(targets):
            raise ValueError(f"expected a target for each of {len(rows)} rows, got {len(targets)}")
        super().__init__(len(rows), classes_in(targets), batch_size=batch_size, shuffle=shuffle, seed=seed)
        self.rows, self.targets = rows, targets

    def to(self, device: torch.device | str) -> Self:
        """Keep the rows on ``device`` and make batches there; returns the loader itself."""
        self.rows, self.targets = self.rows.to(device), self.targets.to(device)
        return self

    def _serve(self, plan: Iterable[list[Piece]]) -> Iterator[Batch]:
        for pieces in plan:
            ids = torch.cat([ids for _, ids in pieces]).to(self.rows.device)
            yield self.rows[ids], self.targets[ids], ids
