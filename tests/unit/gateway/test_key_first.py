"""A key is checked before the body is read, and whoever is refused sees the reason: on real sockets."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import uvloop

from services.gateway.asgi import protocol
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.settings import BodyLimits
from tests.unit.gateway.conftest import Gateway, serving
from tests.unit.gateway.real_sockets import listening
from tests.waiting import PATIENCE_SECONDS

LARGE = 8 * 1024**2
CHAT = orjson.dumps({"model": "support", "messages": [{"role": "user", "content": "hello"}]})
PATHS = ("/v1/chat/completions", "/v1/feedback", "/v1/predictions")
Loop = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Loop:
    loop: Loop = request.param
    return loop


@asynccontextmanager
async def guarded(folder: Path, **limits: int) -> AsyncIterator[tuple[Gateway, str, int]]:
    """A gateway with a key. Yields the gateway, the key and the port."""
    key, digest = new_key()
    write_keys(folder / "keys.json", [ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC))])
    access = AccessControl(folder / "keys.json", folder / "had-keys")
    access.reload()
    async with serving(access=access, limits=BodyLimits(**limits)) as gateway, listening(gateway.app) as (port, _):
        yield gateway, key, port


def head(path: str, length: int, *lines: str) -> bytes:
    return "\r\n".join(
        [
            f"POST {path} HTTP/1.1",
            "host: g",
            "content-type: application/json",
            f"content-length: {length}",
            *lines,
            "\r\n",
        ]
    ).encode()


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bytes]:
    """Status, headers and body of an answer."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        raw = await reader.readuntil(b"\r\n\r\n")
        length = int(raw.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        return int(raw.split()[1]), raw.lower(), await reader.readexactly(length)


@pytest.mark.parametrize("path", PATHS)
def test_a_request_without_a_key_is_refused_before_a_byte_of_its_body_has_come(tmp_path: Path, path: str) -> None:
    async def scenario() -> None:
        async with guarded(tmp_path) as (gateway, _, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head(path, 1_000_000))
            status, _, body = await read_answer(reader)
            assert (status, json.loads(body)["error"]["code"]) == (401, "missing_api_key")
            assert gateway.in_flight.total == 0
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("lines", [(), ("connection: close",)])
def test_a_client_that_sends_all_its_body_first_sees_the_401_and_no_reset(
    tmp_path: Path, run: Loop, lines: tuple[str, ...]
) -> None:
    """Most clients read the answer only then. `sendall` would raise if the connection were reset meanwhile."""

    def blocking(port: int) -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as client:
            client.sendall(head(PATHS[0], LARGE, *lines))
            for _ in range(LARGE // 2**16):
                client.sendall(b" " * 2**16)
            received = client.recv(2**16)
            if not lines:  # The connection is as good as before.
                client.sendall(head(PATHS[0], 2) + b"{}")
                received += client.recv(2**16)
            return received + client.recv(2**16) if lines else received

    async def scenario() -> None:
        async with guarded(tmp_path) as (_, _, port):
            received = await asyncio.to_thread(blocking, port)
            assert received.count(b"HTTP/1.1 401") == (1 if lines else 2)
            assert (b"connection: close" in received) is bool(lines)

    run(scenario())


@pytest.mark.parametrize("lines", [(), ("connection: close",)])
def test_a_body_over_the_limit_is_refused_and_the_client_sees_the_413(
    tmp_path: Path, run: Loop, lines: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with (
            guarded(tmp_path, body=1_000_000) as (_, key, port),
            httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http,
        ):
            headers = {"authorization": f"Bearer {key}", **dict(line.split(": ") for line in lines)}

            async def undeclared() -> AsyncIterator[bytes]:
                for _ in range(LARGE // 2**16):
                    yield b" " * 2**16

            for content in (b" " * LARGE, undeclared()):
                answer = await http.post(f"http://127.0.0.1:{port}{PATHS[0]}", content=content, headers=headers)
                assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    run(scenario())


async def test_a_client_that_waits_to_be_asked_for_its_body_is_refused_without_being_asked(tmp_path: Path) -> None:
    async with guarded(tmp_path) as (_, key, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(PATHS[0], 1_000_000, "expect: 100-continue"))
        status, headers, _ = await read_answer(reader)
        assert status == 401
        assert b"connection: close" in headers
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head(PATHS[0], len(CHAT), "expect: 100-continue", f"authorization: Bearer {key}"))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(CHAT)
        assert (await read_answer(reader))[0] == 200
        writer.close()


async def _cut(port: int, send: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> None:
    """Return once the server cuts a refused client that does this."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(PATHS[0], 10**15))
    assert (await read_answer(reader))[0] == 401
    async with asyncio.timeout(PATIENCE_SECONDS):
        try:
            await send(writer)
            assert await reader.read() == b""
        except ConnectionError:
            pass
    writer.close()


@pytest.mark.parametrize("pause", [0.0, 0.02])
async def test_a_refused_client_is_cut_that_sends_too_much_or_for_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b" " * 100 if pause else b" " * 2**16)
            await writer.drain()
            await asyncio.sleep(pause)

    monkeypatch.setattr(protocol, "_MAX_DRAINED_BYTES", 2**40 if pause else 2**20)
    async with guarded(tmp_path) as (_, _, port):
        await _cut(port, endless)


async def test_another_apps_task_is_refused_once_the_body_is_read(tmp_path: Path) -> None:
    """The task is in the body."""
    key, digest = new_key()
    own = ApiKey(app="desk", digest=digest, tasks=("haiku",), created_at=datetime.now(UTC))
    write_keys(tmp_path / "keys.json", [own])
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    async with serving(access=access) as gateway:
        answer = await gateway.http.post(PATHS[0], content=CHAT, headers={"authorization": f"Bearer {key}"})
        assert (answer.status_code, gateway.in_flight.total, gateway.upstream.asked) == (403, 0, [])
