"""vLLM's replicas, played by small servers on real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from services.gateway.observability.metrics import Metrics
from services.gateway.upstreams import replicas as replicas_module
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import ModelNotServed, UpstreamFailed
from tests.unit.gateway.conftest import PATIENT_LIMITS, no_free_files
from tests.waiting import PATIENCE_SECONDS, until

DEAD = "http://127.0.0.1:9"
CHAT = "/v1/chat/completions"
MISSING = '{"error": {"message": "The model `a` does not exist."}}'
UNLOADABLE = '{"error": {"message": "LoRA adapter \'a\' was found but could not be loaded."}}'


@dataclass
class Server:
    """A replica with scripted answers. `asked` counts requests; `cut`: connections that a client closed."""

    status: int = 200
    text: str = '{"from": "here"}'
    delay: float = 0.0
    dies: int = 0
    pieces: tuple[bytes, ...] = ()
    between: float = 0.0
    dies_after: int = 1_000
    headers: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] | None = None
    asked: int = 0
    cut: int = 0
    url: str = ""
    goes_on: asyncio.Event | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked += 1
        if self.models is not None and (await request.json())["model"] not in self.models:
            return web.Response(status=404, text=MISSING, content_type="application/json")
        try:
            if self.dies > 0:
                self.dies -= 1
                return self._die(request)
            await asyncio.sleep(self.delay)
            if not self.pieces:
                return web.Response(
                    status=self.status, text=self.text, content_type="application/json", headers=self.headers
                )
            return await self._stream(request)
        except asyncio.CancelledError:
            self.cut += 1
            raise

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for number, piece in enumerate(self.pieces):
            if number == self.dies_after:
                return self._die(request)
            await response.write(piece)
            await (asyncio.sleep(self.between) if self.goes_on is None else self.goes_on.wait())
        await response.write_eof()
        return response

    def _die(self, request: web.Request) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def list_models(self, _: web.Request) -> web.Response:
        listed = [{"id": name} for name in self.models or ()]
        return web.json_response({"data": listed}, status=200 if self.status < 500 else self.status)


Start = Callable[..., Awaitable[Server]]
Make = Callable[..., Awaitable[Replicas]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Start a server; one that was stopped starts at its old address."""
    runners: dict[int, web.AppRunner] = {}

    async def _start(server: Server | None = None, **options: Any) -> Server:
        server = server or Server(**options)
        app = web.Application()
        app.router.add_post("/v1/{rest:.*}", server.answer)
        app.router.add_get("/v1/models", server.list_models)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        port = int(server.url.rpartition(":")[2]) if server.url else 0
        await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        runners[id(server)] = runner
        return server

    async def stop(server: Server) -> None:
        await runners.pop(id(server)).cleanup()

    _start.stop = stop  # type: ignore[attr-defined]
    yield _start
    for runner in runners.values():
        await runner.cleanup()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Replicas] = []

    async def _make(*servers: Server | str, last_resort: bool = True, **limits: Any) -> Replicas:
        urls = [server if isinstance(server, str) else server.url for server in servers]
        made.append(Replicas(urls, replace(PATIENT_LIMITS, **limits), Metrics(), last_resort=last_resort))
        return made[-1]

    yield _make
    for replicas in made:
        await replicas.close()


def errors(replicas: Replicas, reason: str) -> int:
    return int(replicas._metrics.upstream_errors.labels(reason)._value.get())


def outstanding(replicas: Replicas) -> int:
    return sum(replica.outstanding for replica in replicas._pool)


async def refused(replicas: Replicas) -> UpstreamFailed:
    with pytest.raises(UpstreamFailed) as caught:
        await replicas.post(CHAT, b"{}")
    assert outstanding(replicas) == 0
    return caught.value


async def streamed(replicas: Replicas) -> list[bytes]:
    async with replicas.stream(CHAT, b"{}") as pieces:
        return [piece async for piece in pieces]


async def test_a_replica_that_refuses_connections_costs_one_attempt_and_its_circuit_opens(
    start: Start, make: Make
) -> None:
    replicas = await make(DEAD, await start())
    assert not replicas.answered_within(60)
    for _ in range(4):
        assert await replicas.post(CHAT, b"{}") == b'{"from": "here"}'
    assert replicas.answered_within(60)
    assert errors(replicas, "away") == 1
    assert outstanding(replicas) == 0


