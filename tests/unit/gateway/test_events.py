"""Events encoded without pydantic are the events that pydantic would encode."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import MAX_COUNT, MAX_EVENT_BYTES, Variant
from schemas.conversation import Call, FinishReason
from schemas.predictions import Confidence, LoggedAnswer, PredictionLogged, RequestObserved, Usage
from services.gateway.formats.api import TokenUsage
from services.gateway.recording import builder
from services.gateway.recording.events import request_observed
from services.gateway.recording.request import Caller, InFlightRequest
from services.gateway.routing.arms import Arm
from shared.answers.measure import ConfidenceMeasure
from shared.conversation import truncation
from shared.http import HttpError
from shared.identity import event_id
from shared.spool import Record

CHARACTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00")
TEXTS = st.text(CHARACTERS, max_size=200)
NAMES = st.text(CHARACTERS, min_size=1, max_size=200)
PROBABILITIES = st.floats(0.0, 1.0)
COUNTS = st.integers(0, MAX_COUNT)
LATENCIES = st.floats(0.0, 1e9)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e9, 1e9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
CALLS = st.lists(st.fixed_dictionaries({"name": NAMES, "arguments": TEXTS}, optional={"id": NAMES}), max_size=2)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.from_regex(r"[A-Za-z][A-Za-z0-9_-]{0,31}", fullmatch=True)},
        optional={
            "content": st.none() | TEXTS | st.lists(st.fixed_dictionaries({"type": NAMES, "text": TEXTS}), max_size=2),
            "tool_calls": CALLS, "tool_call_id": NAMES, "name": NAMES, "reasoning": TEXTS, "refusal": TEXTS,
        },
    ),
    min_size=1, max_size=4,
)  # fmt: skip
CALL = st.fixed_dictionaries(
    {"api": st.sampled_from(["chat", "completions", "responses", "messages"]), "messages": MESSAGES},
    optional={
        "tools": st.lists(st.dictionaries(TEXTS, JSON, max_size=2), max_size=2), "tool_choice": JSON,
        "response_format": JSON, "parameters": st.dictionaries(TEXTS, JSON, max_size=3), "stream": st.booleans(),
    },
)  # fmt: skip
CONFIDENCES = st.fixed_dictionaries(
    {}, optional={"score": PROBABILITIES, "logprob": st.floats(-1e6, 0.0), "tokens": COUNTS}
)
ANSWERS = st.lists(
    st.builds(
        builder.RecordedAnswer, prediction_id=NAMES, text=TEXTS, tool_calls=CALLS, refusal=st.none() | TEXTS,
        reasoning=st.none() | TEXTS, finish_reason=st.sampled_from([*FinishReason, None, "abort"]),
        confidence=st.builds(lambda fields: ConfidenceMeasure(**fields), CONFIDENCES), tokens=COUNTS,
    ),
    min_size=1, max_size=3,
)  # fmt: skip
TASK_NAMES = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
FIELDS: dict[str, Any] = {
    "task": TASK_NAMES, "revision": NAMES, "prediction_id": st.text(CHARACTERS, max_size=150).map("task.{}.mac".format),
    "variant": st.sampled_from(Variant), "adapter": st.none() | NAMES, "user_hash": st.none() | NAMES,
    "subject": st.none() | NAMES,
}  # fmt: skip


def in_flight(fields: dict[str, Any]) -> InFlightRequest:
    """A request as the recorder gets it, with fakes of its task and its API's format."""
    task: Any = SimpleNamespace(name=fields["task"], revision=fields["revision"])
    nothing: Any = None
    return InFlightRequest(
        nothing, task, nothing, [], [fields["prediction_id"]], Caller(fields["user_hash"], subject=fields["subject"])
    )


def arm_of(fields: dict[str, Any]) -> Arm:
    return Arm(fields["variant"], fields["adapter"])


def _is_now(event: PredictionLogged | RequestObserved) -> None:
    assert abs(datetime.now(UTC) - event.occurred_at) < timedelta(seconds=5)


def _same(record: Record, event: Any, topic: str) -> None:
    read = type(event).model_validate_json(record.value)
    _is_now(read)
    expected = event.model_copy(update={"occurred_at": read.occurred_at})
    assert read == expected
    assert read.event_id.version == 5
    # The same fields in the same order, none missing.
    assert list(orjson.loads(record.value)) == list(orjson.loads(expected.model_dump_json()))
    key = event.request_id if isinstance(event, PredictionLogged) else event.prediction_id
    assert (record.topic, record.key) == (topic, key.encode())


