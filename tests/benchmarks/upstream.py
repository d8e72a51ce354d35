"""A model server that gives everyone the same answer at once: `granian --interface rsgi tests.benchmarks.upstream:app`.

Its answer has the shape and size of vLLM's: a sentence of eight tokens with their log-probabilities, whole or as a
stream of one event per token.
"""

from __future__ import annotations

from typing import Any

import orjson

ADAPTER, BASE = "bench-adapter", "bench-base"
NUMBER = b"0000000000"
"""Stands in a request's text for the number of the request."""
FIRST = "Parcel"
"""The first token of the answer, which occurs nowhere else in it."""
_TOKENS = (FIRST, " 4711", " left", " us", " on", " Monday", " morning", ".")
_COMMON = {"id": "chatcmpl-0123456789abcdef0123456789abcdef", "created": 1_750_000_000, "model": ADAPTER}
_USAGE = {"prompt_tokens": 96, "completion_tokens": len(_TOKENS), "total_tokens": 96 + len(_TOKENS)}
_JSON = [("content-type", "application/json")]
_EVENTS = [("content-type", "text/event-stream; charset=utf-8")]


def _logprobs(*tokens: str) -> dict[str, Any]:
    return {
        "content": [{"token": t, "logprob": -0.0123, "bytes": list(t.encode()), "top_logprobs": []} for t in tokens]
    }


def _completion() -> bytes:
    message = {"role": "assistant", "content": "".join(_TOKENS), "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": _logprobs(*_TOKENS), "finish_reason": "stop"}
    return orjson.dumps({**_COMMON, "object": "chat.completion", "choices": [choice], "usage": _USAGE})


def _event(delta: dict[str, str], logprobs: dict[str, Any] | None, finish_reason: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return b"data: " + orjson.dumps({**_COMMON, "object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


COMPLETION = _completion()
STREAM = (
    _event({"role": "assistant", "content": ""}, None, None),
    *(_event({"content": token}, _logprobs(token), None) for token in _TOKENS),
    _event({}, None, "stop"),
    b"data: [DONE]\n\n",
)
MODELS = orjson.dumps({"object": "list", "data": [{"id": name, "object": "model"} for name in (BASE, ADAPTER)]})


async def app(scope: Any, protocol: Any) -> None:
    """Answer through RSGI, granian's own interface, which costs least in Python."""
    if scope.proto != "http":
        return
    if scope.method == "GET":
        protocol.response_bytes(200, _JSON, MODELS)
        return
    asked = await protocol()
    if b'"stream":true' in asked or b'"stream": true' in asked:
        stream = protocol.response_stream(200, _EVENTS)
        for event in STREAM:
            await stream.send_bytes(event)
    else:
        protocol.response_bytes(200, _JSON, COMPLETION)
