"""A method by its name, or a sum of methods by theirs, with the options that it has."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from limbeck import methods
from limbeck.core.copied import copied
from limbeck.core.frozen import frozen
from limbeck.core.method import Method, add
from limbeck.core.stage import Stage
from limbeck.core.task import Task
from limbeck.nets.anew import Anew, draws

GIVEN = ("student", "teacher", "peers", "example", "task")
"""What a method is given by whoever assembles it; everything else in its signature is an option."""
HARD = inspect.Parameter("hard", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=float | None)
"""The option that a sum has of its own: the weight of the labels."""


def find(name: str) -> Callable[..., Any]:
    """Return the function of a method.

    Raises:
        ValueError: There is none of this name; with the closest.
    """
    if name not in methods.__all__:
        raise ValueError(f"unknown method {name!r}{_closest(name, methods.__all__)}")
    return getattr(methods, name)  # type: ignore[no-any-return]


def parts_of(name: str) -> list[str]:
    """Return the names of the methods in a sum, ``kd+at``; a method's name alone is its own.

    Raises:
        ValueError: There is none of a name, one is there twice, or one trains other networks beside the student.
    """
    parts = name.split("+")
    for part in parts:
        own = inspect.signature(find(part)).parameters
        if len(parts) > 1 and (others := [role for role in ("peers", "assistants") if role in own]):
            raise ValueError(
                f"{name}: {part} has {others[0]}, which no other method would teach: it cannot be added to"
            )
    if twice := [part for part in parts if parts.count(part) > 1]:
        raise ValueError(f"{name}: {twice[0]} is there twice; give it a larger weight, by its options")
    return parts


def parameters_of(name: str) -> dict[str, inspect.Parameter]:
    """Return what a method takes; of a sum ``hard``, and the options of each by its name: ``kd.temperature``."""
    parts = parts_of(name)
    own = {part: inspect.signature(find(part), eval_str=True).parameters for part in parts}
    if len(parts) == 1:
        return dict(own[name])
    options = {f"{part}.{key}": one for part in parts for key, one in own[part].items() if key not in GIVEN}
    given: dict[str, inspect.Parameter] = {}
    for key, one in ((key, one) for part in parts for key, one in own[part].items() if key in GIVEN):
        if key not in given or one.default is inspect.Parameter.empty:  # what one part needs, the sum does
            given[key] = one
    return {**given, HARD.name: HARD, **options}


def assemble(
    name: str,
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    example: Any,
    options: Mapping[str, Any],
    labels: Tensor | None = None,
    make: Anew | None = None,
    task: Task | None = None,
) -> Method | Iterable[Stage]:
    """Make a method, or a sum of several.

    Args:
        name: Its name; of a sum the names with ``+`` between, in any order.
        student: The network to train.
        teacher: The network to learn from; for methods of peers, these.
        example: A batch of inputs, for methods that need shapes.
        options: Its keyword arguments; in a sum each method's by its name, ``{"kd.temperature": 2}``, and ``hard``.
        labels: The class of every training sample, at the place of its id, where the data know: for methods that remember
            samples, unless ``options`` say what they remember.
        make: What made the student, where it is known: for methods whose networks start anew, if it draws weights.
        task: What the networks are made to do; classification where it is not given.

    Raises:
        ValueError: No such method, an option that it does not have, a teacher too few or too many, or methods that cannot
            be added.
    """
    parts = parts_of(name)
    if len(parts) == 1:
        return _alone(name, student, teacher, example, options, labels, make, task)
    parameters = parameters_of(name)
    _refuse_unknown(name, options, parameters)
    if "teacher" not in parameters and teacher is not None:
        raise ValueError(f"{name} has no teacher: leave it out")
    if isinstance(teacher, nn.Module):
        teacher = frozen(teacher)  # one view for all

    def made(student: nn.Module) -> Method | Iterable[Stage]:
        each = []
        for part in sorted(parts):  # so that adapters have the same weights in whatever order the parts are named
            own = {key.partition(".")[2]: value for key, value in options.items() if key.startswith(f"{part}.")}
            teaches = teacher if "teacher" in inspect.signature(find(part)).parameters else None
            each.append(_alone(part, student, teaches, example, own, labels, make, task))
        try:
            return add(*each, hard=options.get("hard"))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error

    if not isinstance(together := made(student), Method):
        _try(name, made, student)
    return together


def _try(name: str, made: Callable[[nn.Module], Any], student: nn.Module) -> None:
    """Go through all stages with a copy of the student: what does not fit the last is found before the first trains."""
    from limbeck.data.randomness import random_state, set_random_state

    before = random_state()
    try:
        for _ in made(copied(student)):
            pass
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    finally:
        set_random_state(before)


def _alone(
    name: str,
    student: nn.Module,
    teacher: nn.Module | Sequence[nn.Module] | None,
    example: Any,
    options: Mapping[str, Any],
    labels: Tensor | None,
    make: Anew | None,
    task: Task | None,
) -> Method | Iterable[Stage]:
    function = find(name)
    parameters = inspect.signature(function).parameters
    own = _refuse_unknown(name, options, parameters)
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
    if task is not None:
        given["task"] = task
    return function(student, **{**options, **given})  # type: ignore[no-any-return]


def _refuse_unknown(name: str, options: Mapping[str, Any], parameters: Mapping[str, Any]) -> list[str]:
    """Return the options that a method has, if those that are given are among them."""
    own = [option for option in parameters if option not in GIVEN]
    if unknown := [option for option in options if option not in own]:
        raise ValueError(f"{name} has no option {unknown[0]!r}{_closest(unknown[0], own)}")
    return own


def _closest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f": did you mean {' or '.join(close)}?"
    return f": there are {', '.join(known)}" if known else ": it has none"
