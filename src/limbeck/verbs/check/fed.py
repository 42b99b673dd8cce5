"""What a network cannot be fed, and which labels a loss cannot take, in words in place of torch's."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from limbeck.core.batches import tensors
from limbeck.core.frozen import bare
from limbeck.core.sound import FLOATS
from limbeck.verbs.check.setup import BROKEN, Setup

TORCH = str(Path(torch.__file__).parent)


def why_not(setup: Setup) -> str | None:
    """Say which network cannot be fed the batch, or else which labels the loss cannot take; None if none is to blame."""
    for role, net in _all(setup):
        try:
            setup.answer(net)
        except BROKEN as error:
            if not _of_torch(error):  # it is in words already
                continue
            fed = _words(_inputs(setup))
            return f"the {role} cannot be fed the batch's inputs, {fed}: {_first(error)}. {_remedy(role, setup)}"
    nets = setup.networks.values()
    return next((said for net in nets if (said := _labels(net, setup)) is not None), None)


def another_precision(setup: Setup) -> bool:
    """Whether a network computes in another floating-point type than its inputs, which the training may cast."""
    fed = _floats(setup)
    own = [{p.dtype for p in bare(net).parameters() if p.dtype in FLOATS} for net in setup.networks.values()]
    return bool(fed) and any(types and types != fed for types in own)


def _labels(net: nn.Module, setup: Setup) -> str | None:
    try:
        answer, target = setup.answer(net), setup.task.target(setup.batch)
    except BROKEN:
        return None
    if not isinstance(answer, Tensor) or not isinstance(target, Tensor) or target.is_floating_point():
        return None
    try:
        setup.task.loss(answer, target)
    except BROKEN as error:
        labels = f"the loss cannot take the labels, {_words([target])}: "
        if target.shape == answer.shape:
            return (
                f"{labels}one number for each class, as soft labels have, which are floats: targets.float(); or the class "
                "alone, targets.argmax(-1)"
            )
        return labels + ("classes are int64: targets.long()" if target.dtype != torch.int64 else _first(error))
    return None


def _of_torch(error: Exception) -> bool:
    """Whether an error comes of an operation of torch, and not of words that somebody wrote."""
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    return isinstance(error, RuntimeError) or place.startswith(TORCH)


def _remedy(role: str, setup: Setup) -> str:
    if not _floats(setup) and any(tensor.dtype == torch.uint8 for tensor in _inputs(setup)):
        return "Pixels are to be floats, x.float() / 255 in 0..1, or better normalised"
    if role in setup.teachers:
        return (
            "Take one for inputs of this shape, or say what it is fed: limbeck.Frozen(teacher, inputs=...) "
            "(--teacher-inputs)"
        )
    return "Make it for inputs of this shape, or bring the inputs to the shape that it takes"


def _all(setup: Setup) -> Iterator[tuple[str, nn.Module]]:
    yield from setup.networks.items()
    yield from setup.teachers.items()


def _inputs(setup: Setup) -> list[Tensor]:
    return tensors(setup.task.inputs(setup.batch))


def _floats(setup: Setup) -> set[torch.dtype]:
    return {tensor.dtype for tensor in _inputs(setup) if tensor.dtype in FLOATS}


def _words(shown: list[Tensor]) -> str:
    return ", ".join(f"{tensor.dtype} of shape {tuple(tensor.shape)}" for tensor in shown).replace("torch.", "")


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