async def test_when_all_replicas_are_unavailable_requests_still_try_them_as_a_last_resort(
    start: Start, make: Make
) -> None:
    replicas = await make(DEAD, DEAD)
    for _ in range(3):
        error = await refused(replicas)
        assert (error.status, error.down) == (503, True)
    assert errors(replicas, "away") == 6


async def test_with_a_fallback_no_time_is_lost_on_unavailable_replicas(start: Start, make: Make) -> None:
    replicas = await make(DEAD, DEAD, last_resort=False)
    await refused(replicas)
    error = await refused(replicas)
    assert (error.status, error.down) == (503, True)
    assert errors(replicas, "away") == 2


async def test_load_goes_to_the_replica_with_the_fewest_outstanding_requests(start: Start, make: Make) -> None:
    slow, quick = await start(delay=0.4), await start()
    replicas = await make(slow, quick)
    waiting = [asyncio.create_task(replicas.post(CHAT, b"{}")) for _ in range(2)]
    await until(lambda: slow.asked == 1)
    for _ in range(8):
        await replicas.post(CHAT, b"{}")
    await asyncio.gather(*waiting)
    assert (slow.asked, quick.asked) == (1, 9)


async def test_a_replica_that_dies_before_its_answer_is_whole_is_replaced_for_all_who_waited_for_it(
    start: Start, make: Make
) -> None:
    dying, other = await start(dies=20), await start()
    replicas = await make(dying, other)
    answers = await asyncio.gather(*(replicas.post(CHAT, b"{}") for _ in range(40)))
    assert answers == [b'{"from": "here"}'] * 40
    assert other.asked >= 20


async def test_a_lost_connection_to_the_only_replica_is_retried(start: Start, make: Make) -> None:
    only = await start(dies=1)
    assert await (await make(only)).post(CHAT, b"{}") == b'{"from": "here"}'
    only.dies = 5
    error = await refused(await make(only))
    assert (error.status, error.reason, error.down, only.asked) == (502, "lost", True, 4)


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_replica_with_errors_is_skipped(start: Start, make: Make, status: int) -> None:
    replicas = await make(await start(status=status), await start())
    for _ in range(3):
        assert await replicas.post(CHAT, b"{}") == b'{"from": "here"}'


async def test_a_request_that_the_server_does_not_implement_opens_no_circuit_and_is_not_retried(
    start: Start, make: Make
) -> None:
    """vLLM's 501 is about the request: a picture in a form that it does not read, say."""
    servers = [await start(status=501), await start(status=501)]
    replicas = await make(*servers, last_resort=False)
    for _ in range(6):
        error = await refused(replicas)
        assert (error.status, error.down) == (501, False)
    assert sum(server.asked for server in servers) == 6
    assert not any(replica.circuit_open for replica in replicas._pool)


async def test_replicas_that_are_left_out_for_their_errors_alone_are_not_away(start: Start, make: Make) -> None:
    """One client's requests may be all that they fail: three of them sent everybody's prompts to the fallback."""
    servers = [await start(status=500), await start(status=500)]
    replicas = await make(*servers, last_resort=False)
    errors = [await refused(replicas) for _ in range(12)]
    assert {error.status for error in errors[:1]} == {500}
    assert (errors[-1].status, errors[-1].reason) == (503, "server_errors")
    assert not any(error.down for error in errors)
    for server in servers:
        await start.stop(server)  # type: ignore[attr-defined]
        replicas._pool.half_open(next(r for r in replicas._pool if r.url == server.url))
    assert (await refused(replicas)).down, "now they are"


async def test_when_every_replica_answers_with_errors_retries_add_only_a_fifth_to_the_load(
    start: Start, make: Make
) -> None:
    servers = [await start(status=500) for _ in range(3)]
    replicas = await make(*servers)
    for _ in range(200):
        assert (await refused(replicas)).status == 500
    assert 240 <= sum(server.asked for server in servers) <= 252


async def test_while_a_replica_was_not_asked_the_replicas_are_not_down(start: Start, make: Make) -> None:
    replicas = await make(*[await start(status=503) for _ in range(4)])
    assert not (await refused(replicas)).down, "three of four were asked"
    replicas = await make(*[await start(status=503) for _ in range(3)])
    assert (await refused(replicas)).down


