"""The bytes of request bodies that a worker holds are bounded, and released however a request ends."""

from __future__ import annotations

import asyncio
import gc
import gzip
import time
from collections import deque
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from services.gateway.asgi.admission import RequestAdmission
from services.gateway.asgi.exchange import Exchange
from services.gateway.asgi.in_flight import BytesInFlight, HeldBytes
from services.gateway.auth.grants import UNRESTRICTED, AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.settings import BodyLimits
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import HttpError
from tests.unit.gateway.conftest import REFUND, Gateway, serving
from tests.unit.gateway.real_sockets import listening
from tests.waiting import PATIENCE_SECONDS, until

CHAT = "/v1/chat/completions"
MB = 1024**2


def asked(size: int = 0, **more: Any) -> bytes:
    """A chat request with about so many bytes. The padding is not logged."""
    body = {"model": "support", "messages": [{"role": "user", "content": "hello"}], **more}
    return orjson.dumps(body) + b" " * size


async def _until(holds: Any) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not holds():
            await asyncio.sleep(0.005)


def pieces_then(pieces: list[bytes], end: dict[str, Any] | None) -> Any:
    """A `receive` that gives these pieces of a body, and then `end`, or never anything."""
    messages = deque({"type": "http.request", "body": piece, "more_body": True} for piece in pieces)

    async def receive() -> Any:
        if messages:
            return messages.popleft()
        if end is None:
            await asyncio.Event().wait()
        return end

    return receive


