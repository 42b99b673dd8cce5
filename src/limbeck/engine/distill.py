"""The one call."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from limbeck.engine.assemble import assemble, find
from limbeck.engine.fit import Result, example_of, fit


def distill(
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    data: Any,
    method: str = "kd",
    *,
    epochs: int = 30,
    **options: Any,
) -> Result:
    """Train a student by a method's name.

    Args:
        student: The network to train, in place.
        teacher: The network to learn from; for methods of peers, these. None for methods without one.
        data: A `limbeck.data.Data`, or loaders, as for `fit`.
        method: Its name: ``limbeck list methods`` shows all.
        epochs: As for `fit`; 30 is ours.
        options: Those of the method (``temperature=2.0``) and of `fit` (``run_dir="runs/a"``).

    Raises:
        ValueError: An unknown method or option, with the closest; and what the method and `fit` raise.

    Example:
        >>> import limbeck
        >>> data = limbeck.data.load("digits")
        >>> teacher, student = (limbeck.zoo.network(n, 10, data.shape) for n in ("mlp-64", "mlp-16"))
        >>> _ = limbeck.fit(limbeck.plain(teacher), data, epochs=5)
        >>> limbeck.distill(student, teacher, data, method="kd", epochs=2, temperature=2.0).finished
        True
    """
    of_fit = set(inspect.signature(fit).parameters) - set(inspect.signature(find(method)).parameters)
    training = {name: value for name, value in options.items() if name in of_fit}
    own = {name: value for name, value in options.items() if name not in of_fit}
    assembled = assemble(method, student, teacher, example_of(data, student), own)
    return fit(assembled, data, epochs=epochs, **{"name": method, **training})
