"""Prediction ids, signed, so that an invented one is refused without a look-up; and whose a request is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.domain import Identifiers, PredictionIds


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


def test_a_subject_is_a_known_one_else_a_keyed_hash_of_app_and_opening() -> None:
    """A text alone does not give its hash away: without the key nobody can try out what was asked."""
    ids, others = (Identifiers(PredictionIds(b"key"), key) for key in (b"s" * 32, b"t" * 32))
    assert ids.subject("user", "session", "shop", "hello") == "user"
    assert ids.subject(None, "session", "shop", "hello") == "session"
    hashes = [
        ids.subject(None, None, "shop", "hello"), ids.subject(None, None, "desk", "hello"),
        ids.subject(None, None, None, "hello"), ids.subject(None, None, "shop", "bye"), ids.subject(None, None, "", ""),
        others.subject(None, None, "shop", "hello"), ids.user_hash("hello"), ids.session_hash("hello"),
    ]  # fmt: skip
    assert len(set(hashes)) == len(hashes)
    assert ids.subject(None, None, "shop", " hello\n") == hashes[0]
    assert ids.subject(None, None, "shop", None) is None
