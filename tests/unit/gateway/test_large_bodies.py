"""Large bodies: they are decoded as small ones are, and the work on them does not hold up others."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from services.gateway import handlers
from services.gateway.answering import tokens
from services.gateway.asgi.large_work import LARGE_BYTES, LargeWork
from services.gateway.formats import validation
from services.gateway.formats.chat import ChatRequest
from services.gateway.json_codec import decode_json
from services.gateway.settings import BodyLimits
from tests.unit.gateway.conftest import chat_completion, serving
from tests.waiting import PATIENCE_SECONDS, until

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

CHAT = "/v1/chat/completions"
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * LARGE_BYTES}}
LARGE = {"model": "haiku", "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, PICTURE]}]}
SMALL = {"model": "support", "messages": [{"role": "user", "content": "hello"}]}
PADDING = b" " * LARGE_BYTES
USER = {"role": "user", "content": "hello"}


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a": [1, -2, 3.5, 1e5, true, null, "\\u00e9\\ud83d\\ude00\\n", {}], "b": {"a": 1, "a": 2}}',
        "\"текст 😀\"".encode(), b"[18446744073709551615, -9223372036854775808, 1.5e-400]", b"[" * 900 + b"]" * 900,
        b"{", b"", b"NaN", b"[1e400]", b'"\\ud800"', b'"\xff"', b'"\x01"', b"01", b"1 2", b"[" * 5_000 + b"]" * 5_000,
        b"\xef\xbb\xbf{}",
    ],
)  # fmt: skip
def test_a_large_body_is_decoded_as_a_small_one(raw: bytes) -> None:
    def outcome(decode: Callable[[bytes], Any]) -> Any:
        try:
            return decode(raw + PADDING)
        except orjson.JSONDecodeError as error:
            return str(error)

    assert outcome(decode_json) == outcome(orjson.loads)


BIG = 123456789012345678901234


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/v1/messages"])
async def test_an_integer_of_more_than_64_bits_reaches_the_model_server_as_it_is(
    path: str, stream: bool, padding: bytes
) -> None:
    """vLLM reads it as Python does. Readers of events could not write it again: there it is a float, and marked."""
    asked: dict[str, Any] = {"model": "support", "stream": stream, "max_tokens": 5, "metadata": {"order": BIG}}
    asked["messages"] = [{"role": "user", "content": "x"}]
    asked["chat_template_kwargs"] = {"id": BIG, "list": [-BIG]}
    async with serving(limits=BodyLimits()) as gateway:
        if path == "/v1/responses":
            asked["input"] = "x"
            gateway.upstream.answer = {"status": "completed", "output": []}
            completed = {"type": "response.completed", "response": gateway.upstream.answer}
            gateway.upstream.pieces = [b"data: " + orjson.dumps(completed) + b"\n\n"]
        bodies: list[bytes] = []
        note = gateway.upstream._note
        gateway.upstream._note = lambda path, body, *more: (bodies.append(body), note(path, body, *more))[1]  # type: ignore[method-assign]
        response = await gateway.http.post(path, content=json.dumps(asked).encode() + padding)
        assert response.status_code == 200, response.text
        assert json.loads(bodies[0])["chat_template_kwargs"] == asked["chat_template_kwargs"]
        assert (str(BIG) in response.text) is (path == "/v1/responses")  # Which gives the metadata back.
        (event,) = gateway.log.events
        assert event.call.parameters["chat_template_kwargs"] == {"id": float(BIG), "list": [-float(BIG)]}
        assert event.call.truncated
        if path != "/v1/messages":
            assert event.metadata == {"order": str(BIG)}


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
@pytest.mark.parametrize("value", [b"9" * 400, b"[9" + b"9" * 30 + b", " + b"[" * 900 + b"]" * 901])
async def test_an_integer_that_is_no_finite_float_or_stands_in_too_deep_json_is_a_400(
    value: bytes, padding: bytes
) -> None:
    raw = b'{"model": "haiku", "messages": [{"role": "user", "content": "x"}], "priority": ' + value + b"}"
    async with serving(limits=BodyLimits()) as gateway:
        assert (await gateway.http.post(CHAT, content=raw + padding)).status_code == 400
        raw = raw.replace(b"priority", b"chat_template_kwargs")
        assert (await gateway.http.post(CHAT, content=raw + padding)).status_code == 400


@pytest.mark.parametrize("padding", [b"", PADDING], ids=["small", "large"])
async def test_a_user_who_is_a_long_number_is_the_same_in_a_body_of_any_size(padding: bytes) -> None:
    async with serving(limits=BodyLimits()) as gateway:
        for user in (BIG, str(BIG)):
            body = json.dumps({**SMALL, "metadata": {"user_id": user}}).encode() + padding
            assert (await gateway.http.post(CHAT, content=body)).status_code == 200
        first, second = gateway.log.events
        assert first.user_hash == second.user_hash is not None


async def test_a_large_request_passes_and_is_logged(gateway: Gateway) -> None:
    async with serving(limits=BodyLimits()) as large:
        response = await large.http.post(CHAT, json=LARGE)
        assert response.status_code == 200
        assert large.upstream.asked[0]["messages"][-1] == LARGE["messages"][0]  # type: ignore[index]
        assert len(large.log.predictions) == 1


@dataclass
class SlowWork:
    """Work on the requests of task `haiku` that goes on until `may_end`, or until a test has waited too long for it."""

    began: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)
    ended_in_time: list[bool] = field(default_factory=list)

    def instead_of(self, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
        """Make a method of `ChatRequest` do this work first."""
        original = getattr(ChatRequest, method)

        def slow(request: ChatRequest, *arguments: Any, **named: Any) -> Any:
            if request.task.name == "haiku":
                self.began.set()
                self.ended_in_time.append(self.may_end.wait(PATIENCE_SECONDS))
            return original(request, *arguments, **named)

        monkeypatch.setattr(ChatRequest, method, slow)

    async def is_beside_a_small_request(self, gateway: Gateway, body: Any) -> bool:
        """Return True if a small request is answered while this work is done on a large one."""
        self.began.clear(), self.may_end.clear(), self.ended_in_time.clear()
        request = asyncio.create_task(gateway.http.post(CHAT, json=body))
        await until(self.began.is_set)
        gateway.upstream.answer = chat_completion("refund", [-0.1])
        assert (await gateway.http.post(CHAT, json=SMALL)).status_code == 200
        self.may_end.set()
        assert (await request).status_code == 200
        return all(self.ended_in_time)


@pytest.mark.parametrize("method", ["calls", "encode_for_upstream"])
async def test_a_small_request_does_not_wait_for_the_work_on_a_large_one(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    (work := SlowWork()).instead_of(monkeypatch, method)
    async with serving(limits=BodyLimits()) as gateway:
        assert await work.is_beside_a_small_request(gateway, LARGE)
        assert await work.is_beside_a_small_request(gateway, {**LARGE, "stream": True})


@pytest.mark.parametrize("method", ["parse_answer", "rewrite_for_client"])
async def test_a_small_request_does_not_wait_for_the_work_on_a_large_answer(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    (work := SlowWork()).instead_of(monkeypatch, method)
    async with serving() as gateway:
        gateway.upstream.answer = chat_completion("x" * LARGE_BYTES, [-0.1])
        assert await work.is_beside_a_small_request(gateway, {**SMALL, "model": "haiku"})


async def test_bytes_of_a_client_that_left_are_in_flight_until_the_work_on_them_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else clients that leave at once could make a gateway hold any number of bodies."""
    began, may_end, work = threading.Event(), threading.Event(), ChatRequest.calls

    def slow(self: ChatRequest, *arguments: Any, **named: Any) -> Any:
        began.set()
        may_end.wait(PATIENCE_SECONDS)
        return work(self, *arguments, **named)

    monkeypatch.setattr(ChatRequest, "calls", slow)
    async with serving(limits=BodyLimits()) as gateway:
        request = asyncio.create_task(gateway.http.post(CHAT, json=LARGE))
        assert await asyncio.to_thread(began.wait, PATIENCE_SECONDS)
        request.cancel()
        await asyncio.sleep(0.05)
        assert gateway.in_flight.total > LARGE_BYTES
        may_end.set()
        await asyncio.gather(request, return_exceptions=True)
        assert gateway.in_flight.total == 0
        assert gateway.upstream.asked == []


