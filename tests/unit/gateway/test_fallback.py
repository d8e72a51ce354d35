"""When prompts leave for the external API, and when they must not."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.external import without_vllm_fields
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import error_of_response
from shared.conversation.requests import chat_messages
from tests.unit.gateway.conftest import FakeUpstream, Gateway, no_free_files, serving

NOBODY = "http://127.0.0.1:9"


def _external_requests(gateway: Gateway, reason: str) -> int:
    return int(gateway.metrics.external_requests.labels("support", reason)._value.get())


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_that_leaves_is_counted_and_the_log_says_so_once_a_minute(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        for _ in range(3):
            response = await gateway.ask(stream=stream)
            headers = response.headers
            assert (response.status_code, headers["x-ratchet-variant"]) == (200, "external")
            assert headers["x-ratchet-instead-of"] == "base"
        assert len(external.asked) == _external_requests(gateway, "away") == 3
        name = 'ratchet_gateway_external_requests_total{reason="away",task="support"}'
        assert await gateway.metric(name) == 3.0
    leaving = "a prompt of the task support leaves for the external API: away"
    assert sum(leaving in record.message for record in caplog.records) == 1


async def test_the_call_of_an_event_is_the_one_that_the_external_api_was_sent() -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    function = {"name": "find", "parameters": {"type": "object", "properties": {"id": {}}}, "strict": True}
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}}
    fields = {
        "temperature": 0.5, "top_k": 5, "min_p": 0.1, "structured_outputs": {"regex": "a+"}, "response_format": schema,
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!", "reasoning": "Hm."},
                     {"role": "user", "content": "So?"}],
        "tools": [{"type": "function", "function": function}],
    }  # fmt: skip
    async with serving(replicas=replicas, external=external) as gateway:
        assert (await gateway.ask(model="haiku", **fields)).status_code == 200
        sent = orjson.loads(without_vllm_fields(orjson.dumps(external.asked[0])))
        (event,) = gateway.log.events
    assert event.call.parameters.keys() == {"temperature", "max_tokens"} <= sent.keys()
    assert list(event.call.tools) == sent["tools"]
    told, *messages = sent["messages"]
    assert chat_messages(event.call.messages) == messages
    assert '{"type":"array"}' in told["content"]
    assert event.call.response_format == schema


async def test_an_answer_of_the_external_api_was_not_constrained_to_the_labels() -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        await gateway.ask()
        (event,) = gateway.log.predictions
        assert (event.variant, event.constrained) == ("external", False)
        assert "structured_outputs" not in event.parameters


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [500, 501])
async def test_no_prompt_leaves_because_a_request_fails_at_a_server_that_answers(stream: bool, status: int) -> None:
    """vLLM answers so to some of its clients' mistakes: to a picture that cannot be fetched, for one."""
    external = FakeUpstream()
    async with serving(external=external) as gateway:
        gateway.upstream.failure = error_of_response(status, b'{"error": {"message": "no picture there"}}')
        response = await gateway.ask(stream=stream)
        assert (response.status_code, response.json()["error"]["message"]) == (status, "no picture there")
    assert external.asked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_no_prompt_leaves_because_no_replica_serves_the_tasks_model(stream: bool) -> None:
    external = FakeUpstream()
    async with serving(external=external) as gateway:
        gateway.upstream.not_served = {"small"}
        response = await gateway.ask(stream=stream)
        assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_not_served")
    assert (external.asked, len(gateway.upstream.asked)) == ([], 1)


@pytest.mark.parametrize(
    ("path", "fields"),
    [("embeddings", {"input": ["x"]}), ("rerank", {"query": "x", "documents": ["y"]}), ("score", {"queries": "x"})],
)
async def test_no_text_leaves_for_the_vector_or_the_score_of_another_model(path: str, fields: dict[str, Any]) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        response = await gateway.http.post(f"/v1/{path}", json={"model": "haiku", **fields})
        assert response.status_code == 503
    assert external.asked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_no_prompt_leaves_because_the_gateway_itself_is_short_of_connections(stream: bool) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics(), last_resort=False), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        for _ in range(5):
            with no_free_files():
                response = await gateway.ask(stream=stream)
            assert (response.status_code, response.headers["retry-after"]) == (503, "2")
            assert response.json()["error"]["code"] == "upstream_no_connection"
    assert external.asked == []
