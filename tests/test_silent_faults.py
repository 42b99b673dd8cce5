"""`limbeck check` names each of the silent faults that public reports tell of."""

from __future__ import annotations

import pytest

from faults import FAULTS, Fault
from limbeck.verbs.check import check
from sound import made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.build.__name__)
def test_the_fault_is_named(fault: Fault, monkeypatch):
    monkeypatch.setattr("limbeck.verbs.check.examine.SECONDS", 0.5)
    monkeypatch.setattr("limbeck.verbs.check.examine.cost", lambda setup, epochs: iter(()))
    found = [one for one in check(*made(fault.build)).findings if one.status != "ok"]
    named = [one for one in found if one.name == fault.title and fault.words in one.message]
    assert named, [(one.name, one.message) for one in found]