async def call(gateway: Gateway, receive: Any, *headers: tuple[bytes, bytes]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": CHAT, "headers": list(headers)}
    await gateway.app(scope, receive, send)
    return sent


LAST = {"type": "http.request", "body": b"", "more_body": False}


@pytest.mark.parametrize(
    "content",
    [
        asked(), asked(stream=True), b"{", asked(n=2), asked(model="nope"), b" " * (200 * 1024),
    ],
    ids=["answer", "stream", "bad json", "bad field", "no task", "too large"],
)  # fmt: skip
@pytest.mark.parametrize("failure", [None, UpstreamFailed(500, "broke", "error"), RuntimeError("internal error")])
async def test_bytes_are_released_after_every_answer(
    gateway: Gateway, content: bytes, failure: Exception | None
) -> None:
    gateway.upstream.failure = failure  # type: ignore[assignment]
    await gateway.http.post(CHAT, content=content)
    assert gateway.in_flight.total == 0


async def test_bytes_are_counted_while_the_model_server_answers_and_released_when_the_client_leaves(
    gateway: Gateway,
) -> None:
    gateway.upstream.waits_for = asyncio.Event()
    content = asked(1_000)
    request = asyncio.create_task(gateway.http.post(CHAT, content=content))
    await _until(lambda: gateway.upstream.asked)
    assert gateway.in_flight.total == len(content)
    assert await gateway.metric("ratchet_gateway_body_bytes") == len(content)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert gateway.in_flight.total == 0


async def test_bytes_are_counted_until_a_stream_ends(gateway: Gateway) -> None:
    more = asyncio.Event()
    gateway.upstream.pieces = [*REFUND[:2], more, *REFUND[2:]]
    receive = pieces_then([asked(stream=True)], LAST)
    request = asyncio.create_task(call(gateway, receive))
    await _until(lambda: gateway.upstream.asked)
    assert gateway.in_flight.total == len(asked(stream=True))
    more.set()
    await request
    assert gateway.in_flight.total == 0


async def test_bytes_are_released_when_the_client_leaves_within_its_body(gateway: Gateway) -> None:
    receive = pieces_then([b"{" * 100], {"type": "http.disconnect"})
    assert await call(gateway, receive, (b"content-length", b"50000")) == []
    assert gateway.in_flight.total == 0


@pytest.mark.parametrize("pieces", [[], [b"{"]], ids=["nothing", "a piece"])
async def test_a_body_that_stops_coming_or_never_begins_is_refused_and_released(pieces: list[bytes]) -> None:
    async with serving(limits=BodyLimits(silence=0.05)) as gateway, asyncio.timeout(PATIENCE_SECONDS):
        start, body = await call(gateway, pieces_then(pieces, None), (b"content-length", b"50000"))
        assert (start["status"], orjson.loads(body["body"])["error"]["code"]) == (408, "body_timeout")
        assert gateway.in_flight.total == 0


async def test_a_body_that_comes_late_is_read(gateway: Gateway) -> None:
    begins = asyncio.Event()
    at_once = pieces_then([asked()], LAST)

    async def receive() -> Any:
        await begins.wait()
        await asyncio.sleep(0)
        return await at_once()

    request = asyncio.create_task(call(gateway, receive))
    await asyncio.sleep(0)
    begins.set()
    assert (await request)[0]["status"] == 200


async def test_a_body_that_has_come_costs_no_timer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admission = RequestAdmission(AccessControl(tmp_path / "k", tmp_path / "h"), BodyLimits())
    monkeypatch.delattr(asyncio, "timeout")
    body = await admission.read(UNRESTRICTED, admission.hold(), [], pieces_then([b"{", b"}"], LAST))
    assert body == b"{}"


async def test_waiting_for_a_body_that_has_not_begun_ends_with_its_request(gateway: Gateway) -> None:
    waits: list[bool] = []

    async def receive() -> Any:
        waits.append(True)
        try:
            await asyncio.Event().wait()
        finally:
            waits.clear()

    request = asyncio.create_task(call(gateway, receive))
    await until(lambda: waits)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert not waits


async def test_a_declared_body_is_counted_before_it_has_come_and_another_piece_by_piece(gateway: Gateway) -> None:
    declared = asyncio.create_task(call(gateway, pieces_then([b"{"], None), (b"content-length", b"50000")))
    await _until(lambda: gateway.in_flight.total)
    assert gateway.in_flight.total == 50_000
    chunked = asyncio.create_task(call(gateway, pieces_then([b"{" * 10, b"{" * 10], None)))
    await _until(lambda: gateway.in_flight.total > 50_010)
    assert gateway.in_flight.total == 50_020
    for task in (declared, chunked):
        task.cancel()
    await asyncio.gather(declared, chunked, return_exceptions=True)
    assert gateway.in_flight.total == 0


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[tuple[Gateway, dict[str, dict[str, str]]]]:
    """A gateway that takes 4 MiB at a time, 2 MiB of an application, with the headers of two."""
    made = {app: new_key() for app in ("shop", "desk")}
    keys = [ApiKey(app=app, digest=digest, created_at=datetime.now(UTC)) for app, (_, digest) in made.items()]
    write_keys(tmp_path / "keys.json", keys)
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    async with serving(access=access, limits=BodyLimits(body=8 * MB, worker=4 * MB, app=2 * MB)) as gateway:
        yield gateway, {app: {"authorization": f"Bearer {key}"} for app, (key, _) in made.items()}


async def test_an_app_over_its_bytes_in_flight_gets_a_429_and_others_none(
    keyed: tuple[Gateway, dict[str, dict[str, str]]],
) -> None:
    gateway, headers = keyed
    gateway.upstream.waits_for = asyncio.Event()
    first = asyncio.create_task(gateway.http.post(CHAT, content=asked(MB), headers=headers["shop"]))
    await _until(lambda: gateway.upstream.asked)
    second = await gateway.http.post(CHAT, content=asked(MB), headers=headers["shop"])
    assert (second.status_code, second.json()["error"]["code"]) == (429, "too_many_bytes_in_flight")
    assert second.headers["retry-after"] == "2"
    gateway.upstream.waits_for.set()
    assert (await gateway.http.post(CHAT, content=asked(MB), headers=headers["desk"])).status_code == 200
    assert (await first).status_code == 200
    assert (await gateway.http.post(CHAT, content=asked(MB), headers=headers["shop"])).status_code == 200


async def test_a_full_worker_answers_503_to_large_bodies_and_still_takes_small_ones() -> None:
    async with serving(limits=BodyLimits(body=8 * MB, worker=2 * MB)) as gateway:
        gateway.upstream.waits_for = asyncio.Event()
        first = asyncio.create_task(gateway.http.post(CHAT, content=asked(MB)))
        await _until(lambda: gateway.upstream.asked)
        refused = await gateway.http.post(CHAT, content=asked(MB))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert refused.json()["error"]["type"] == "server_error"
        gateway.upstream.waits_for.set()
        assert (await gateway.http.post(CHAT, content=asked())).status_code == 200
        assert (await first).status_code == 200


def test_a_body_that_is_alone_is_taken_whatever_its_size() -> None:
    in_flight = BytesInFlight(100, 10)
    held = HeldBytes(in_flight)
    held.app = "shop"
    for size in (50, 500):
        held.grow_to(size)
    other = HeldBytes(in_flight)
    with pytest.raises(HttpError):
        other.grow_to(1)
    held.release()
    held.release()
    other.grow_to(1)
    assert in_flight.total == 1


async def test_a_body_in_many_pieces_takes_time_in_proportion_to_its_size(tmp_path: Path) -> None:
    admission = RequestAdmission(AccessControl(tmp_path / "k", tmp_path / "h"), BodyLimits())
    pieces, began = [b"%1024d" % number for number in range(20_000)], time.process_time()
    body = await admission.read(UNRESTRICTED, admission.hold(), [], pieces_then(pieces, LAST))
    assert time.process_time() - began < 2.0  # Copying the whole for each piece: 200 GB.
    assert body == b"".join(pieces)


def _limited(folder: Path, bytes_per_minute: int) -> tuple[AccessControl, str]:
    """Access by one key, with the key."""
    key, digest = new_key()
    limited = ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC), bytes_per_minute=bytes_per_minute)
    write_keys(folder / "keys.json", [limited])
    access = AccessControl(folder / "keys.json", folder / "had-keys")
    access.reload()
    return access, key


