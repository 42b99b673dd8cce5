"""Whether a cache is of the method's teacher, and holds what the method reads."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.core.finding import Finding
from limbeck.data.cache import Brought
from limbeck.engine.taught import refuse_what_is_not_said, said, told_to
from limbeck.verbs.check.setup import Setup


def brought(setup: Setup) -> Iterator[Finding]:
    """Look at a cache as `fit` does before its first step."""
    train = setup.loaders.train
    answers = train.answers
    if not isinstance(answers, Brought):
        return
    try:
        read = told_to(setup.method, answers, first=True)
        if read is not None:
            refuse_what_is_not_said(read, setup.method, train)
    except ValueError as error:
        yield Finding("cache", "failed", str(error))
        return
    if read is None or read.places is None:
        yield Finding("cache", "ok", f"the method reads nothing in {answers.cache.folder}: a teacher of it is run")
    else:
        yield Finding("cache", "ok", f"{said(read.places)} of the teacher is read from {answers.cache.folder}")
