"""Who is a suspect, what people are asked, what modes are called, and how they keep their identity."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from schemas.base import Message, Role
from schemas.labels import Purpose
from schemas.predictions import FeedbackGiven
from schemas.tasks import FailureSettings, TaskKind, TaskSpec
from services.failure_miner.domain import (
    AnsweredPrediction,
    StoredMode,
    Suspect,
    describe_modes,
    is_negative,
    is_suspect,
    match_modes,
    review_question,
    same_answer,
)
from services.failure_miner.naming import name_words

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(name="support-desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "cancel"))
MESSAGES = (Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content="where is it"))


def answered(prediction_id: str) -> AnsweredPrediction:
    return AnsweredPrediction(prediction_id, SPEC.name, "r", NOON, MESSAGES, "refund", 0.2, "u1")


def suspect(text: str, *vector: float, confidence: float | None = 0.4) -> Suspect:
    row = np.array(vector, dtype=np.float32)
    return Suspect(
        f"p-{text}", "t", "r", NOON, text, "a", confidence, "predictions.logged.v1", 0, 0,
        row / np.linalg.norm(row),
    )  # fmt: skip


def feedback(kind: str, positive: bool | None = None, text: str | None = None) -> FeedbackGiven:
    return FeedbackGiven.model_validate(
        {"task": "t", "task_revision": "r", "prediction_id": "p", "kind": kind, "positive": positive, "text": text}
    )


def test_an_answer_without_a_confidence_is_a_suspect() -> None:
    assert is_suspect(None, 0.6)
    assert is_suspect(0.59, 0.6)
    assert not is_suspect(0.6, 0.6)


@pytest.mark.parametrize(
    ("given", "negative"),
    [
        (feedback("thumbs", positive=False), True),
        (feedback("thumbs", positive=True), False),
        (feedback("accepted", positive=False), True),
        (feedback("edited", text="better"), True),
        (feedback("label", text="refund"), True),
    ],
)
def test_negative_feedback_is_recognised(given: FeedbackGiven, negative: bool) -> None:
    assert is_negative(given) is negative


def test_a_question_is_the_same_on_every_delivery() -> None:
    first, again = (review_question(SPEC, answered("p1"), Purpose.LOW_CONFIDENCE) for _ in range(2))
    assert (first.event_id, first.request_id) == (again.event_id, again.request_id)
    assert first.priority == pytest.approx(0.8)
    assert first.labels == SPEC.labels
    assert first.user_hash == "u1"


def test_the_overlap_share_of_questions_is_put_to_two_people() -> None:
    spec = SPEC.model_copy(update={"failures": FailureSettings(overlap_share=0.25)})
    asked = [review_question(spec, answered(f"p{i}"), Purpose.LOW_CONFIDENCE) for i in range(2_000)]
    assert {q.overlap for q in asked} == {1, 2}
    assert sum(q.overlap == 2 for q in asked) / 2_000 == pytest.approx(0.25, abs=0.03)


def test_case_and_spaces_do_not_make_an_answer_wrong() -> None:
    assert same_answer(" Refund", "refund")
    assert not same_answer("refund", "cancel")


def test_names_are_the_words_that_distinguish_clusters() -> None:
    words = name_words(
        [
            ["I want my money back please", "please send the money back"],
            ["please where is my parcel", "the parcel isn’t here"],
        ]
    )
    assert words[0][:2] == ("back", "money")
    assert words[1][0] == "parcel"
    assert not {"please", "the", "isn't", "isn", "my"} & {*words[0], *words[1]}


def test_centroids_match_one_to_one_nearest_first() -> None:
    found = np.array([[1, 0], [0.96, 0.28], [0, 1]], dtype=np.float32)
    stored = np.array([[0.8, 0.6], [1, 0]], dtype=np.float32)
    assert match_modes(found, stored, 0.85) == {0: 1, 1: 0}
    assert match_modes(found, stored, 0.99) == {0: 1}
    assert match_modes(found, np.empty((0, 2), dtype=np.float32), 0.5) == {}


def test_a_mode_keeps_its_identity_while_its_centroid_does() -> None:
    suspects = [suspect("parcel late", 1, 0.1), suspect("parcel lost", 1, -0.1), suspect("odd one", -1, 0)]
    suspects += [suspect("money back", 0, 1), suspect("money please", 0.1, 1), suspect("refund money", -0.1, 1)]
    stored = [StoredMode("mode-old", np.array([1.0, 0.0], dtype=np.float32))]
    found = describe_modes(suspects, [0, 0, -1, 1, 1, 1], stored, "cycle-2", 0.85)
    assert [mode.mode.size for mode in found] == [3, 2]
    money, parcel = (mode.mode for mode in found)
    assert parcel.mode_id == "mode-old"
    assert not parcel.is_new
    assert money.is_new
    assert money.exemplars[0] == "money back"
    assert money.share == pytest.approx(0.5)
    assert money.mean_confidence == pytest.approx(0.4)


def test_a_mode_names_the_sources_of_its_exemplars_and_can_drop_one() -> None:
    suspects = [
        replace(suspect(word, 1, 0.01 * i), user_hash=f"u{i}") for i, word in enumerate(("late", "lost", "gone"))
    ]
    (found,) = describe_modes(suspects, [0, 0, 0], [], "c", 0.85)
    assert [source.prediction_id for source in found.mode.sources] == [f"p-{text}" for text in found.mode.exemplars]
    rest = found.mode.without(lambda source: source.user_hash == "u1")
    assert (set(rest.exemplars), {s.user_hash for s in rest.sources}) == ({"late", "gone"}, {"u0", "u2"})
    assert (rest.size, rest.name) == (3, found.mode.name)


def test_a_mode_without_words_is_named_by_its_id_not_by_a_quotation() -> None:
    (found,) = describe_modes([suspect("4711", 1, 0.1), suspect("4712", 1, 0)], [0, 0], [], "c", 0.85)
    assert found.mode.name == found.mode.mode_id


def test_noise_alone_makes_no_mode() -> None:
    assert describe_modes([suspect("a", 1, 0)], [-1], [], "c", 0.85) == []


def test_the_same_suspects_make_the_same_modes() -> None:
    suspects = [suspect("parcel late", 1, 0.1, confidence=None), suspect("parcel lost", 1, -0.1, confidence=None)]
    first, again = (describe_modes(suspects, [0, 0], [], "c", 0.85)[0].mode for _ in range(2))
    assert first == again
    assert first.mean_confidence is None