@given(
    call=CALL, answers=ANSWERS, counts=st.tuples(COUNTS, COUNTS, COUNTS, COUNTS),
    own=st.fixed_dictionaries({
        "task": TASK_NAMES, "task_revision": NAMES, "request_id": NAMES, "model": NAMES, "adapter": st.none() | NAMES,
        "variant": st.sampled_from(Variant), "latency_ms": LATENCIES, "user_hash": st.none() | NAMES,
        "session_hash": st.none() | NAMES, "subject": st.none() | NAMES, "app": st.none() | NAMES,
        "metadata": st.dictionaries(st.text(CHARACTERS, max_size=64), TEXTS, max_size=3),
    }),
)  # fmt: skip
def test_a_prediction_equals_pydantics(
    call: dict[str, Any], answers: list[builder.RecordedAnswer], counts: tuple[int, int, int, int], own: dict[str, Any]
) -> None:
    request = builder.LoggedRequest(call=builder.encode_call(call), usage=TokenUsage(*counts), **own)
    event = PredictionLogged(
        event_id=event_id("predictions.logged", own["request_id"]), call=Call.model_validate(call),
        answers=tuple(_logged(answer) for answer in answers), usage=Usage(**TokenUsage(*counts)._asdict()),
        gateway_version=builder.GATEWAY_VERSION, **own,
    )  # fmt: skip
    _same(builder.prediction_logged(request, answers), event, "predictions.logged.v1")


def _logged(answer: builder.RecordedAnswer) -> LoggedAnswer:
    return LoggedAnswer.model_validate(
        {
            "prediction_id": answer.prediction_id, "text": answer.text, "tool_calls": answer.tool_calls,
            "refusal": answer.refusal, "reasoning": answer.reasoning, "tokens": answer.tokens,
            "finish_reason": "other" if answer.finish_reason == "abort" else answer.finish_reason,
            "confidence": Confidence(**answer.confidence.as_dict()),
        }
    )  # fmt: skip


@given(
    fields=st.fixed_dictionaries(FIELDS), status=st.integers(100, 599), latency_ms=LATENCIES,
    confidence=st.none() | PROBABILITIES,
)  # fmt: skip
def test_an_observation_equals_pydantics(
    fields: dict[str, Any], status: int, latency_ms: float, confidence: float | None
) -> None:
    record = request_observed(in_flight(fields), arm_of(fields), status, latency_ms, confidence)
    event = RequestObserved(
        event_id=event_id("requests.observed", fields["prediction_id"], fields["variant"]), task=fields["task"],
        task_revision=fields["revision"], prediction_id=fields["prediction_id"], variant=fields["variant"],
        adapter=fields["adapter"], user_hash=fields["user_hash"], subject=fields["subject"], status=status,
        latency_ms=latency_ms, confidence=confidence,
    )  # fmt: skip
    _same(record, event, "requests.observed.v1")


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_fast_event_id_equals_the_shared_one(parts: list[str]) -> None:
    assert builder.event_id_text(*parts) == str(event_id(*parts))


def _request(call: dict[str, Any], **fields: Any) -> builder.LoggedRequest:
    return builder.LoggedRequest("t", "r", "request", builder.encode_call(call, **fields), "model")


@pytest.mark.parametrize("text", ["x", "é", "\x01", "日", "\U0001f600"])
@pytest.mark.parametrize("limit", [64 * 1024, MAX_EVENT_BYTES])
def test_an_event_of_any_length_fits_and_what_is_cut_is_marked(text: str, limit: int) -> None:
    call = {"messages": [{"role": "user", "content": text * limit}, {"role": "user", "content": "And now?"}]}
    answers = [builder.RecordedAnswer(str(n), text * limit, reasoning=text * limit) for n in range(3)]
    record = builder.prediction_logged(_request(call, max_bytes=limit), answers, limit)
    assert limit * 0.9 < len(record.value) < limit + 4_096  # The envelope is beside the texts.
    event = PredictionLogged.model_validate_json(record.value)
    assert event.call.truncated
    assert event.call.messages[1].content == "And now?"
    assert all(answer.truncated for answer in event.answers)


