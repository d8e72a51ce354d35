"""Events written without pydantic are the events that pydantic would write."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from schemas.base import MAX_TEXT, Message, Role, Variant
from schemas.predictions import Confidence, PredictionLogged, RequestObserved
from services.gateway.recording.events import event_id_text, observation, prediction
from shared.identity import event_id
from shared.spool import Record

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=200)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=200)
PROBABILITIES = st.floats(0.0, 1.0)
COUNTS = st.integers(0, 2**40)
TURNS = st.lists(
    st.builds(lambda role, content: {"role": role.value, "content": content}, st.sampled_from(Role), TEXTS),
    min_size=1, max_size=5,
)  # fmt: skip
SURE = st.fixed_dictionaries(
    {}, optional={"score": PROBABILITIES, "logprob": st.floats(-1e6, 0.0), "tokens": COUNTS, "margin": PROBABILITIES}
)
FACTS: dict[str, Any] = {
    "task": st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True), "revision": NAMES, "prediction_id": NAMES,
    "variant": st.sampled_from(Variant), "adapter": st.none() | NAMES, "user_hash": st.none() | NAMES,
    "latency_ms": st.floats(0.0, 1e9),
}  # fmt: skip


def _is_now(event: PredictionLogged | RequestObserved) -> None:
    assert abs(datetime.now(UTC) - event.occurred_at) < timedelta(seconds=5)


def _same(record: Record, event: Any, topic: str) -> None:
    read = type(event).model_validate_json(record.value)
    _is_now(read)
    expected = event.model_copy(update={"occurred_at": read.occurred_at})
    assert read == expected
    assert read.event_id.version == 5
    # The same words in the same order, and no field that pydantic would write is missing.
    assert orjson.loads(record.value).keys() == orjson.loads(expected.model_dump_json()).keys()
    assert list(orjson.loads(record.value)) == list(orjson.loads(expected.model_dump_json()))
    assert (record.topic, record.key) == (topic, event.prediction_id.encode())


@given(
    facts=st.fixed_dictionaries(FACTS), messages=TURNS, answer=TEXTS, model=NAMES, sure=SURE, prompt_tokens=COUNTS,
    answer_tokens=COUNTS, finish_reason=st.none() | NAMES,
)  # fmt: skip
def test_a_prediction_is_what_pydantic_would_have_made(
    facts: dict[str, Any], messages: list[dict[str, str]], answer: str, model: str, sure: dict[str, Any],
    prompt_tokens: int, answer_tokens: int, finish_reason: str | None,
) -> None:  # fmt: skip
    record = prediction(
        **facts, messages=messages, answer=answer, model=model, confidence=sure, prompt_tokens=prompt_tokens,
        answer_tokens=answer_tokens, finish_reason=finish_reason,
    )  # fmt: skip
    revision = facts.pop("revision")
    event = PredictionLogged(
        event_id=event_id("predictions.logged", facts["prediction_id"]), **facts, task_revision=revision,
        messages=tuple(Message(**turn) for turn in messages), answer=answer, model=model, confidence=Confidence(**sure),
        prompt_tokens=prompt_tokens, answer_tokens=answer_tokens, finish_reason=finish_reason,
    )  # fmt: skip
    _same(record, event, "predictions.logged.v1")


@given(facts=st.fixed_dictionaries(FACTS), status=st.integers(100, 599), confidence=st.none() | PROBABILITIES)
def test_an_observation_is_what_pydantic_would_have_made(
    facts: dict[str, Any], status: int, confidence: float | None
) -> None:
    record = observation(**facts, status=status, confidence=confidence)
    revision = facts.pop("revision")
    own = event_id("requests.observed", facts["prediction_id"], facts["variant"])
    event = RequestObserved(event_id=own, **facts, task_revision=revision, status=status, confidence=confidence)
    _same(record, event, "requests.observed.v1")


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_cheap_event_id_is_the_event_id(parts: list[str]) -> None:
    assert event_id_text(*parts) == str(event_id(*parts))


def test_what_no_event_can_carry_is_cut_to_what_it_can() -> None:
    record = prediction(
        task="t", revision="r", prediction_id="p", messages=[{"role": "user", "content": "x"}],
        answer="a\x00" + "b" * 40_000, model="m", adapter=None, variant=Variant.BASE, confidence={}, user_hash=None,
        latency_ms=1.0, prompt_tokens=0, answer_tokens=0, finish_reason="f" * 300,
    )  # fmt: skip
    event = PredictionLogged.model_validate_json(record.value)
    assert event.answer == "a" + "b" * (MAX_TEXT - 1)
    assert event.finish_reason == "f" * 200