@pytest.mark.parametrize(("status", "headers"), [(500, {}), (429, {"retry-after": "9"}), (401, {})])
async def test_the_replicas_are_not_down_while_one_answers_in_whatever_order_they_are_asked(
    start: Start, make: Make, status: int, headers: dict[str, str]
) -> None:
    for _ in range(2):
        there = await start(status=status, headers=headers)
        replicas = await make(there, "http://127.0.0.1:9", last_resort=False)
        for _ in range(2):
            error = await refused(replicas)
            assert not error.down
            assert error.status in (status, 429, 502, 503)


@pytest.mark.parametrize(("status", "headers"), [(500, {}), (429, {"retry-after": "9"})])
async def test_the_replicas_are_not_down_while_one_is_left_alone_that_answers(
    start: Start, make: Make, status: int, headers: dict[str, str]
) -> None:
    left_alone, gone = await start(status=status, headers=headers), await start()
    replicas = await make(left_alone, gone, last_resort=False, opens_after=2)
    for _ in range(8):
        await replicas.post(CHAT, b"{}")
    asked, gone.dies = left_alone.asked, 9
    assert not (await refused(replicas)).down
    assert left_alone.asked == asked


async def test_an_idle_connection_that_ended_does_not_say_that_its_replica_is_down(start: Start, make: Make) -> None:
    replicas = await make(*[await start(dies=1) for _ in range(3)], last_resort=False)
    assert not (await refused(replicas)).down
    assert await replicas.post(CHAT, b"{}")


async def test_a_request_is_tried_three_times_at_most(start: Start, make: Make) -> None:
    servers = [await start(status=500) for _ in range(5)]
    await refused(await make(*servers))
    assert sum(server.asked for server in servers) == 3


async def test_an_answered_probe_lets_requests_through_again(start: Start, make: Make) -> None:
    broken, other = await start(status=503), await start()
    replicas = await make(broken, other)
    watching = asyncio.create_task(replicas.watch_forever())
    try:
        for _ in range(6):
            await replicas.post(CHAT, b"{}")
        asked = broken.asked
        assert asked <= 3
        for _ in range(6):
            await replicas.post(CHAT, b"{}")
        assert broken.asked == asked
        broken.status = 200
        await until(lambda: not next(iter(replicas._pool)).circuit_open)
        for _ in range(4):
            await replicas.post(CHAT, b"{}")
        assert broken.asked > asked
    finally:
        watching.cancel()


async def test_a_replica_that_came_back_is_found_by_the_probe(start: Start, make: Make) -> None:
    server = await start()
    replicas = await make(server, last_resort=False)
    watching = asyncio.create_task(replicas.watch_forever())
    try:
        await until(lambda: replicas.answered_within(1))
        await start.stop(server)  # type: ignore[attr-defined]
        assert (await refused(replicas)).down
        await start(server)
        await until(lambda: not next(iter(replicas._pool)).circuit_open)
        assert await replicas.post(CHAT, b"{}") == b'{"from": "here"}'
    finally:
        watching.cancel()


async def test_retry_after_is_respected(start: Start, make: Make) -> None:
    busy, other = await start(status=429, headers={"retry-after": "30"}), await start()
    replicas = await make(busy, other)
    for _ in range(6):
        await replicas.post(CHAT, b"{}")
    assert busy.asked == 1
    other.status, other.headers = 429, {"retry-after": "7"}
    assert (await refused(replicas)).retry_after == 7.0
    error = await refused(replicas)
    assert (error.status, error.reason, error.down) == (429, "busy", False)
    assert error.retry_after is not None and 6 < error.retry_after <= 7
    assert (busy.asked, other.asked) == (1, 7)


@pytest.mark.parametrize(("status", "text"), [(404, MISSING), (400, UNLOADABLE)])
async def test_a_model_is_not_served_only_if_no_replica_serves_it(
    start: Start, make: Make, status: int, text: str
) -> None:
    without_model = [await start(status=status, text=text) for _ in range(5)]
    assert await (await make(*without_model, await start())).post(CHAT, b"{}") == b'{"from": "here"}'
    for servers in ([*without_model], [without_model[0], DEAD]):
        error = await refused(await make(*servers))
        assert isinstance(error, ModelNotServed)
        assert not error.down


