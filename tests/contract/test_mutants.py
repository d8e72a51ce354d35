"""The catalog of planted faults is current: a change of product code or of a test that a fault names is seen here.

`make mutants` plants them and runs their tests.
"""

from __future__ import annotations

from tests.mutants import catalog

MIN_FAULTS = 100
MAX_STRUCK = 10


def test_each_fault_can_be_planted_and_has_a_test() -> None:
    faults = [fault for room in catalog.rooms() for fault in catalog.faults_of(room)]
    assert catalog.problems(faults) == []
    assert len(faults) >= MIN_FAULTS
    assert len(catalog.struck()) <= MAX_STRUCK


def test_a_fault_that_is_out_of_date_is_named() -> None:
    fault = catalog.faults_of("training")[0]
    changed = [
        fault.model_copy(update={"old": "no such line"}),
        fault.model_copy(update={"test": "tests/x.py::test_y"}),
    ]
    gone, untested = catalog.problems([fault, *changed])[1:]
    assert "occurs 0 times" in gone
    assert "tests/x.py" in untested
