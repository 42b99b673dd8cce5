"""A method by its name, with the options that it has."""

from __future__ import annotations

import difflib
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from limbeck import methods
from limbeck.method import Method
from limbeck.nets.anew import Anew, draws
from limbeck.paper import Paper
from limbeck.stage import Stage

GIVEN = ("student", "teacher", "peers", "example", "task")
"""What a method is given by whoever assembles it; everything else in its signature is an option."""


def find(name: str) -> Callable[..., Any]:
    """Return the function of a method.

    Raises:
        ValueError: There is none of this name; with the closest.
    """
    if name not in methods.__all__:
        raise ValueError(f"unknown method {name!r}{_closest(name, methods.__all__)}")
    return getattr(methods, name)  # type: ignore[no-any-return]


def paper_of(name: str) -> Paper:
    """Return a method's reference."""
    return sys.modules[find(name).__module__].PAPER  # type: ignore[no-any-return]


def assemble(
    name: str,
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    example: Any,
    options: Mapping[str, Any],
    labels: Tensor | None = None,
    make: Anew | None = None,
) -> Method | Iterable[Stage]:
    """Make a method.

    Args:
        name: Its name.
        student: The network to train.
        teacher: The network to learn from; for methods of peers, these.
        example: A batch of inputs, for methods that need shapes.
        options: Its keyword arguments.
        labels: The class of every training sample, at the place of its id, where the data know: for methods that remember
            samples, unless ``options`` say what they remember.
        make: What made the student, where it is known: for methods whose networks start anew, if it draws weights.

    Raises:
        ValueError: No such method, an option that it does not have, or a teacher too few or too many.
    """
    function = find(name)
    parameters = inspect.signature(function).parameters
    own = [option for option in parameters if option not in GIVEN]
    if unknown := [option for option in options if option not in own]:
        raise ValueError(f"{name} has no option {unknown[0]!r}{_closest(unknown[0], own)}")
    set_by_hand = {name: value for name, value in options.items() if value is not None}
    given: dict[str, Any] = {"example": example} if "example" in parameters else {}
    role = next((role for role in ("teacher", "peers") if role in parameters), None)
    if role is None and teacher is not None:
        raise ValueError(f"{name} has no teacher: leave it out")
    if role is not None and teacher is not None:
        given[role] = teacher
    elif role is not None and parameters[role].default is inspect.Parameter.empty:
        raise ValueError(f"{name} needs a {role.removesuffix('s')}: none was given")
    needed = [option for option in own if parameters[option].default is inspect.Parameter.empty]
    if missing := [option for option in needed if option not in options]:
        raise ValueError(f"{name} needs {missing[0]}, which has no default")
    if role == "teacher" and isinstance(teacher, Sequence):
        raise ValueError(f"{name} has one teacher, got {len(teacher)}: limbeck.Ensemble makes one of several")
    if "memory" in parameters and labels is not None and not any(name in set_by_hand for name in ("memory", "queue")):
        given |= {"memory": len(labels), "classes": set_by_hand.get("classes", labels.cpu())}
    if "anew" in parameters and "anew" not in options and make is not None and draws(make):
        given["anew"] = make
    return function(student, **{**options, **given})  # type: ignore[no-any-return]


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f": did you mean {' or '.join(close)}?"
    return f": there are {', '.join(known)}" if known else ": it has none"
