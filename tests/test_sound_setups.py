"""`limbeck check` finds nothing where nothing is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

from limbeck.verbs.check import check, vet
from sound import SOUND, SetUp, made


@pytest.mark.parametrize("build", SOUND, ids=lambda build: build.__name__)
def test_nothing_is_found_where_nothing_is_wrong(build: Callable[[], SetUp], monkeypatch):
    monkeypatch.setattr("limbeck.verbs.check.examine.SECONDS", 0.5)
    monkeypatch.setattr("limbeck.verbs.check.examine.cost", lambda setup, epochs: iter(()))
    method, data = made(build)
    again = (method, data) if not hasattr(method, "__next__") else made(build)  # stages are used up
    found = [(one.name, one.message) for one in check(method, data).findings if one.status != "ok"]
    assert found == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vet(*again)
