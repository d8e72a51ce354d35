"""What the gateway adds to a request, and a model server refuses, is left out; what the client asked for is not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from services.gateway.upstreams.upstream import error_of_response
from tests.unit.gateway.conftest import FakeUpstream, Gateway, serving

LOGPROBS = "message.output_text.logprobs"
RESPONSE = {
    "id": "r", "object": "response", "model": "small", "status": "completed",
    "output": [{"type": "message", "content": [{"type": "output_text", "text": "pond"}]}],
}  # fmt: skip
COMPLETED = b"data: " + orjson.dumps({"type": "response.completed", "response": RESPONSE}) + b"\n\n"


class ChoosyUpstream(FakeUpstream):
    """Refuses requests as vLLM refuses those to gpt-oss. `refuses` names the field that a request is refused for."""

    refuses: Callable[[dict[str, Any]], str | None]

    def _note(self, path: str, body: bytes, lines: bytes) -> None:
        super()._note(path, body, lines)
        if field := self.refuses(self.asked[-1]):
            raise error_of_response(400, orjson.dumps({"error": {"message": f"no {field}", "param": field}}))


def no_logprobs(asked: dict[str, Any]) -> str | None:
    return "logprobs" if LOGPROBS in (asked.get("include") or ()) else None


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


async def test_a_client_that_asks_for_log_probabilities_is_told_that_there_are_none() -> None:
    async with choosy(no_logprobs) as (gateway, upstream):
        asked = {"model": "haiku", "input": "a pond", "include": [LOGPROBS]}
        response = await gateway.http.post("/v1/responses", json=asked)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "no logprobs")
        assert len(upstream.asked) == 1


async def test_a_refusal_of_anything_else_is_the_clients() -> None:
    async with choosy(lambda asked: "temperature" if asked.get("temperature") else None) as (gateway, upstream):
        response = await gateway.ask(model="haiku", temperature=9)
        assert (response.status_code, response.json()["error"]["message"]) == (400, "no temperature")
        assert len(upstream.asked) == 1
