"""vLLM's replicas, played by small servers on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web

from services.gateway.clients import NotServed, UpstreamFailed, VllmReplicas
from services.gateway.metrics import Metrics

Start = Callable[..., Awaitable[str]]
DEAD = "http://127.0.0.1:9"


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a replica that answers every completion with this status and body; returns its URL."""
    runners: list[web.AppRunner] = []

    async def _start(status: int = 200, text: str = '{"from": "here"}', delay: float = 0.0) -> str:
        async def answer(_: web.Request) -> web.Response:
            await asyncio.sleep(delay)
            return web.Response(status=status, text=text, content_type="application/json")

        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield _start
    for runner in runners:
        await runner.cleanup()


@pytest.fixture
async def replicas() -> AsyncIterator[Callable[..., Awaitable[VllmReplicas]]]:
    made: list[VllmReplicas] = []

    async def _make(*urls: str, seconds: float = 5.0) -> VllmReplicas:
        made.append(VllmReplicas(urls, seconds, 0.5, 10, Metrics()))
        await made[-1].start()
        return made[-1]

    yield _make
    for one in made:
        await one.close()


async def test_a_replica_that_is_away_is_passed_over(start: Start, replicas: Callable) -> None:
    upstream = await replicas(DEAD, await start())
    assert not upstream.answered_within(60)
    for _ in range(4):
        assert await upstream.complete(b"{}") == {"from": "here"}
    assert upstream.answered_within(60)
    assert upstream._metrics.upstream_errors.labels("away")._value.get() == 1  # Then it is asked last.


async def test_when_all_replicas_are_away_the_client_is_told_so(replicas: Callable) -> None:
    upstream = await replicas(DEAD, DEAD)
    with pytest.raises(UpstreamFailed) as caught:
        await upstream.complete(b"{}")
    assert caught.value.status == 503


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_replica_in_trouble_is_passed_over(start: Start, replicas: Callable, status: int) -> None:
    upstream = await replicas(await start(status), await start())
    assert await upstream.complete(b"{}") == {"from": "here"}


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (404, '{"error": {"message": "The model `a` does not exist."}}'),
        (400, '{"error": {"message": "LoRA adapter \'a\' was found but could not be loaded."}}'),
    ],
)
async def test_a_model_is_not_served_only_if_no_replica_serves_it(
    start: Start, replicas: Callable, status: int, text: str
) -> None:
    lacking = await start(status, text)
    assert await (await replicas(lacking, await start())).complete(b"{}") == {"from": "here"}
    with pytest.raises(NotServed):
        await (await replicas(lacking, DEAD)).complete(b"{}")


async def test_a_refusal_of_the_request_itself_is_not_tried_elsewhere(start: Start, replicas: Callable) -> None:
    refusing = await start(400, '{"error": {"message": "context length exceeded"}}')
    upstream = await replicas(refusing, await start())
    with pytest.raises(UpstreamFailed, match="context length exceeded") as caught:
        await upstream.complete(b"{}")
    assert caught.value.status == 400


async def test_an_answer_that_takes_too_long_is_a_gateway_timeout(start: Start, replicas: Callable) -> None:
    upstream = await replicas(await start(delay=0.6), seconds=0.2)
    with pytest.raises(UpstreamFailed) as caught:
        await upstream.complete(b"{}")
    assert caught.value.status == 504


async def test_garbled_answers_are_bad_gateways(start: Start, replicas: Callable) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        await (await replicas(await start(text="<html>"))).complete(b"{}")
    assert caught.value.status == 502
    with pytest.raises(UpstreamFailed, match="said 418"):
        await (await replicas(await start(418, "[]"))).complete(b"{}")
