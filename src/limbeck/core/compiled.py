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
from limbeck.core.method import Distill, Method, called
from limbeck.core.objective import Objective, Term
from limbeck.core.trace import TAPS, Taps, is_compiled, locate

Backend = str | Callable[..., Any]
"""What `torch.compile` takes."""
TWICE = (
    "the losses are made of gradients, and torch differentiates compiled code once: the method runs as it is written"
)
AS_WRITTEN = "the term {!r} draws, or makes its gradient itself: torch would compile it anew in every step"
UNREAD = "the student, as no term reads its answer: its compiled backward pass would run through all of it"
EARLY = "force_non_lazy_backward_lowering"
ADVICE = "\n  Hint:"


def compiled(method: Method, backend: Backend = "inductor") -> Method:
    """Compile a method's networks, its teachers and the terms of its objectives, in place.

    The layers that objectives compare are seen by hooks that are compiled along and stay, so that what is recorded is
    always that of the latest call. Parameters, state and names stay as they are. The first step compiles, which takes
    seconds to minutes, and so does the first in another mode, or with a batch of another size.

    What torch cannot compile runs as it was written, and so do terms that draw random numbers or make their gradient
    themselves (`crd`, `mgd`, `rkd` with ``anchors``), which torch would compile anew in every step; `limbeck.fit` says what
    that was. So does a student of which no term reads the answer, as in stages that learn a layer alone: compiled, its
    whole backward pass would run, with gradients of 0 where there are none, and weight decay would shrink what learns
    nothing. A network of which a part came compiled stays as it is.

    Args:
        method: The method, which is returned.
        backend: As for `torch.compile`; ``"inductor"`` is torch's own default, and needs a C++ compiler on the CPU.

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
    unread = _unread(method)
    networks = [net for net in _networks(method) if id(net) not in unread]
    _tap(method, {id(net) for net in networks})
    for part in (*networks, *_terms(method)):
        if not is_compiled(part) and not _as_written(part):
            part.compile(backend=backend, **_apart())
    return method


def differentiates_twice(method: nn.Module) -> bool:
    """Whether the losses of a method, or of a part of it, are made of gradients."""
    return any(isinstance(part, Method) and part.differentiates_twice for part in method.modules())


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
    came = {id(net) for net in _networks(method) if is_compiled(net)}
    twice = differentiates_twice(method)
    fell_back.update([TWICE] if asked and twice else [])
    seen = came - _unread(method)
    if twice or not (asked or seen):
        with torch.compiler.set_stance("force_eager") if came else nullcontext():
            yield fell_back
        return
    with _as_it_came(method), _falling_back(fell_back):
        if asked:
            fell_back.update(AS_WRITTEN.format(term.name) for term in _terms(method) if _as_written(term))
            fell_back.update([UNREAD] if _unread(method) else [])
            compiled(method)
        else:
            _tap(method, seen)
        yield fell_back


@contextmanager
def _as_it_came(method: Method) -> Iterator[None]:
    """Take off afterwards what a block compiles, and the hooks that it sets."""
    networks = _networks(method)
    tapped = {id(net) for net in networks if TAPS in vars(net)}
    former = [(part, part._compiled_call_impl) for part in (*networks, *_terms(method))]
    try:
        yield
    finally:
        for part, own in former:
            part._compiled_call_impl = own
        new = [vars(net).pop(TAPS) for net in networks if TAPS in vars(net) and id(net) not in tapped]
        if any(taps.handles for taps in new):
            torch._dynamo.reset()  # code that was compiled with the hooks goes on with them
        for taps in new:
            taps.remove()


@contextmanager
def _falling_back(told: Counter[str]) -> Iterator[None]:
    """Let what torch cannot compile run as it is written, and count the reasons.

    The backward pass is compiled with the forward pass: later nothing could take its place.
    """
    heard, dynamo = _Heard(told), logging.getLogger("torch._dynamo")
    early = {EARLY: True} if hasattr(torch._functorch.config, EARLY) else {}  # not in torch 2.6
    before = Counter(torch._dynamo.utils.counters["graph_break"])
    dynamo.addHandler(heard)
    try:
        with (
            torch._dynamo.config.patch(suppress_errors=True),
            torch._functorch.config.patch(early),
        ):
            yield
    finally:
        dynamo.removeHandler(heard)
        breaks = Counter(torch._dynamo.utils.counters["graph_break"]) - before
        for reason, times in breaks.items():
            told[_in_one_line(reason)] += times


class _Heard(logging.Handler):
    """Keeps what torch says of code that it runs as it was written."""

    def __init__(self, told: Counter[str]) -> None:
        super().__init__(logging.WARNING)
        self.told = told

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a message."""
        self.told[_in_one_line(record.getMessage())] += 1


def _in_one_line(message: str) -> str:
    """Return a message of torch's without its advice, and of a traceback what was raised."""
    said, _, trace = message.partition("Traceback (most recent call last):")
    raised = [line for line in trace.split("\n\n")[0].splitlines() if not line.startswith(" ")]
    return " ".join(f"{said.split(ADVICE)[0]} {' '.join(raised)}".split())


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
    taught = [part.net for part in method.modules() if isinstance(part, Frozen)]
    networks = [*called(method), *method.networks().values(), *taught]
    return [*{id(net): net for net in networks if not isinstance(net, Objective | ScriptModule)}.values()]


def _unread(method: Method) -> set[int]:
    """Return the students of which no term reads the answer."""
    distills = [part for part in method.modules() if isinstance(part, Distill)]
    read = {
        id(part.student)
        for part in distills
        if any(source.role == "student" and not source.path for source in part.objective.sources())
    }
    return {id(part.student) for part in distills} - read


def _apart() -> dict[str, bool]:
    """Let each part have a cache of its own, where torch can: all terms are one function, whose cache holds eight."""
    option = "isolate_recompiles"
    return {option: True} if option in inspect.signature(torch.compile).parameters else {}


def _as_written(part: nn.Module) -> bool:
    """Whether a term holds what torch would compile anew in every step, see `Draws`."""
    return isinstance(part, Term) and any(getattr(own, "runs_as_written", False) for own in part.modules())


def _terms(method: Method) -> list[Term]:
    return [part for part in method.modules() if isinstance(part, Term)]
