"""Who is a suspect, who may be asked about, and what people are asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.base import Variant
from schemas.conversation import Answer, Call, FinishReason, Message, Role, ToolCall
from schemas.labels import Purpose
from schemas.predictions import Confidence, FeedbackGiven, LoggedAnswer, PredictionLogged
from schemas.task_settings import FailureSettings
from schemas.tasks import TaskKind, TaskSpec
from services.failure_miner.domain import (
    called_wrong,
    counted_since,
    doubtful_predictions,
    embedded_text,
    is_negative,
    is_suspect,
    review_question,
    seen_by_sampling,
)
from services.failure_miner.sampling import FEEDBACK, UNCALIBRATED, USUAL_THRESHOLD, ReviewQuestion, Sighting
from shared.storage.predictions import AnsweredPrediction

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
RULES = FailureSettings()
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
    return AnsweredPrediction(prediction_id, SPEC.name, SPEC.revision, NOON, CALL, REFUND, 0.2, "u1")


def doubt(prediction_id: str, purpose: Purpose = Purpose.LOW_CONFIDENCE, probability: float = 0.5) -> ReviewQuestion:
    return ReviewQuestion(prediction_id, purpose, probability)


def logged(call: Call, *answers: LoggedAnswer) -> PredictionLogged:
    return PredictionLogged(
        task=SPEC.name, task_revision=SPEC.revision, request_id="q1", call=call, answers=answers, model="base",
        variant=Variant.BASE, latency_ms=1.0,
    )  # fmt: skip


def doubted(
    number: int,
    score: float | None = 0.1,
    calibration: str | None = "c1",
    threshold: float | None = None,
    **fields: object,
) -> LoggedAnswer:
    confidence = Confidence(score=score, calibration=calibration, threshold=threshold)
    return LoggedAnswer.model_validate(
        {"prediction_id": f"p{number}", "confidence": confidence, "text": "refund", **fields}
    )


def seen(call: Call, answer: LoggedAnswer) -> Sighting | None:
    return next(iter(seen_by_sampling(logged(call, answer), SPEC)), None)


def feedback(kind: str, positive: bool | None = None, text: str | None = None) -> FeedbackGiven:
    return FeedbackGiven.model_validate(
        {"task": "t", "task_revision": "r", "prediction_id": "p", "kind": kind, "positive": positive, "text": text}
    )


def test_a_confidence_below_the_threshold_makes_a_suspect_if_it_is_calibrated() -> None:
    assert is_suspect(Confidence(score=0.59, calibration="c1"), RULES)
    assert not is_suspect(Confidence(score=0.6, calibration="c1"), RULES)
    assert not is_suspect(Confidence(score=0.59), RULES)
    assert not is_suspect(Confidence(), RULES)


@pytest.mark.parametrize(
    ("score", "asked", "suspect"),
    [(0.59, True, True), (0.6, True, False), (0.8, True, False), (0.81, False, False), (None, True, True)],
)
def test_people_are_asked_up_to_the_adapters_threshold_and_suspects_are_probably_wrong(
    score: float | None, asked: bool, suspect: bool
) -> None:
    assert is_suspect(Confidence(score=score, calibration="c1", threshold=0.8), RULES) is suspect
    sighting = seen(CALL, doubted(1, score, threshold=0.8))
    assert sighting is not None
    assert (sighting.stratum is not None) is asked


def test_what_is_above_the_adapters_threshold_is_no_suspect_however_low() -> None:
    assert not is_suspect(Confidence(score=0.5, calibration="c1", threshold=0.4), RULES)
    assert is_suspect(Confidence(score=0.4, calibration="c1", threshold=0.4), RULES)


def test_a_threshold_of_the_task_wins_over_the_adapters() -> None:
    confidence = Confidence(score=0.5, calibration="c1", threshold=0.8)
    assert is_suspect(confidence, RULES)
    assert not is_suspect(confidence, FailureSettings(confidence_threshold=0.5))
    assert is_suspect(confidence.model_copy(update={"threshold": 0.1}), FailureSettings(confidence_threshold=0.51))
    assert is_suspect(confidence.model_copy(update={"score": 0.7}), FailureSettings(confidence_threshold=0.75))


def test_an_adapter_without_a_threshold_has_the_usual_one() -> None:
    assert RULES.confidence_threshold is None
    assert is_suspect(Confidence(score=USUAL_THRESHOLD - 1e-9, calibration="c1"), RULES)
    assert not is_suspect(Confidence(score=USUAL_THRESHOLD, calibration="c1"), RULES)


def test_a_threshold_without_a_calibration_makes_no_suspect() -> None:
    assert not is_suspect(Confidence(score=0.1, threshold=0.8), RULES)


@pytest.mark.parametrize("score", [None, 0.01, 0.63, 0.99])
def test_without_a_calibration_the_threshold_chooses_nothing(score: float | None) -> None:
    """On forty intents the base was right in 4 % of its answers, with a median confidence of .73."""
    sighting = seen(CALL, doubted(1, score, calibration=None))
    assert sighting is not None
    assert sighting.stratum == UNCALIBRATED


@pytest.mark.parametrize(
    ("score", "stratum"), [(0.0, "confidence .0"), (0.59, "confidence .5"), (0.6, None), (1, None)]
)
def test_with_a_calibration_the_threshold_chooses(score: float, stratum: str | None) -> None:
    sighting = seen(CALL, doubted(1, score))
    assert sighting is not None
    assert (sighting.stratum, sighting.auditable) == (stratum, True)


def test_each_answer_of_a_request_is_a_prediction_of_its_own() -> None:
    calls = (LOOK_UP.model_copy(update={"arguments": '{"number": "4712"}'}),)
    event = logged(WITH_TOOLS, doubted(1, text="", tool_calls=calls), doubted(2, 0.9), doubted(3, None))
    first, third = doubtful_predictions(event, RULES)
    assert (first.prediction_id, third.prediction_id) == ("p1", "p3")
    assert (first.confidence, third.confidence) == (0.1, None)
    assert first.call == third.call == WITH_TOOLS
    assert first.answer.plain == '[{"name":"find_order","arguments":"{\\"number\\": \\"4712\\"}"}]'
    assert embedded_text(first.call).splitlines()[-1] == "And 4712?"


BROKEN_OFF = (FinishReason.CLIENT_LEFT, FinishReason.UPSTREAM_CUT, FinishReason.GATEWAY_STOPPED)


@pytest.mark.parametrize("reason", BROKEN_OFF)
def test_an_answer_that_was_broken_off_is_no_suspect(reason: FinishReason) -> None:
    assert doubtful_predictions(logged(CALL, doubted(1, finish_reason=reason)), RULES) == []


@pytest.mark.parametrize("reason", BROKEN_OFF)
def test_nobody_is_asked_about_an_answer_that_was_broken_off(reason: FinishReason) -> None:
    assert seen(CALL, doubted(1, finish_reason=reason)) is None


@pytest.mark.parametrize("reason", [None, FinishReason.STOP, FinishReason.LENGTH, FinishReason.TOOL_CALLS])
def test_an_answer_that_ended_or_ran_into_its_limit_is_asked_about(reason: FinishReason | None) -> None:
    event = logged(WITH_TOOLS, doubted(1, finish_reason=reason))
    assert [sighting.stratum for sighting in seen_by_sampling(event, SPEC)] == ["confidence .1"]
    (found,) = doubtful_predictions(event, RULES)
    assert review_question(SPEC, found, doubt("p1")).answers[0].finish_reason == reason


@pytest.mark.parametrize(
    ("call", "answer", "auditable"),
    [
        (CALL.model_copy(update={"truncated": True}), {}, False),
        (CALL, {"truncated": True}, False),
        (CALL, {"refusal": "I cannot help."}, True),
        (CALL, {"finish_reason": FinishReason.CONTENT_FILTER}, True),
    ],
)
def test_what_can_never_be_trained_on_is_a_suspect_and_only_the_audit_asks_about_it_if_a_person_can_judge_it(
    call: Call, answer: dict[str, Any], auditable: bool
) -> None:
    (found,) = doubtful_predictions(logged(call, doubted(1, **answer)), RULES)
    sighting = seen(call, doubted(1, **answer))
    assert (sighting is not None) == auditable
    assert sighting is None or sighting.stratum is None
    assert [s.stratum for s in called_wrong(found, SPEC)] == [FEEDBACK], "unless a user called it wrong"


def test_nobody_is_asked_about_an_older_revision() -> None:
    older = logged(CALL, doubted(1)).model_copy(update={"task_revision": "older"})
    assert seen_by_sampling(older, SPEC) == []
    (found,) = doubtful_predictions(older, RULES)
    assert called_wrong(found, SPEC) == []


def test_a_conversation_too_long_for_a_question_is_cut_and_says_so() -> None:
    long = Call(messages=(*MESSAGES, Message(role=Role.USER, content="late " * 200_000)))
    (found,) = doubtful_predictions(logged(long, doubted(1, text="sorry " * 200_000)), RULES)
    question = review_question(SPEC, found, doubt("p1", Purpose.FEEDBACK, 1.0))
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
    first, again = (review_question(SPEC, answered("p1"), doubt("p1")) for _ in range(2))
    assert (first.event_id, first.request_id) == (again.event_id, again.request_id)
    assert first.inclusion_probability == 0.5
    assert first.labels == SPEC.labels
    assert first.user_hash == "u1"
    assert (first.call, first.answers) == (CALL, (REFUND,))


@pytest.mark.parametrize(("author", "named"), [("u1", None), ("u2", "u2"), (None, None)])
def test_a_question_names_who_wrote_its_suggestion_if_it_is_not_who_was_answered(
    author: str | None, named: str | None
) -> None:
    wrote = FeedbackGiven(
        task=SPEC.name, task_revision=SPEC.revision, prediction_id="p1", kind="edited", text="cancel", user_hash=author
    )
    theirs = replace(answered("p1"), user_hash="u1")
    question = review_question(SPEC, theirs, doubt("p1", Purpose.FEEDBACK), wrote)
    assert (question.suggestion, question.user_hash, question.suggested_by) == ("cancel", "u1", named)
    of_nobody = review_question(SPEC, replace(theirs, user_hash=None), doubt("p1", Purpose.FEEDBACK), wrote)
    assert (of_nobody.user_hash, of_nobody.suggested_by) == (author, None)


def test_the_overlap_share_of_questions_is_put_to_two_people() -> None:
    spec = SPEC.model_copy(update={"failures": FailureSettings(overlap_share=0.25)})
    asked = [review_question(spec, answered(f"p{i}"), doubt(f"p{i}")) for i in range(2_000)]
    assert {q.overlap for q in asked} == {1, 2}
    assert sum(q.overlap == 2 for q in asked) / 2_000 == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("retention", "max_age", "days"), [(None, None, None), (30, None, 30), (None, 90, 90), (30, 90, 30)]
)
def test_questions_are_counted_as_far_back_as_their_answers_are_stored_too(
    retention: int | None, max_age: int | None, days: int | None
) -> None:
    dataset = SPEC.dataset.model_copy(update={"max_age_days": max_age})
    spec = SPEC.model_copy(update={"retention_days": retention, "dataset": dataset})
    assert counted_since(spec, NOON) == (None if days is None else NOON - timedelta(days=days))


@pytest.mark.parametrize("purpose", [Purpose.AUDIT, Purpose.LOW_CONFIDENCE, Purpose.UNCALIBRATED])
def test_the_questions_of_a_random_sample_are_equally_urgent(purpose: Purpose) -> None:
    """People answer the most urgent first: were it a matter of answers, chance would not choose what they leave."""
    asked = [
        review_question(SPEC, replace(answered(f"p{i}"), confidence=i / 10), doubt(f"p{i}", purpose)) for i in range(9)
    ]
    assert len({question.priority for question in asked}) == 1


def test_complaints_come_first_then_the_audit_whose_questions_have_ids_of_their_own() -> None:
    purposes = (Purpose.FEEDBACK, Purpose.AUDIT, Purpose.LOW_CONFIDENCE)
    complaint, audited, doubted = (review_question(SPEC, answered("p0"), doubt("p0", purpose)) for purpose in purposes)
    assert complaint.priority > audited.priority > doubted.priority
    assert complaint.request_id == doubted.request_id != audited.request_id
