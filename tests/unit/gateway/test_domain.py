"""Prediction ids: signed, so that an invented one is refused without a look-up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain import PredictionIds


@given(st.text())
def test_an_invented_prediction_id_belongs_to_no_task(invented: str) -> None:
    assert PredictionIds(b"key").task_of(invented) is None


@given(st.integers(0, 60), st.characters(codec="ascii"))
def test_an_altered_prediction_id_belongs_to_no_task(index: int, replacement: str) -> None:
    ids = PredictionIds(b"key")
    genuine = ids.new("support")
    index %= len(genuine)
    altered = genuine[:index] + replacement + genuine[index + 1 :]
    assert ids.task_of(altered) == ("support" if altered == genuine else None)


def test_ids_signed_with_another_key_are_refused() -> None:
    assert PredictionIds(b"key").task_of(PredictionIds(b"other").new("support")) is None
