"""When prompts leave for the external API, and when they must not."""

from __future__ import annotations

from typing import Any

import pytest

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import error_of_response
from tests.unit.gateway.conftest import FakeUpstream, Gateway, no_free_files, serving

NOBODY = "http://127.0.0.1:9"


def _external_requests(gateway: Gateway, reason: str) -> int:
    return int(gateway.metrics.external_requests.labels("support", reason)._value.get())


@pytest.mark.parametrize("stream", [False, True])
async def test_each_prompt_that_leaves_is_counted_and_the_log_says_so_once_a_minute(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics()), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        for _ in range(3):
            response = await gateway.ask(stream=stream)
            headers = response.headers
            assert (response.status_code, headers["x-ratchet-variant"]) == (200, "external")
            assert headers["x-ratchet-instead-of"] == "base"
        assert len(external.asked) == _external_requests(gateway, "away") == 3
        assert external.asked[0]["model"] == "large"
        assert "structured_outputs" in external.asked[0], "it gets what a replica would get"
        name = 'ratchet_gateway_external_requests_total{reason="away",task="support"}'
        assert await gateway.metric(name) == 3.0
    leaving = "a prompt of the task support leaves for the external API: away"
    assert sum(leaving in record.message for record in caplog.records) == 1


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
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics()), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        response = await gateway.http.post(f"/v1/{path}", json={"model": "haiku", **fields})
        assert response.status_code == 503
    assert external.asked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_no_prompt_leaves_because_the_gateway_itself_is_short_of_connections(stream: bool) -> None:
    replicas, external = Replicas([NOBODY], UpstreamLimits(), Metrics()), FakeUpstream()
    async with serving(replicas=replicas, external=external) as gateway:
        for _ in range(5):
            with no_free_files():
                response = await gateway.ask(stream=stream)
            assert (response.status_code, response.headers["retry-after"]) == (503, "2")
            assert response.json()["error"]["code"] == "upstream_no_connection"
    assert external.asked == []