def ask(replicas: Replicas, streaming: bool, model: str = "a1") -> Awaitable[object]:
    body = b'{"model": "%s"}' % model.encode()
    if not streaming:
        return replicas.post(CHAT, body, b"", model)

    async def read() -> list[bytes]:
        async with replicas.stream(CHAT, body, b"", model) as pieces:
            return [piece async for piece in pieces]

    return read()


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_replica_that_restarted_is_asked_for_an_adapter_only_once_it_lists_it(
    start: Start, make: Make, streaming: bool
) -> None:
    pieces = (b"data: 1\n\n",) if streaming else ()
    restarting, other = [await start(models=("base", "a1"), pieces=pieces) for _ in range(2)]
    replicas = await make(restarting, other)
    first, second = replicas._pool
    watching = asyncio.create_task(replicas.watch_forever())
    try:
        await until(lambda: first.models == second.models == {"base", "a1"})
        for _ in range(4):
            await ask(replicas, streaming)
        assert restarting.asked == other.asked == 2
        await start.stop(restarting)  # type: ignore[attr-defined]
        for _ in range(4):
            await ask(replicas, streaming)
        restarting.models = ("base",)
        await start(restarting)
        await until(lambda: not first.circuit_open)  # It answers probes: its base model gets requests at once.
        asked = restarting.asked
        for _ in range(6):
            await ask(replicas, streaming)
        assert restarting.asked == asked
        assert errors(replicas, "not_served") == 0, "not even one request was tried there"
        await ask(replicas, streaming, "base")
        assert restarting.asked == asked + 1
        restarting.models = ("base", "a1")
        await until(lambda: not first.lacks("a1"))
        for _ in range(4):
            await ask(replicas, streaming)
        assert restarting.asked > asked + 1
    finally:
        watching.cancel()


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_restart_that_no_probe_saw_costs_one_request_a_second_try_and_no_client_an_error(
    start: Start, make: Make, streaming: bool
) -> None:
    pieces = (b"data: 1\n\n",) if streaming else ()
    restarted, other = await start(models=("base",)), await start(models=("base", "a1"), pieces=pieces)
    replicas = await make(restarted, other)
    for replica in replicas._pool:
        replica.set_models(frozenset({"base", "a1"}))
    for _ in range(6):
        await ask(replicas, streaming)
    assert (restarted.asked, other.asked, errors(replicas, "not_served")) == (1, 6, 1)
    await start.stop(other)  # type: ignore[attr-defined]
    with pytest.raises(ModelNotServed):  # So that another arm answers.
        await ask(replicas, streaming)


async def test_an_unknown_path_is_not_a_missing_model(start: Start, make: Make) -> None:
    error = await refused(await make(await start(status=404, text='{"detail": "Not Found"}')))
    assert (error.status, isinstance(error, ModelNotServed), error.down) == (404, False, False)


@pytest.mark.parametrize(
    "echoed",
    ["Invalid value: 'a LoRA adapter'", "Invalid: LoRA adapter 'a' was found but could not be loaded.", "LoRA adapter"],
)
async def test_a_clients_own_text_in_an_error_does_not_make_a_model_one_that_is_not_served(
    start: Start, make: Make, echoed: str
) -> None:
    text = orjson.dumps({"error": {"message": echoed}}).decode()
    error = await refused(await make(await start(status=400, text=text)))
    assert (error.status, error.message, isinstance(error, ModelNotServed)) == (400, echoed, False)


async def test_a_rejected_request_is_passed_on_unchanged_and_not_retried(start: Start, make: Make) -> None:
    text = '{"error": {"message": "context length exceeded"}}'
    refusing = [await start(status=400, text=text) for _ in range(2)]
    error = await refused(await make(*refusing))
    assert (error.status, error.message, error.raw) == (400, "context length exceeded", text.encode())
    assert not error.down
    assert sum(server.asked for server in refusing) == 1
    assert (await refused(await make(await start(status=418, text="[]")))).message == "the model server answered 418"


@pytest.mark.parametrize(
    "text",
    [
        '{"error": {"message": "too long", "code": 400}}', '{"error": "too long", "error_type": "validation"}',
        '{"object": "error", "message": "too long"}', '{"detail": "too long"}',
    ],
)  # fmt: skip
async def test_what_a_server_says_in_an_error_of_any_usual_form_is_what_the_client_is_told(
    start: Start, make: Make, text: str
) -> None:
    assert (await refused(await make(await start(status=422, text=text)))).message == "too long"


async def test_an_answer_that_takes_too_long_is_a_gateway_timeout_and_is_not_retried(start: Start, make: Make) -> None:
    servers = [await start(delay=0.6) for _ in range(2)]
    error = await refused(await make(*servers, total=0.2))
    assert (error.status, error.down) == (504, False)
    assert sum(server.asked for server in servers) == 1


