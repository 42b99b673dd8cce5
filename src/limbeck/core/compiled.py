"""Methods that torch compiles: networks with hooks that stay, teachers, and the terms of objectives."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.jit import ScriptModule

from limbeck.core.frozen import Frozen
from limbeck.core.method import Distill, Method
from limbeck.core.objective import Objective, Term
from limbeck.core.trace import TAPS, Taps, is_compiled, locate

Backend = str | Callable[..., Any]
"""What `torch.compile` takes."""
TWICE = (
    "the losses are made of gradients, and torch differentiates compiled code once: the method runs as it is written"
)


def compiled(method: Method, backend: Backend = "inductor") -> Method:
    """Compile a method's networks, its teachers and the terms of its objectives, in place.

    The layers that objectives compare are seen by hooks that are compiled along and stay, so that what is recorded is
    always that of the latest call. Parameters, state and names stay as they are. What torch cannot compile runs as it was
    written; `limbeck.fit` says what that was. The first step compiles, which takes seconds to minutes, and so does the
    first in another mode, or with a batch of another size.

    Args:
        method: The method, which is returned.
        backend: As for `torch.compile`; ``"inductor"`` is torch's own default.

    Raises:
        TypeError: No method.
        ValueError: A method whose losses are made of gradients (`gradient`, `jacobian`): torch differentiates compiled code
            once.

    Example:
        >>> from limbeck import kd
        >>> method = compiled(kd(nn.Linear(4, 2), nn.Linear(4, 2)), backend="eager")
    """
    if not isinstance(method, Method):
        raise TypeError(
            f"expected a method, got {type(method).__name__}: limbeck.compiled(limbeck.kd(student, teacher))"
        )
    if differentiates_twice(method):
        raise ValueError(TWICE)
    _tap(method, {id(net) for net in _networks(method)})
    for part in (*_networks(method), *_terms(method)):
        if not is_compiled(part):
            part.compile(backend=backend, **_alone())
    return method


def differentiates_twice(method: nn.Module) -> bool:
    """Whether the losses of a method, or of a part of it, are made of gradients."""
    return any(isinstance(part, Method) and part.differentiates_twice for part in method.modules())


def uncompiled(method: Method) -> Method:
    """Undo `compiled`, but for networks that came compiled."""
    for net in _networks(method):
        if (taps := vars(net).pop(TAPS, None)) is not None:
            taps.remove()
            torch._dynamo.reset()  # code that was compiled with the hooks goes on with them
    for part in (*_networks(method), *_terms(method)):
        part._compiled_call_impl = None
    return method


@contextmanager
def compiling(method: Method, asked: bool) -> Iterator[Counter[str]]:
    """Let a method run compiled while the block lasts; of what comes compiled, the layers are seen where it runs.

    Args:
        method: The method.
        asked: Whether all of it is to be compiled, or only what is.

    Yields:
        What fell back, and how often: filled when the block ends.
    """
    fell_back = Counter[str]()
    own = {id(net): getattr(net, "_compiled_call_impl", None) for net in (*_networks(method), *_terms(method))}
    came = {id(net) for net in _networks(method) if is_compiled(net)}
    twice = differentiates_twice(method)
    fell_back.update([TWICE] if asked and twice else [])
    if twice or not (asked or came):
        with torch.compiler.set_stance("force_eager") if came else nullcontext():
            yield fell_back
        return
    heard = _Heard()
    dynamo = logging.getLogger("torch._dynamo")
    before = Counter(torch._dynamo.utils.counters["graph_break"])
    if asked:
        compiled(method)
    else:
        _tap(method, came)
    dynamo.addHandler(heard)
    try:
        with torch._dynamo.config.patch(suppress_errors=True):
            yield fell_back
    finally:
        dynamo.removeHandler(heard)
        uncompiled(method)
        for part in (*_networks(method), *_terms(method)):
            part._compiled_call_impl = own[id(part)]
        fell_back.update(heard.told)
        fell_back.update(Counter(torch._dynamo.utils.counters["graph_break"]) - before)


class _Heard(logging.Handler):
    """Keeps what torch says of code that it runs as it was written."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.told = Counter[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.told[record.getMessage()] += 1


def _tap(method: Method, which: set[int]) -> None:
    """Set hooks that stay on networks, for the layers that objectives read."""
    paths: dict[int, tuple[nn.Module, set[str]]] = {id(net): (net, set()) for net in _networks(method)}
    for part in (part for part in method.modules() if isinstance(part, Distill)):
        paths[id(part.student)][1].update(part.objective.paths("student"))
        for role, teacher in part.teachers.items():
            paths[id(teacher.net)][1].update(part.objective.paths(role))
    for key, (net, own) in paths.items():
        if key in which and not any(isinstance(module, ScriptModule) for module in net.modules()):
            taps = vars(net).setdefault(TAPS, Taps())
            taps.set({path: locate(net, path) for path in own})


def _networks(method: Method) -> list[nn.Module]:
    """Return all that is run: what players are made of, and teachers."""
    players = [part for parts in method.players().values() for part in parts]
    inside = [child for part in players for child in (part.children() if isinstance(part, nn.ModuleList) else [part])]
    taught = [part.net for part in method.modules() if isinstance(part, Frozen)]
    networks = [*inside, *method.networks().values(), *taught]
    return [*{id(net): net for net in networks if not isinstance(net, Objective | ScriptModule)}.values()]


def _alone() -> dict[str, bool]:
    """Let each part have a cache of its own, from torch 2.12 on: all terms are one function, whose cache holds eight."""
    apart = "isolate_recompiles"
    return {apart: True} if apart in inspect.signature(torch.compile).parameters else {}


def _terms(method: Method) -> list[Term]:
    return [part for part in method.modules() if isinstance(part, Term)]
