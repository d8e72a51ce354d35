"""What the gateway adds to a request, and a model server refuses, is left out; what the client asked for is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import error_of_response
from tests.unit.gateway.conftest import FakeUpstream, Gateway, serving
from tests.unit.gateway.test_fallback import NOBODY

LOGPROBS = "message.output_text.logprobs"
RESPONSE = {
    "id": "r", "object": "response", "model": "small", "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "pond"}]}],
}  # fmt: skip
COMPLETED = b"data: " + orjson.dumps({"type": "response.completed", "response": RESPONSE}) + b"\n\n"


class ChoosyUpstream(FakeUpstream):
    """Refuses requests as vLLM refuses those to gpt-oss. `refuses` names the field that a request is refused for."""

    refuses: Callable[[dict[str, Any]], str | None]

    def _note(self, path: str, body: bytes, lines: bytes, model: str) -> None:
        super()._note(path, body, lines, model)
        if field := self.refuses(self.asked[-1]):
            message = "use max_completion_tokens" if field == "max_tokens" else f"no {field}"
            raise error_of_response(400, orjson.dumps({"error": {"message": message, "param": field}}))


def no_logprobs(asked: dict[str, Any]) -> str | None:
    return "logprobs" if LOGPROBS in (asked.get("include") or ()) else None


def no_effort_none(asked: dict[str, Any]) -> str | None:
    return "reasoning_effort" if asked.get("reasoning_effort") == "none" else None


@asynccontextmanager
async def choosy(refuses: Callable[[dict[str, Any]], str | None]) -> AsyncIterator[tuple[Gateway, ChoosyUpstream]]:
    upstream = ChoosyUpstream()
    upstream.refuses = refuses
    async with serving(replicas=upstream) as gateway:
        yield gateway, upstream


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_without_log_probabilities_answers_without_a_confidence(stream: bool) -> None:
    async with choosy(no_logprobs) as (gateway, upstream):
        upstream.answer, upstream.pieces = RESPONSE, [COMPLETED]
        for times in (2, 3):  # The second request does without from the start.
            asked = {"model": "haiku", "input": "a pond", "stream": stream}
            response = await gateway.http.post("/v1/responses", json=asked)
            assert (response.status_code, len(upstream.asked)) == (200, times), response.text
        assert "pond" in response.text
        assert [event.answer for event in gateway.log.predictions] == ["pond", "pond"]
        assert [event.confidence.score for event in gateway.log.predictions] == [None, None]
        assert [observed.status for observed in gateway.log.observed] == [200, 200]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["haiku", "support"])
async def test_an_external_model_that_reasons_is_asked_without_what_it_refuses(model: str, stream: bool) -> None:
    """As OpenAI answers: it names the limit otherwise, and has no temperature and no log-probabilities for them."""

    def refuses(asked: dict[str, Any]) -> str | None:
        return next((name for name in ("max_tokens", "temperature", "top_logprobs", "logprobs") if name in asked), None)

    external = ChoosyUpstream()
    external.refuses = refuses
    replicas = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False)
    async with serving(replicas=replicas, external=external) as gateway:
        asked = {"model": model, "messages": [{"role": "user", "content": "a pond"}], "stream": stream}
        needed = []
        for _ in range(2):
            before = len(external.asked)
            response = await gateway.http.post("/v1/chat/completions", json=asked)
            assert response.status_code == 200, response.text
            needed.append(len(external.asked) - before)
        assert needed == [4 if model == "support" else 3, 1], "the second request does without from the start"
        assert external.asked[-1]["max_completion_tokens"] > 0
        assert refuses(external.asked[-1]) is None
        asked |= {"logprobs": True}
        assert (await gateway.http.post("/v1/chat/completions", json=asked)).status_code == 400


@pytest.mark.parametrize("model", ["haiku", "support"])
async def test_so_it_is_by_the_responses_api(model: str) -> None:
    def refuses(asked: dict[str, Any]) -> str | None:
        return "temperature" if "temperature" in asked else no_logprobs(asked)

    external = ChoosyUpstream()
    external.refuses, external.answer = refuses, RESPONSE
    replicas = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False)
    async with serving(replicas=replicas, external=external) as gateway:
        response = await gateway.http.post("/v1/responses", json={"model": model, "input": "a pond"})
        assert response.status_code == 200, response.text
        asked = {"model": "haiku", "input": "a pond", "temperature": 0.5}
        refused = await gateway.http.post("/v1/responses", json=asked)
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "no temperature")


def test_a_limit_that_is_too_large_is_no_limit_of_another_name() -> None:
    said = {"error": {"message": "max_tokens is too large", "param": "max_tokens"}}
    assert error_of_response(400, orjson.dumps(said)).refused_field is None


def test_openai_says_in_words_that_a_model_has_no_log_probabilities() -> None:
    said = {"error": {"message": "You are not allowed to request logprobs from this model.", "param": None}}
    assert error_of_response(403, orjson.dumps(said)).refused_field == "logprobs"
    assert error_of_response(403, b'{"error": {"message": "no such project"}}').refused_field is None


async def test_a_client_that_asks_for_log_probabilities_is_told_that_there_are_none() -> None:
    async with choosy(no_logprobs) as (gateway, upstream):
        asked = {"model": "haiku", "input": "a pond", "include": [LOGPROBS]}
        response = await gateway.http.post("/v1/responses", json=asked)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "no logprobs")
        assert len(upstream.asked) == 1


async def test_thinking_that_a_model_cannot_leave_is_as_little_as_it_can_and_the_event_says_so() -> None:
    """As vLLM's own `/v1/messages` does it."""
    async with choosy(no_effort_none) as (gateway, upstream):
        asked = {"model": "haiku", "messages": [{"role": "user", "content": "a pond"}], "max_tokens": 9}
        for times in (2, 3):
            body = {**asked, "thinking": {"type": "disabled"}}
            response = await gateway.http.post("/v1/messages", json=body)
            assert (response.status_code, len(upstream.asked)) == (200, times), response.text
        assert [asked["reasoning_effort"] for asked in upstream.asked] == ["none", "low", "low"]
        assert [event.parameters["reasoning_effort"] for event in gateway.log.predictions] == ["low", "low"]


async def test_a_refusal_of_anything_else_is_the_clients() -> None:
    async with choosy(lambda asked: "temperature" if asked.get("temperature") else None) as (gateway, upstream):
        response = await gateway.ask(model="haiku", temperature=9)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "no temperature")
        assert len(upstream.asked) == 1