async def test_answers_that_reach_our_own_deadline_open_no_circuit_and_send_nobody_elsewhere(
    start: Start, make: Make
) -> None:
    server = await start(delay=60.0)
    replicas = await make(server, total=0.2, opens_after=1, last_resort=False)
    (replica,) = replicas._pool
    for _ in range(2):
        error = await refused(replicas)
        assert (error.status, error.reason, error.down) == (504, "timeout", False)
    assert (replica.circuit_open, replica.failures, server.asked) == (False, 0, 2)


@pytest.mark.parametrize("slow", ["headers", "first piece"])
async def test_a_stream_that_does_not_begin_in_time_opens_no_circuit_and_sends_nobody_elsewhere(
    start: Start, make: Make, slow: str
) -> None:
    piece = b"data: 1\n\n"
    server = (
        await start(pieces=(piece,), delay=60.0) if slow == "headers" else await start(pieces=(b"", piece), between=60)
    )
    replicas = await make(server, piece=0.2, opens_after=1, last_resort=False)
    (replica,) = replicas._pool
    for _ in range(2):
        with pytest.raises(UpstreamFailed, match=r"longer than 0.2 s") as caught:
            await streamed(replicas)
        assert (caught.value.status, caught.value.reason, caught.value.down) == (504, "timeout", False)
    assert (replica.circuit_open, replica.failures, server.asked) == (False, 0, 2)
    assert outstanding(replicas) == 0


async def test_a_stream_that_falls_silent_after_it_has_begun_is_a_failure_of_its_replica(
    start: Start, make: Make
) -> None:
    replicas = await make(await start(pieces=(b"data: 1\n\n",), between=600.0), piece=2.0, opens_after=1)
    with pytest.raises(UpstreamFailed, match=r"longer than 2 s"):
        await streamed(replicas)
    (replica,) = replicas._pool
    assert (replica.circuit_open, replica.failures) == (True, 1)


