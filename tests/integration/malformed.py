"""Requests that no client should send: sound ones, broken in many ways, the same ones in every run. No I/O."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

Node = tuple[Any, Any]
"""A container and the key of one of its members."""


class Broken(NamedTuple):
    """One request as it goes over the wire. `framed`: its length is what it says, so that an answer is due."""

    raw: bytes
    framed: bool


_STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 0.1, "", " ", "\x00", "a\x00b",
    "\ud800", "\udfff\ud800", "\uffff", "\U0010ffff", "x" * 60_000, [], {}, [[]], [None], [{}], {"": None},
    {"\x00": 1}, ["\ud800"], float("inf"), float("-inf"), float("nan"), [0] * 5_000,
    [{"role": "user"} for _ in range(200)], "ratchet", {"type": "x" * 5_000},
)  # fmt: skip
_BYTES = (
    b"\xff",
    b"\xc3\x28",
    b"\xed\xa0\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\x00",
    b"\x80",
    b"\xef\xbb\xbf",
    b"\\",
    b'"',
)
_LITERALS = (b"NaN", b"-Infinity", b"1e999999", b"-0", b"01", b"0x1", b"1" * 5_000, b"1." + b"0" * 5_000, b"tru", b"''")


def _messages(task: str) -> dict[str, Any]:
    """A request of Anthropic's with blocks of every kind."""
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
    document = {"type": "document", "title": "t", "source": {"type": "content", "content": [picture]}}
    called = [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
    ]
    result = {"type": "tool_result", "tool_use_id": "1", "content": [picture, document], "is_error": True}
    return {
        "model": task, "max_tokens": 5, "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "hello"}, picture, document]},
            {"role": "assistant", "content": called}, {"role": "user", "content": [result]},
            {"role": "system", "content": "s"}, {"role": "assistant", "content": "And"},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "tool", "name": "f"},
        "stop_sequences": ["x"], "thinking": {"type": "enabled", "budget_tokens": 2_000}, "top_k": 5,
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
        "metadata": {"user_id": "ann"},
    }  # fmt: skip


def sound(tasks: Sequence[str], prediction_id: str) -> list[tuple[str, dict[str, Any] | list[Any]]]:
    """Path and body of what the gateway takes; the first task must be a generation."""
    found: list[tuple[str, Any]] = []
    for task in tasks:
        turns = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "hello"}]}]
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        called = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "1", "content": "4"}]
        many = 2 if task == tasks[0] else 1  # A classification's answers would all be the same: refused.
        chat = {"model": task, "messages": turns, "user": "ann", "n": many, "stop": ["x"], "seed": 4, "temperature": 1}
        external = {"task": task, "messages": turns, "answer": "refund", "latency_ms": 3.0, "confidence": 0.5}
        found += [
            ("/v1/chat/completions", chat),
            ("/v1/chat/completions", {**chat, "messages": turns + called, "tools": [tool], "logprobs": True}),
            ("/v1/chat/completions", {**chat, "stream": True, "stream_options": {"include_usage": True}}),
            ("/v1/completions", {"model": task, "prompt": ["a", "b"], "logprobs": 1, "max_tokens": 3}),
            ("/v1/completions", {"model": task, "prompt": [1, 2, 3], "stream": True, "echo": False}),
            *(("/v1/messages", {**_messages(task), **more}) for more in ({}, {"stream": True})),
            ("/v1/messages/count_tokens", _messages(task)),
            ("/v1/responses", {"model": task, "input": turns, "instructions": "i", "include": []}),
            ("/v1/responses", {"model": task, "input": "hello", "stream": True, "top_logprobs": 2}),
            ("/v1/embeddings", {"model": task, "input": ["a", "b"], "dimensions": 3}),
            ("/v1/predictions", [external, {**external, "user": "ann", "logprob": -0.5}]),
        ]
    attributes = [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.input.messages", "value": {"stringValue": json.dumps([{"role": "user", "parts": []}])}},
        {"key": "ratchet.task", "value": {"stringValue": tasks[0]}},
    ]
    span = {
        "traceId": "5b8efff798038103d269b633813fc60c", "spanId": "eee19b7ec3c1b174", "name": "chat", "kind": 3,
        "startTimeUnixNano": "1544712660000000000", "endTimeUnixNano": "1544712661000000000", "attributes": attributes,
    }  # fmt: skip
    scoped = {"resource": {"attributes": []}, "scopeSpans": [{"scope": {"name": "s"}, "spans": [span]}]}
    found.append(("/v1/feedback", {"prediction_id": prediction_id, "kind": "thumbs", "positive": True, "user": "ann"}))
    found.append(("/v1/feedback", {"prediction_id": prediction_id, "kind": "edited", "text": "sorry"}))
    found.append(("/v1/traces", {"resourceSpans": [scoped]}))
    return found


