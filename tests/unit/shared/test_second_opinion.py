"""A linear classifier that travels with a calibration says how probable it finds an answer."""

from __future__ import annotations

import numpy as np
import pytest

from schemas.conversation import Message, Part, Role, ToolCall
from shared.conversation.question_text import question_text
from shared.model.second_opinion import BUCKETS, SecondOpinion, features


def opinion(**weights: float) -> SecondOpinion:
    """One that finds a label the more probable the more of the label's own n-grams a text has."""
    matrix = np.zeros((len(weights), BUCKETS), dtype=np.float16)
    for row, (label, weight) in zip(matrix, weights.items(), strict=True):
        row[features(label)[0]] = weight
    ones = np.ones(BUCKETS, dtype=np.float32)
    return SecondOpinion(tuple(weights), matrix, np.zeros(len(weights), dtype=np.float32), ones)


def test_a_label_is_the_more_probable_the_more_its_words_are_in_the_text() -> None:
    found = opinion(refund=3.0, delivery=3.0)
    refund, delivery = (found.log_odds("I want a refund", label) or 0.0 for label in ("refund", "delivery"))
    assert refund == pytest.approx(-delivery) and refund > 1.0
    assert found.log_odds("I want a refund", "login") is None
    assert found.log_odds("", "refund") == pytest.approx(0.0), "nothing of the text is known"


def test_a_label_is_compared_with_the_likeliest_other_one_however_many_there_are() -> None:
    few, many = opinion(refund=3.0, delivery=1.0), opinion(refund=3.0, delivery=1.0, **{f"{n}": 0.0 for n in range(90)})
    refund = few.log_odds("I want a refund for the delivery", "refund") or 0.0
    assert many.log_odds("I want a refund for the delivery", "refund") == pytest.approx(refund) and refund > 0.5


def test_the_log_odds_of_what_it_finds_certain_are_bounded() -> None:
    certain = opinion(refund=3_000.0, delivery=0.0)
    assert certain.log_odds("refund", "refund") == pytest.approx(-(certain.log_odds("refund", "delivery") or 0.0))
    assert 13.0 < (certain.log_odds("refund", "refund") or 0.0) < 14.0


def test_case_and_space_tell_nothing_and_counts_little() -> None:
    once, shouted, twice = (
        features("Where is it?"),
        features("  WHERE\n is   it?"),
        features("where is it? where is it?"),
    )
    assert [part.tolist() for part in once] == [part.tolist() for part in shouted]
    assert set(once[0].tolist()) < set(twice[0].tolist())
    assert max(twice[1]) == pytest.approx(1.0 + np.log(3), abs=0.5)


@pytest.mark.parametrize("text", ["", "a", "नी", "\ud800", "💳" * 2_000])
def test_any_text_has_features_of_finite_weight(text: str) -> None:
    buckets, counts = features(text)
    assert len(buckets) and np.isfinite(counts).all() and buckets[0] >= 0 and buckets[-1] < BUCKETS


def test_it_reads_back_as_it_was_stored_and_a_damaged_file_is_refused() -> None:
    found = opinion(refund=3.0, delivery=2.0)
    again = SecondOpinion.from_bytes(found.to_bytes())
    assert again.labels == found.labels
    assert again.log_odds("a refund, please", "refund") == found.log_odds("a refund, please", "refund")
    for damaged in (b"", b"PK", found.to_bytes()[:-40]):
        with pytest.raises(ValueError, match="second opinion"):
            SecondOpinion.from_bytes(damaged)


def test_a_conversation_is_read_alike_as_an_event_and_as_a_request() -> None:
    messages = [
        Message(role=Role.SYSTEM, content="You classify."),
        Message(role=Role.USER, content="Hello"),
        Message(role=Role.ASSISTANT, content=None, tool_calls=(ToolCall(name="look", arguments="{}"),)),
        Message(role=Role.USER, content=(Part(type="text", text="Where"), Part(type="text", text="is it?"))),
    ]
    sent = [message.model_dump(exclude_defaults=True) for message in messages]
    text = question_text((message.role, message.content) for message in messages)
    assert text == "Hello\nWhere\nis it?"
    assert question_text((message["role"], message.get("content")) for message in sent) == text
    assert question_text([("user", "a" * 5_000 + "end")]) == "a" * 997 + "end", "the question is at the end"
