"""Bodies that clients compress: gzip is taken within the limits of plain ones, any other coding is refused by name."""

from __future__ import annotations

import asyncio
import gzip
import tracemalloc
import zlib
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import orjson
import pytest

from services.gateway.asgi.content_encoding import unpack
from services.gateway.auth.grants import AccessControl
from services.gateway.auth.keys import ApiKey, new_key, write_keys
from services.gateway.settings import BodyLimits
from shared.http import HttpError
from tests.unit.gateway.conftest import serving

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

MB = 1024**2
CHAT = "/v1/chat/completions"
BODY = orjson.dumps({"model": "haiku", "messages": [{"role": "user", "content": "a pond"}]})


def _of_size(size: int) -> bytes:
    """A chat request with so many bytes."""
    return BODY + b" " * (size - len(BODY))


async def _send(gateway: Gateway, content: bytes, coding: str = "gzip", path: str = CHAT) -> httpx.Response:
    return await gateway.http.post(path, content=content, headers={"content-encoding": coding})


@pytest.mark.parametrize("coding", ["gzip", "GZip", "x-gzip"])
@pytest.mark.parametrize("size", [len(BODY), 64 * 1024, 3 * MB])
async def test_a_gzip_body_is_as_the_plain_one(size: int, coding: str) -> None:
    async with serving(limits=BodyLimits(body=3 * MB)) as gateway:
        assert (await _send(gateway, gzip.compress(_of_size(size)), coding)).status_code == 200
        assert [asked["messages"][-1]["content"] for asked in gateway.upstream.asked] == ["a pond"]
        assert gateway.in_flight.total == 0


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/feedback", "/v1/predictions", "/v1/messages/count_tokens"])
async def test_every_route_that_takes_json_takes_gzip(gateway: Gateway, path: str) -> None:
    response = await _send(gateway, gzip.compress(b'{"model": 7, "task": 7, "prediction_id": 7}'), path=path)
    assert (response.status_code, "must be a string" in response.text) == (400, True)


@pytest.mark.parametrize("coding", ["identity", ""])
async def test_a_coding_that_changes_nothing_is_none(gateway: Gateway, coding: str) -> None:
    assert (await _send(gateway, BODY, coding)).status_code == 200


@pytest.mark.parametrize("path", [CHAT, "/v1/messages", "/v1/feedback"])
@pytest.mark.parametrize("coding", ["deflate", "br", "zstd", "gzip, gzip", "x" * 500])
async def test_another_coding_is_refused_with_what_to_send_instead(gateway: Gateway, coding: str, path: str) -> None:
    response = await _send(gateway, zlib.compress(BODY), coding, path)
    assert (response.status_code, response.headers["accept-encoding"]) == (415, "gzip")
    error = response.json()["error"]
    assert "gzip" in error["message"]
    assert coding[:50] in error["message"]
    assert len(error["message"]) < 300
    assert "content_encoding" in response.text


@pytest.mark.parametrize(
    "content",
    [
        b"no gzip", gzip.compress(BODY)[:-5], gzip.compress(BODY) + b"more", gzip.compress(BODY)[:30] + b"x", b"",
        gzip.compress(BODY) + gzip.compress(b""),
    ],
    ids=["no gzip", "cut", "more behind", "broken", "nothing", "several members"],
)  # fmt: skip
async def test_what_is_no_gzip_is_a_400_that_says_so(gateway: Gateway, content: bytes) -> None:
    response = await _send(gateway, content)
    assert response.status_code == 400
    assert "gzip" in response.json()["error"]["message"] or content == b""


@pytest.mark.parametrize("path", [CHAT, "/v1/feedback"])
async def test_a_body_that_unpacks_to_more_than_the_limit_is_refused_before_it_takes_memory(path: str) -> None:
    bomb = gzip.compress(b" " * 200 * MB)
    async with serving(limits=BodyLimits(body=MB)) as gateway:
        tracemalloc.start()
        try:
            response = await _send(gateway, bomb, path=path)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert f"{MB} bytes when unpacked" in response.json()["error"]["message"]
        assert peak < 8 * MB
        assert gateway.in_flight.total == 0
        assert (await _send(gateway, gzip.compress(_of_size(MB)))).status_code == 200
        assert (await _send(gateway, gzip.compress(_of_size(MB + 1)))).status_code == 413


async def test_the_unpacked_bytes_count_as_those_in_flight_and_of_the_key(tmp_path: Path) -> None:
    key, digest = new_key()
    limited = ApiKey(app="shop", digest=digest, created_at=datetime.now(UTC), bytes_per_minute=MB)
    write_keys(tmp_path / "keys.json", [limited])
    access = AccessControl(tmp_path / "keys.json", tmp_path / "had-keys")
    access.reload()
    headers: Any = {"authorization": f"Bearer {key}", "content-encoding": "gzip"}
    async with serving(access=access, limits=BodyLimits(body=4 * MB, app=MB)) as gateway:
        first = await gateway.http.post(CHAT, content=gzip.compress(_of_size(900_000)), headers=headers)
        second = await gateway.http.post(CHAT, content=gzip.compress(_of_size(900_000)), headers=headers)
        assert (first.status_code, second.status_code) == (200, 429)
        assert "bytes a minute" in second.json()["error"]["message"]


NAMED = b"\x1f\x8b\x08\x08" + 6 * b"\0"


@pytest.mark.parametrize(
    "packed",
    [
        100_000 * gzip.compress(b""), gzip.compress(b"") + MB * b"\0",
        NAMED + MB * b"a" + b"\0" + gzip.compress(b"")[10:], gzip.compress(bytes(range(256)) * 4096, 0),
    ],
    ids=["empty members", "padding", "a long name", "a usual one"],
)  # fmt: skip
async def test_a_long_body_is_unpacked_beside_the_event_loop(packed: bytes) -> None:
    seen: list[int] = []
    asyncio.get_running_loop().call_soon(seen.append, 0)
    with suppress(HttpError):
        await unpack(packed, MB, seen.append)
    assert seen[0] == 0, "nothing else had a turn before a step was unpacked"


async def test_what_is_over_the_bytes_in_flight_is_unpacked_no_further() -> None:
    counted: list[int] = []

    def refuse(size: int) -> None:
        counted.append(size)
        raise HttpError(503, "too much at once", "overloaded")

    with pytest.raises(HttpError, match="too much"):
        await unpack(gzip.compress(bytes(20 * MB)), 32 * MB, refuse)
    assert counted == [1024 * 1024]