async def test_large_bodies_are_worked_on_one_at_a_time_and_small_ones_at_once() -> None:
    work, running, most = LargeWork(), 0, 0

    def step() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.02)
        running -= 1

    await asyncio.gather(*(work.run(LARGE_BYTES + 1, step) for _ in range(4)))
    assert most == 1
    assert await work.run(LARGE_BYTES, threading.get_ident) == threading.get_ident()
    assert await work.run(LARGE_BYTES + 1, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await work.run(LARGE_BYTES + 1, divmod, 1, 0)


@pytest.mark.parametrize(
    ("path", "work", "body"),
    [
        ("/v1/predictions", handlers, {"task": "haiku", "messages": [USER], "answer": "a", "latency_ms": 1}),
        ("/v1/messages/count_tokens", tokens, {"model": "haiku", "messages": [USER]}),
    ],
)
async def test_what_is_large_and_no_question_leaves_the_event_loop_too(
    monkeypatch: pytest.MonkeyPatch, path: str, work: ModuleType, body: dict[str, Any]
) -> None:
    threads: list[bool] = []
    name = "read_report" if work is handlers else "MessagesRequest"
    original = getattr(work, name)

    def seen(*arguments: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return original(*arguments)

    monkeypatch.setattr(work, name, seen)
    async with serving(limits=BodyLimits()) as gateway:
        gateway.upstream.answer = {"count": 7}
        for padding in (b"", PADDING):
            response = await gateway.http.post(path, content=orjson.dumps(body) + padding)
            assert response.status_code == 200, response.text
    assert threads == [True, False]


async def test_an_error_in_a_large_body_is_the_clients(gateway: Gateway) -> None:
    async with serving(limits=BodyLimits()) as large:
        for content, code in ((b"{" + PADDING, "malformed_json"), (b"[]" + PADDING, "invalid_request")):
            response = await large.http.post(CHAT, content=content)
            assert (response.status_code, response.json()["error"]["code"]) == (400, code)
        refused = {**LARGE, "messages": [{"role": "user", "content": [PICTURE, 7]}]}
        assert (await large.http.post(CHAT, json=refused)).status_code == 400


def test_what_decodes_large_bodies_is_used_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation.orjson, "loads", None)
    assert decode_json(b"[1]" + PADDING) == [1]