async def test_a_body_over_its_keys_bytes_a_minute_is_granted_whole_however_it_comes(tmp_path: Path) -> None:
    access, key = _limited(tmp_path, 1_000)
    async with serving(access=access) as gateway:
        whole, headers = asked(2_000), (b"authorization", b"Bearer " + key.encode())
        start, _ = await call(gateway, pieces_then([whole[:500], whole[500:]], LAST), headers)
        assert start["status"] == 200
        assert (await call(gateway, pieces_then([b"{"], LAST), headers))[0]["status"] == 429


@pytest.mark.parametrize(
    ("content", "coding", "status"),
    [
        (900 * b"x", b"gzip", 400),
        (gzip.compress(asked(2 * MB)), b"gzip", 413),
        (asked(MB), b"identity", 413),
    ],
    ids=["garbage", "a bomb", "too long"],
)
async def test_a_body_that_is_refused_for_what_came_is_charged_to_its_key(
    tmp_path: Path, content: bytes, coding: bytes, status: int
) -> None:
    access, key = _limited(tmp_path, 1_000)
    async with serving(access=access, limits=BodyLimits(body=MB)) as gateway:
        headers = (b"authorization", b"Bearer " + key.encode()), (b"content-encoding", coding)
        half = len(content) // 2
        pieces = [content[:half], content[half:]]
        assert (await call(gateway, pieces_then(pieces, LAST), *headers))[0]["status"] == status
        assert (await call(gateway, pieces_then([asked(900)], LAST), headers[0]))[0]["status"] == 429
        assert gateway.in_flight.total == 0


@pytest.mark.parametrize("coding", [b"identity", b"gzip"])
async def test_a_body_whose_client_left_before_its_end_is_charged_to_its_key(tmp_path: Path, coding: bytes) -> None:
    access, key = _limited(tmp_path, 1_000)
    async with serving(access=access) as gateway:
        headers = (b"authorization", b"Bearer " + key.encode()), (b"content-encoding", coding)
        await call(gateway, pieces_then([900 * b"x"], {"type": "http.disconnect"}), *headers)
        start, _ = await call(gateway, pieces_then([asked(900)], LAST), headers[0])
        assert start["status"] == 429
        assert gateway.in_flight.total == 0


async def test_a_declared_body_is_charged_to_its_key_before_it_has_come(tmp_path: Path) -> None:
    access, key = _limited(tmp_path, 1_000)
    async with serving(access=access) as gateway:
        headers = (b"authorization", b"Bearer " + key.encode())
        await gateway.http.post(CHAT, content=asked(900), headers={"authorization": f"Bearer {key}"})
        start, _ = await call(gateway, pieces_then([b"{"], None), headers, (b"content-length", b"50000"))
        assert start["status"] == 429


async def test_nothing_of_a_slow_request_waits_for_the_garbage_collector(gateway: Gateway) -> None:
    """Its full run is rare, and until then the body of each request would stay."""
    async with listening(gateway.app) as (port, _), httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        before = {id(exchange) for exchange in _exchanges()}
        gc.disable()
        try:
            for stream in (False, True):
                gateway.upstream.waits_for = asyncio.Event()
                gateway.upstream.pieces = [gateway.upstream.waits_for, *REFUND]
                asyncio.get_running_loop().call_later(0.1, gateway.upstream.waits_for.set)
                await http.post(f"http://127.0.0.1:{port}{CHAT}", content=asked(stream=stream))
            await http.get(f"http://127.0.0.1:{port}/healthz")  # The connection has let go of its last request.
            assert [exchange for exchange in _exchanges() if id(exchange) not in before] == []
        finally:
            gc.enable()


def _exchanges() -> list[Exchange]:
    return [found for found in gc.get_objects() if isinstance(found, Exchange)]
