"""A teacher that is not here."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn


class Elsewhere(nn.Module):
    """Stand for a teacher that cannot be asked, of whom there is a cache of what it said: a service, another framework.

    Example:
        >>> from limbeck import kd
        >>> method = kd(nn.Linear(4, 3), Elsewhere())  # its batches have to bring the answers, see limbeck.cached
    """

    def forward(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to answer.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError(
            "the teacher is elsewhere and cannot be asked: there is only what it said of the training samples, "
            "limbeck.cached(data, folder) (--cache FOLDER), and methods that read no more than that"
        )