async def test_a_replica_that_accepts_connections_and_answers_nothing_is_found_by_the_probes(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas_module, "_PROBE_SECONDS", 0.01)
    monkeypatch.setattr(replicas_module, "_PROBE_TIMEOUT_SECONDS", 0.05)

    async def hang(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass

    async with await asyncio.start_server(hang, "127.0.0.1", 0) as hanging:
        replicas = await make(f"http://127.0.0.1:{hanging.sockets[0].getsockname()[1]}", last_resort=False)
        (replica,) = replicas._pool
        watching = asyncio.create_task(replicas.watch_forever())
        try:
            await until(lambda: replica.circuit_open)
            assert (await refused(replicas)).down
        finally:
            watching.cancel()


async def test_a_cancelled_request_closes_its_connection_to_the_replica(start: Start, make: Make) -> None:
    server = await start(delay=60.0)
    replicas = await make(server)
    asking = asyncio.create_task(replicas.post(CHAT, b"{}"))
    await until(lambda: server.asked == 1)
    asking.cancel()
    await until(lambda: server.cut == 1)
    assert outstanding(replicas) == 0


async def test_a_stream_arrives_piece_by_piece_and_its_connection_is_used_again(start: Start, make: Make) -> None:
    server = await start(pieces=(b"data: 1\n\n", b"data: 2\n\n"), goes_on=asyncio.Event())
    replicas = await make(server, connections=1)
    async with asyncio.timeout(PATIENCE_SECONDS), replicas.stream(CHAT, b"{}") as pieces:
        server.goes_on.set()  # The first piece is here, and the server still held the second one back.
        assert outstanding(replicas) == 1
        assert b"".join([piece async for piece in pieces]) == b"data: 1\n\ndata: 2\n\n"
    assert outstanding(replicas) == 0
    assert b"".join(await streamed(replicas)) == b"data: 1\n\ndata: 2\n\n"


async def test_a_stream_begins_at_another_replica_if_the_first_dies_before_its_first_piece(
    start: Start, make: Make
) -> None:
    pieces = (b"data: 1\n\n",)
    for bad in (
        DEAD,
        await start(dies=9, pieces=pieces),
        await start(pieces=pieces, dies_after=0),
        await start(status=500),
    ):
        replicas = await make(bad, await start(pieces=pieces))
        for _ in range(2):
            assert await streamed(replicas) == [b"data: 1\n\n"]
        assert outstanding(replicas) == 0


async def test_a_stream_that_is_refused_says_why(start: Start, make: Make) -> None:
    replicas = await make(await start(status=404, text=MISSING))
    with pytest.raises(ModelNotServed, match="does not exist"):
        await streamed(replicas)
    assert outstanding(replicas) == 0


async def test_a_stream_that_breaks_off_or_falls_silent_fails_and_is_not_retried(start: Start, make: Make) -> None:
    pieces = (b"data: 1\n\n", b"data: 2\n\n")
    other = await start(pieces=pieces)
    breaking = Server(pieces=pieces, dies_after=1, between=0.05)
    for server, status in ((breaking, 502), (Server(pieces=pieces, between=2), 504)):
        replicas = await make(await start(server), other, piece=0.3)
        got: list[bytes] = []
        with pytest.raises(UpstreamFailed) as caught:
            async with replicas.stream(CHAT, b"{}") as stream:
                async for piece in stream:
                    got.append(piece)
        assert (got, caught.value.status, caught.value.down) == ([b"data: 1\n\n"], status, False)
        assert status == 502 or "longer than 0.3 s" in caught.value.message
        assert outstanding(replicas) == 0
    assert other.asked == 0


async def test_a_stream_that_its_reader_leaves_is_closed_at_the_replica(start: Start, make: Make) -> None:
    server = await start(pieces=(b"data: 1\n\n",) * 100, between=0.1)
    replicas = await make(server)
    async with replicas.stream(CHAT, b"{}") as pieces:
        async for _ in pieces:
            break
    await until(lambda: server.cut == 1)
    assert outstanding(replicas) == 0


async def test_the_password_in_a_replicas_address_is_never_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    replicas = Replicas(["http://me:s3cret@127.0.0.1:9/base"], PATIENT_LIMITS, Metrics())
    with pytest.raises(UpstreamFailed) as failed:
        await replicas.post(CHAT, b"{}")
    assert ["http://127.0.0.1:9/base" in message for message in caplog.messages] == [True]
    assert "s3cret" not in f"{caplog.messages} {failed.value.message} {failed.value.__cause__!r}"


async def test_probes_do_not_wait_behind_requests_and_open_no_circuit_of_a_healthy_server(
    start: Start, make: Make
) -> None:
    server = await start(pieces=(b"data: 1\n\n",) * 2_000, between=0.5)
    replicas = await make(server, connections=1, opens_after=1)
    (replica,) = replicas._pool
    async with replicas.stream(CHAT, b"{}"):
        replicas._answered_at = None
        async with asyncio.timeout(PATIENCE_SECONDS):
            await replicas._probe(replica)
        assert replicas.answered_within(1)
    assert not replica.circuit_open


async def test_a_shortage_of_ours_is_a_503_that_neither_opens_a_circuit_nor_goes_elsewhere(
    start: Start, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server = await start(delay=60.0)
    replicas = await make(server, connections=1, wait=0.1, opens_after=1, last_resort=False)
    (replica,) = replicas._pool
    busy = asyncio.create_task(replicas.post(CHAT, b"{}"))
    await until(lambda: server.asked == 1)
    for _ in range(3):
        with pytest.raises(UpstreamFailed) as caught:
            await replicas.post(CHAT, b"{}")
        with pytest.raises(UpstreamFailed) as streaming:
            await streamed(replicas)
        for error in (caught.value, streaming.value):
            assert (error.status, error.reason, error.down, error.retry_after) == (503, "no_connection", False, 2.0)
    busy.cancel()
    await asyncio.gather(busy, return_exceptions=True)
    with no_free_files():
        error = await refused(replicas)
        await replicas._probe(replica)
    assert (error.status, error.reason, error.down) == (503, "no_connection", False)
    assert (replica.circuit_open, replica.failures, server.asked) == (False, 0, 1)
    assert errors(replicas, "no_connection") == 7
    (record,) = caplog.records
    assert "RATCHET_GATEWAY_WORKERS" in record.message


async def test_streams_that_their_readers_drag_past_the_time_limit_are_not_the_servers_failure(
    start: Start, make: Make
) -> None:
    server = await start(pieces=(b"data: 1\n\n",) * 100, between=0.05)
    replicas = await make(server, stream=0.3, opens_after=1)
    with pytest.raises(UpstreamFailed) as caught:
        await streamed(replicas)
    assert (caught.value.status, caught.value.down) == (504, False)
    (replica,) = replicas._pool
    assert (replica.circuit_open, replica.failures, outstanding(replicas)) == (False, 0, 0)