@pytest.mark.parametrize(("answers", "limit"), [(128, MAX_EVENT_BYTES), (128, 64 * 1024), (1, 16 * 1024)])
def test_confidences_of_very_many_fields_are_within_an_events_size(answers: int, limit: int) -> None:
    fields = {f"{number:03}.{'a' * 196}": 0.123456789012345 for number in range(200)}
    unsure = ConfidenceMeasure(0.5, -1.0, 10, fields=fields)
    logged = [builder.RecordedAnswer(str(n), "x" * 100, confidence=unsure) for n in range(answers)]
    request = _request({"messages": [{"role": "user", "content": "x" * limit}]}, max_bytes=limit)
    record = builder.prediction_logged(request, logged, limit)
    assert len(record.value) < limit + 512 * (answers + 2)
    event = PredictionLogged.model_validate_json(record.value)
    assert {answer.confidence.score for answer in event.answers} == {0.5}
    assert {answer.confidence.fields is None for answer in event.answers} == {True}


def test_a_confidence_of_fields_that_fits_stays_beside_a_text_that_is_cut() -> None:
    fields = {f"field{number}": 0.5 for number in range(200)}
    answer = builder.RecordedAnswer(
        "p", "x" * MAX_EVENT_BYTES, confidence=ConfidenceMeasure(0.5, -1.0, 10, fields=fields)
    )
    record = builder.prediction_logged(_request({"messages": [{"role": "user", "content": "x"}]}), [answer])
    assert len(record.value) < MAX_EVENT_BYTES + 1_024
    (logged,) = PredictionLogged.model_validate_json(record.value).answers
    assert (logged.confidence.fields, logged.truncated) == (fields, True)


def test_what_fits_is_not_marked() -> None:
    call = {"messages": [{"role": "user", "content": "x" * 100_000}] * 10}
    event = PredictionLogged.model_validate_json(
        builder.prediction_logged(_request(call), [builder.RecordedAnswer("p", "y" * 200_000)]).value
    )
    assert not event.call.truncated
    assert not event.answers[0].truncated
    assert event.answers[0].text == "y" * 200_000


def test_very_many_messages_fit_without_those_of_the_middle() -> None:
    messages = [{"role": "user", "content": str(number)} for number in range(200_000)]
    call = Call.model_validate_json(builder.encode_call({"messages": messages}))
    assert call.truncated
    assert (call.messages[0].content, call.messages[-1].content) == ("0", "199999")


def test_cut_arguments_of_a_tool_call_are_still_json() -> None:
    long = orjson.dumps({"text": "x" * MAX_EVENT_BYTES}).decode()
    answers = [builder.RecordedAnswer("p", "", [{"name": "find", "arguments": long, "id": "c"}])]
    record = builder.prediction_logged(_request({"messages": [{"role": "user", "content": "x"}]}), answers)
    (answer,) = PredictionLogged.model_validate_json(record.value).answers
    assert answer.truncated
    assert isinstance(orjson.loads(answer.tool_calls[0].arguments), str)


def test_a_call_that_is_nested_too_deeply_to_be_encoded_is_a_400() -> None:
    deep: Any = "x"
    for _ in range(300):
        deep = [deep]
    with pytest.raises(HttpError) as raised:
        builder.encode_call({"messages": [], "tools": deep})
    assert raised.value.status == 400


def test_very_many_messages_of_a_part_each_are_cut_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []
    size = truncation._size
    monkeypatch.setattr(truncation, "_size", lambda value: encoded.append(size(value)) or encoded[-1])
    part = [{"type": "text", "text": "x"}]
    call = Call.model_validate(truncation.cut_call({"messages": [{"role": "user", "content": part}] * 30_000}, 500_000))
    assert call.truncated and len(call.messages) > 1_000
    assert sum(encoded) < 20 * 30_000 * 60


@pytest.mark.parametrize(
    "large",
    [
        {"role": "user", "content": [{"type": "text", "text": f"word {n}"} for n in range(120_000)]},
        {"role": "assistant", "content": None,
         "tool_calls": [{"id": f"call_{n}", "name": "find", "arguments": "{}"} for n in range(90_000)]},
    ],
    ids=["parts", "calls"],
)  # fmt: skip
@pytest.mark.parametrize("place", [0, 1])
def test_a_message_of_very_many_parts_or_calls_fits_without_those_of_the_middle(
    large: dict[str, Any], place: int
) -> None:
    messages = [{"role": "user", "content": "And now?"}]
    messages.insert(place, large)
    encoded = builder.encode_call({"messages": messages})
    assert len(encoded) <= MAX_EVENT_BYTES
    call = Call.model_validate_json(encoded)
    assert call.truncated
    assert call.messages[1 - place].content == "And now?"
    items = call.messages[place].content or call.messages[place].tool_calls
    assert len(items) > 20_000