def broken(tasks: Sequence[str], prediction_id: str, count: int, seed: int = 5) -> Iterator[Broken]:
    """So many requests, each sound one broken in some way."""
    dice = random.Random(seed)
    good = sound(tasks, prediction_id)
    for _ in range(count):
        path, body = dice.choice(good)
        if dice.random() < 0.12:
            yield _misframed(dice, path, json.dumps(body).encode())
        else:
            yield framed(path, dice.choice(_WAYS)(dice, deepcopy(body)))


def framed(path: str, body: bytes) -> Broken:
    return Broken(_head(path, f"content-length: {len(body)}".encode()) + body, framed=True)


def _head(path: str, *lines: bytes) -> bytes:
    first = f"POST {path} HTTP/1.1".encode()
    return b"\r\n".join(
        (first, b"host: gateway", b"content-type: application/json", b"connection: close", *lines, b"\r\n")
    )


def _dumped(body: Any) -> bytes:
    """As JSON, lone surrogates in bytes or in escapes."""
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _nodes(body: Any) -> list[Node]:
    """Every member of every container."""
    found: list[Node] = []
    todo = [body]
    while todo:
        one = todo.pop()
        members = list(one.items()) if isinstance(one, dict) else list(enumerate(one)) if isinstance(one, list) else []
        found += [(one, key) for key, _ in members]
        todo += [value for _, value in members]
    return found


def _replace(dice: random.Random, body: Any, value: Any) -> Any:
    container, key = dice.choice(_nodes(body))
    container[key] = value
    return body


def _strange(dice: random.Random, body: Any) -> bytes:
    for _ in range(dice.choice((1, 1, 1, 2, 4))):
        value = deepcopy(dice.choice(_STRANGE))  # It may itself be changed next: shared, it could come to hold itself.
        body = _replace(dice, body, value) if _nodes(body) else value
    if dice.random() < 0.5:
        return json.dumps(body).encode()  # A lone surrogate as an escape.
    return _dumped(body)


def _swapped(dice: random.Random, body: Any) -> bytes:
    """One part of the request where another belongs."""
    container, key = dice.choice(_nodes(body))
    return _dumped(_replace(dice, body, deepcopy(container[key])))


def _without(dice: random.Random, body: Any) -> bytes:
    container, key = dice.choice(_nodes(body))
    del container[key]
    return _dumped(body)


def _nested(dice: random.Random, body: Any) -> bytes:
    depth = dice.choice((50, 200, 250, 300, 500, 900, 1_020, 1_100, 3_000, 50_000))
    opening, closing = dice.choice(((b"[", b"]"), (b'{"a":', b"}")))
    deep = opening * depth + b"1" + (closing * depth if dice.random() < 0.8 else b"")
    if dice.random() < 0.2:
        return deep
    if dice.random() < 0.3 and isinstance(body, dict):
        body["metadata"] = "HOLE"
    else:
        body = _replace(dice, body, "HOLE")
    return _dumped(body).replace(b'"HOLE"', deep)


def _literal(dice: random.Random, body: Any) -> bytes:
    return _dumped(_replace(dice, body, "HOLE")).replace(b'"HOLE"', dice.choice(_LITERALS))


def _truncated(dice: random.Random, body: Any) -> bytes:
    whole = _dumped(body)
    return whole[: dice.randrange(len(whole))]


def _corrupted(dice: random.Random, body: Any) -> bytes:
    whole = bytearray(_dumped(body))
    for _ in range(dice.choice((1, 2, 8))):
        place = dice.randrange(len(whole))
        if dice.random() < 0.5:
            whole[place] = dice.randrange(256)
        else:
            whole[place:place] = dice.choice(_BYTES)
    return bytes(whole)


def _twice(dice: random.Random, body: Any) -> bytes:
    whole = _dumped(body)
    return dice.choice((whole + whole, whole[:-1] + b"," + whole[1:], whole + b"\n\x00", b"\xef\xbb\xbf" + whole))


_WAYS: tuple[Callable[[random.Random, Any], bytes], ...] = (
    _strange, _strange, _strange, _swapped, _without, _nested, _literal, _truncated, _corrupted, _twice,
)  # fmt: skip


def _misframed(dice: random.Random, path: str, body: bytes) -> Broken:
    """The length is not what it says, or says nothing."""
    longer, shorter = len(body) + dice.randrange(1, 999), dice.randrange(len(body))
    lines: tuple[bytes, ...] = dice.choice(
        (
            (b"content-length: %d" % longer,),
            (b"content-length: %d" % shorter,),
            (b"content-length: -1",),
            (b"content-length: ten",),
            (b"content-length: 99999999999999999999999999",),
            (b"content-length: %d" % len(body), b"content-length: %d" % shorter),
            (b"transfer-encoding: chunked",),
            (b"transfer-encoding: chunked", b"content-length: %d" % len(body)),
            (b"transfer-encoding: gzip, chunked",),
            (),
            (b"content-length: %d" % len(body), b"x-ratchet-user: \xff\xfe", b"authorization: \xff"),
            (b"content-length: %d" % len(body), b"x" * 20_000 + b": y"),
            (b"content-length: %d" % len(body), b"traceparent: 00-" + b"z" * 500),
        )
    )
    return Broken(_head(path, *lines) + body, framed=False)
