"""Who is a suspect, what people are asked, what modes are called, and how they keep their identity."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from schemas.base import Variant
from schemas.conversation import Answer, Call, FinishReason, Message, Role, ToolCall
from schemas.labels import Purpose
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged
from schemas.tasks import FailureSettings, TaskKind, TaskSpec
from services.failure_miner.domain import (
    AnsweredPrediction,
    StoredMode,
    Suspect,
    describe_modes,
    doubtful_predictions,
    embedded_text,
    is_negative,
    is_suspect,
    match_modes,
    may_be_asked,
    review_question,
    same_answer,
)
from services.failure_miner.naming import name_words

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(name="support-desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "cancel"))
MESSAGES = (Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content="where is it"))
CALL = Call(messages=MESSAGES)
REFUND = Answer(text="refund")
LOOK_UP = ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1")
WITH_TOOLS = Call(
    messages=(
        *MESSAGES,
        Message(role=Role.ASSISTANT, tool_calls=(LOOK_UP,)),
        Message(role=Role.TOOL, content="on its way", tool_call_id="call_1"),
        Message(role=Role.ASSISTANT, content="It is on its way."),
        Message(role=Role.USER, content="And 4712?"),
    ),
    tools=({"type": "function", "function": {"name": "find_order"}},),
)


def answered(prediction_id: str) -> AnsweredPrediction:
    return AnsweredPrediction(prediction_id, SPEC.name, "r", NOON, CALL, REFUND, 0.2, "u1")


def logged(call: Call, *answers: LoggedAnswer) -> PredictionLogged:
    return PredictionLogged(
        task=SPEC.name, task_revision="r", request_id="q1", call=call, answers=answers, model="base",
        variant=Variant.BASE, latency_ms=1.0,
    )  # fmt: skip


def doubted(number: int, score: float | None = 0.1, **fields: object) -> LoggedAnswer:
    return LoggedAnswer.model_validate(
        {"prediction_id": f"p{number}", "confidence": Confidence(score=score), "text": "refund", **fields}
    )


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


def test_each_answer_of_a_request_is_a_prediction_of_its_own() -> None:
    calls = (LOOK_UP.model_copy(update={"arguments": '{"number": "4712"}'}),)
    event = logged(WITH_TOOLS, doubted(1, text="", tool_calls=calls), doubted(2, 0.9), doubted(3, None))
    first, third = doubtful_predictions(event, 0.6)
    assert (first.prediction_id, third.prediction_id) == ("p1", "p3")
    assert (first.confidence, third.confidence) == (0.1, None)
    assert first.call == third.call == WITH_TOOLS
    assert first.answer.plain == '[{"name":"find_order","arguments":"{\\"number\\": \\"4712\\"}"}]'
    assert embedded_text(first.call).splitlines()[-1] == "And 4712?"


@pytest.mark.parametrize("reason", [FinishReason.CLIENT_LEFT, FinishReason.UPSTREAM_CUT])
def test_an_answer_that_was_broken_off_is_no_suspect(reason: FinishReason) -> None:
    assert doubtful_predictions(logged(CALL, doubted(1, finish_reason=reason)), 0.6) == []


@pytest.mark.parametrize("reason", [None, FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS])
def test_an_answer_that_ended_or_ran_into_its_limit_is_asked_about(reason: FinishReason | None) -> None:
    (found,) = doubtful_predictions(logged(WITH_TOOLS, doubted(1, finish_reason=reason)), 0.6)
    assert may_be_asked(found, Purpose.LOW_CONFIDENCE)
    assert review_question(SPEC, found, Purpose.LOW_CONFIDENCE).answers[0].finish_reason == reason


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (CALL.model_copy(update={"truncated": True}), {}),
        (CALL, {"truncated": True}),
        (CALL, {"refusal": "I cannot help."}),
        (CALL, {"finish_reason": FinishReason.CONTENT_FILTER}),
    ],
)
def test_what_can_never_be_trained_on_is_a_suspect_but_asked_about_only_if_a_user_called_it_wrong(
    call: Call, answer: dict[str, Any]
) -> None:
    (found,) = doubtful_predictions(logged(call, doubted(1, **answer)), 0.6)
    assert not may_be_asked(found, Purpose.LOW_CONFIDENCE)
    assert may_be_asked(found, Purpose.FEEDBACK)


def test_a_conversation_too_long_for_a_question_is_cut_and_says_so() -> None:
    long = Call(messages=(*MESSAGES, Message(role=Role.USER, content="late " * 200_000)))
    (found,) = doubtful_predictions(logged(long, doubted(1, text="sorry " * 200_000)), 0.6)
    question = review_question(SPEC, found, Purpose.FEEDBACK)
    assert (question.call.truncated, question.answers[0].truncated) == (True, True)
    assert len(question.model_dump_json()) < 600_000
    assert len(embedded_text(found.call)) == 2_000


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
    assert (first.call, first.answers) == (CALL, (REFUND,))


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
