"""A limit of the event contract that a client exceeds is a 400 that names the field and the limit, never a 500."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from itertools import product
from typing import Any, NamedTuple

import pytest

from schemas.base import MAX_EVENT_BYTES, MAX_TEXT, Event
from schemas.predictions import FeedbackGiven, PredictionLogged
from services.gateway.formats.validation import MAX_FEEDBACK_TEXT
from services.gateway.settings import BodyLimits
from tests.unit.gateway.conftest import Gateway, serving

USER = {"role": "user", "content": "lost my card"}
PREDICTION = {"task": "haiku", "messages": [USER], "answer": "a frog", "latency_ms": 12.5}
FEEDBACK = {"prediction_id": "haiku/own", "kind": "edited", "text": "a pond"}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving(limits=BodyLimits()) as gateway:
        yield gateway


class Field(NamedTuple):
    """A field of a request that becomes a limited field of the event: its greatest value, and one over that."""

    name: str
    greatest: Any
    over: Any
    limit: str
    param: str = ""


def text(name: str, limit: int) -> Field:
    return Field(name, "x" * limit, "x" * (limit + 1), str(limit))


def messages(**fields: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "x", **fields}]


def calls(**fields: Any) -> list[dict[str, Any]]:
    function = {"name": fields.pop("name", "find"), "arguments": fields.pop("arguments", "{}")}
    return [{"type": "function", "function": function, **fields}]


LONG = "x" * (MAX_TEXT + 1)
NAME = "x" * 257
FROM_OUTSIDE: dict[type[Event], dict[str, Field]] = {
    FeedbackGiven: {
        "prediction_id": Field("prediction_id", "haiku/" + "x" * 558, "haiku/" + "x" * 559, "564"),
        "text": text("text", MAX_FEEDBACK_TEXT),
        "user_hash": text("user", 500),
    },
    PredictionLogged: {
        "answers.prediction_id": text("prediction_id", 500),
        "model": text("model", 200),
        "adapter": text("adapter", 200),
        "answers.confidence.score": Field("confidence", 1, 1.000001, "from 0 to 1"),
        "answers.confidence.logprob": Field("logprob", 0, 0.000001, "from -1e+09 to 0"),
        "usage.prompt_tokens": Field("prompt_tokens", 2**31 - 1, 2**31, "from 0 to 2.1"),
        "usage.answer_tokens": Field("answer_tokens", 2**31 - 1, 2**31, "from 0 to 2.1"),
        "user_hash": text("user", 500),
        "session_hash": text("session", 500),
        "latency_ms": Field("latency_ms", 0, -0.000001, "from 0 to 1e+09"),
    },
}
CUT: dict[str, tuple[str, Any]] = {
    "answers.text": ("answer", LONG),
    "answers.reasoning": ("reasoning", LONG),
    "answers.refusal": ("refusal", LONG),
    "answers.tool_calls.arguments": ("tool_calls", calls(arguments=LONG)),
    "answers.tool_calls.id": ("tool_calls", calls(id=NAME)),
    "answers.tool_calls.name": ("tool_calls", calls(name=NAME)),
    "call.messages.content": ("messages", messages(content=LONG)),
    "call.messages.content.text": ("messages", messages(content=[{"type": "text", "text": LONG}])),
    "call.messages.content.type": ("messages", messages(content=[{"type": NAME}])),
    "call.messages.content.media.media_type": (
        "messages", messages(content=[{"type": "image_url", "image_url": {"url": f"data:{NAME};base64,aGk="}}])
    ),
    "call.messages.name": ("messages", messages(name=NAME)),
    "call.messages.role": ("messages", messages(role="r" * 33)),
    "call.messages.reasoning": ("messages", messages(reasoning=LONG)),
    "call.messages.refusal": ("messages", messages(refusal=LONG)),
    "call.messages.tool_call_id": ("messages", messages(tool_call_id=NAME)),
    "call.messages.tool_calls.arguments": ("messages", messages(tool_calls=calls(arguments=LONG))),
    "call.messages.tool_calls.id": ("messages", messages(tool_calls=calls(id=NAME))),
    "call.messages.tool_calls.name": ("messages", messages(tool_calls=calls(name=NAME))),
}  # fmt: skip
"""Fields of PredictionLogged of which an event has as much as it can."""
OURS = {
    "task", "task_revision", "cycle_id", "redactions", "request_id", "answers", "app", "gateway_version",
    "answers.tokens", "answers.confidence.tokens", "answers.confidence.raw",
    "answers.confidence.calibration", "answers.confidence.threshold", "usage.cached_tokens", "usage.reasoning_tokens",
    "call.messages.content.media.hash", "call.messages.content.media.key", "call.messages.content.media.size",
    "call.surrogates", "surrogates", "subject",
}  # fmt: skip
"""Limited fields that no client of these routes gives. `task` is looked up: an unknown name is a 404."""
ROUTES: dict[type[Event], tuple[str, dict[str, Any]]] = {
    FeedbackGiven: ("/v1/feedback", FEEDBACK),
    PredictionLogged: ("/v1/predictions", PREDICTION),
}
CASES = [
    pytest.param(event, field, id=f"{event.__name__}.{path}")
    for event, fields in FROM_OUTSIDE.items()
    for path, field in fields.items()
]


def limited_fields(event: type[Event]) -> set[str]:
    """The dotted paths of the fields that the contract limits in length, size or value."""
    schema = event.model_json_schema()

    def walk(node: dict[str, Any], path: str) -> Iterator[str]:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        if node.keys() & {"minLength", "maxLength", "maxItems", "minimum", "maximum", "pattern"}:
            yield path
        for part in [*node.get("anyOf", ()), *([node["items"]] if "items" in node else ())]:
            yield from walk(part, path)
        for name, part in node.get("properties", {}).items():
            yield from walk(part, f"{path}.{name}".lstrip("."))

    return set(walk(schema, ""))


@pytest.mark.parametrize("event", FROM_OUTSIDE)
def test_every_limited_field_of_the_contract_is_tested_here(event: type[Event]) -> None:
    tested = FROM_OUTSIDE[event].keys() | (CUT.keys() if event is PredictionLogged else set())
    assert limited_fields(event) - OURS == tested


@pytest.mark.parametrize(("event", "field"), CASES)
async def test_one_over_a_limit_of_the_contract_is_a_400_that_names_field_and_limit(
    gateway: Gateway, event: type[Event], field: Field
) -> None:
    path, valid = ROUTES[event]
    response = await gateway.http.post(path, json=valid | {field.name: field.over})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, field.param or field.name)
    assert field.limit in error["message"]
    assert gateway.log.events == []


@pytest.mark.parametrize("path", CUT)
async def test_what_is_too_long_for_the_contract_is_recorded_cut(gateway: Gateway, path: str) -> None:
    name, value = CUT[path]
    response = await gateway.http.post("/v1/predictions", json=PREDICTION | {name: value})
    assert response.status_code == 200, response.text
    (event,) = gateway.log.events
    assert len(event.model_dump_json()) < MAX_EVENT_BYTES + 1_100
    assert event.call.truncated is (path.startswith("call.") and not path.endswith("media_type"))
    assert event.answers[0].truncated is path.startswith("answers.")


@pytest.mark.parametrize(("event", "field"), CASES)
async def test_a_value_at_the_limit_is_recorded(gateway: Gateway, event: type[Event], field: Field) -> None:
    path, valid = ROUTES[event]
    response = await gateway.http.post(path, json=valid | {field.name: field.greatest})
    assert response.status_code == 200, response.text
    assert [type(event) for event in gateway.log.events] == [event]


@pytest.mark.parametrize("length", [100, 200, 300, 500])
async def test_a_feedback_id_whose_task_has_a_dot_is_no_prediction_of_that_task(gateway: Gateway, length: int) -> None:
    body = FEEDBACK | {"prediction_id": f"haiku.{'x' * length}/own"}
    response = await gateway.http.post("/v1/feedback", json=body)
    assert response.status_code == 404
    assert "x-ratchet-prediction-id" in response.json()["error"]["message"]


TEXTS = [
    start + "x" * length + end
    for start, length, end in product(
        ("", "haiku/", "support/", "\x00"),
        (0, 64, 201, 32_001),
        ("", "/own", ".é"),
    )
]
OTHERS: list[Any] = [None, True, [], {}, [[]], -1e300, -1, -1e-9, 0, 1.1, 1e9 + 1, 1e300, 2**63]


@pytest.mark.parametrize("event", ROUTES)
async def test_no_text_or_number_in_any_field_is_an_internal_error(gateway: Gateway, event: type[Event]) -> None:
    path, valid = ROUTES[event]
    statuses = set()
    more = ("session", "metadata", "tools", "tool_choice", "parameters", "tool_calls", "refusal", "occurred_at")
    for name in {field.name for field in FROM_OUTSIDE[event].values()} | valid.keys() | set(more):
        for value in TEXTS + OTHERS:
            response = await gateway.http.post(path, json=valid | {name: value})
            statuses.add(response.status_code)
    assert 200 in statuses
    assert statuses <= {200, 400, 404, 422}
