"""Events encoded without pydantic are the events that pydantic would encode."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import MAX_TEXT, Message, Role, Variant
from schemas.predictions import Confidence, PredictionLogged, RequestObserved
from services.gateway.formats.api import ApiAnswer, Choice
from services.gateway.recording.events import event_id_text, prediction_logged, request_observed
from services.gateway.recording.request import InFlightRequest
from services.gateway.routing.arms import Arm
from shared.identity import event_id
from shared.model.confidence import Measure
from shared.spool import Record

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=200)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
PROBABILITIES = st.floats(0.0, 1.0)
COUNTS = st.integers(0, 2**40)
LATENCIES = st.floats(0.0, 1e9)
MESSAGES = st.lists(
    st.builds(lambda role, content: {"role": role.value, "content": content}, st.sampled_from(Role), TEXTS),
    min_size=1, max_size=5,
)  # fmt: skip
CONFIDENCES = st.fixed_dictionaries(
    {}, optional={"score": PROBABILITIES, "logprob": st.floats(-1e6, 0.0), "tokens": COUNTS, "margin": PROBABILITIES}
)
FIELDS: dict[str, Any] = {
    "task": st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True), "revision": NAMES, "prediction_id": NAMES,
    "variant": st.sampled_from(Variant), "adapter": st.none() | NAMES, "user_hash": st.none() | NAMES,
}  # fmt: skip


def in_flight(fields: dict[str, Any], messages: Any = (), base_model: str = "base") -> InFlightRequest:
    """A request as the recorder gets it, with fakes of its task and its API's format."""
    task: Any = SimpleNamespace(
        name=fields["task"], revision=fields["revision"], spec=SimpleNamespace(base_model=base_model)
    )
    parsed: Any = SimpleNamespace(messages_for_event=lambda number: messages)
    exchange: Any = None
    return InFlightRequest(exchange, task, parsed, [fields["prediction_id"]], fields["user_hash"], ())


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
    assert (record.topic, record.key) == (topic, event.prediction_id.encode())


@given(
    fields=st.fixed_dictionaries(FIELDS), messages=MESSAGES, text=TEXTS, model=NAMES, confidence=CONFIDENCES,
    latency_ms=LATENCIES, counts=st.tuples(COUNTS, COUNTS), finish_reason=st.none() | NAMES,
)  # fmt: skip
def test_a_prediction_equals_pydantics(
    fields: dict[str, Any], messages: list[dict[str, str]], text: str, model: str, confidence: dict[str, Any],
    latency_ms: float, counts: tuple[int, int], finish_reason: str | None,
) -> None:  # fmt: skip
    answer = ApiAnswer([Choice(text, (), finish_reason)], *counts)
    record = prediction_logged(
        in_flight(fields, messages, model), arm_of(fields), answer, 0, Measure(**confidence), latency_ms
    )
    event = PredictionLogged(
        event_id=event_id("predictions.logged", fields["prediction_id"]), task=fields["task"],
        task_revision=fields["revision"], prediction_id=fields["prediction_id"],
        messages=tuple(Message(**message) for message in messages), answer=text, model=fields["adapter"] or model,
        adapter=fields["adapter"], variant=fields["variant"], confidence=Confidence(**confidence),
        user_hash=fields["user_hash"], latency_ms=latency_ms, prompt_tokens=counts[0], answer_tokens=counts[1],
        finish_reason=finish_reason,
    )  # fmt: skip
    _same(record, event, "predictions.logged.v1")


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
        adapter=fields["adapter"], user_hash=fields["user_hash"], status=status, latency_ms=latency_ms,
        confidence=confidence,
    )  # fmt: skip
    _same(record, event, "requests.observed.v1")


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_fast_event_id_equals_the_shared_one(parts: list[str]) -> None:
    assert event_id_text(*parts) == str(event_id(*parts))


def test_texts_too_long_for_an_event_are_cut() -> None:
    fields = {"task": "t", "revision": "r", "prediction_id": "p", "user_hash": None}
    answer = ApiAnswer([Choice("a\x00" + "b" * 40_000, (), None)], 0, 0)
    request = in_flight(fields, [{"role": "user", "content": "x"}])
    record = prediction_logged(request, Arm(Variant.BASE), answer, 0, Measure(), 1.0, "f" * 300)
    event = PredictionLogged.model_validate_json(record.value)
    assert event.answer == "a" + "b" * (MAX_TEXT - 1)
    assert event.finish_reason == "f" * 200
