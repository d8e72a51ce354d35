"""A model server that answers at once, with log-probabilities: `python -m tests.chaos.load.upstream PORT`.

It replaces vLLM, which is not tested here. What it answers is in `answers.py`; the request says how many answers, which
functions there are, whether a label is asked for, and the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import orjson
from aiohttp import web

from tests.chaos.load.answers import (
    HIGH_LOGPROB,
    LOW_LOGPROB,
    Special,
    StandInAnswer,
    answers_to,
    special_of,
    usage_of,
)

_PIECE = 50
_SLOW_SECONDS = 0.1
Object = dict[str, Any]


class _Asked:
    """A request: the answers to it, and what its answers say beside them."""

    def __init__(self, raw: bytes) -> None:
        self.body: Object = orjson.loads(raw)
        template = self.body.get("chat_template_kwargs") or {}
        self.seed = int(self.body.get("seed") or template.get("seed") or 0)
        functions = tuple(tool.get("function", tool)["name"] for tool in self.body.get("tools") or ())
        labels = "choice" in (self.body.get("structured_outputs") or {})
        self.answers = answers_to(self.seed, self.body.get("n") or 1, functions=functions, labels=labels)
        self.logprob = LOW_LOGPROB if special_of(self.seed) is Special.LOW else HIGH_LOGPROB

    @property
    def common(self) -> Object:
        return {"id": "x", "created": 0, "model": self.body["model"]}

    def usage(self, prompt: str = "prompt", completion: str = "completion") -> Object:
        asked, answered, cached, reasoning = usage_of(self.seed)
        return {
            f"{prompt}_tokens": asked, f"{completion}_tokens": answered, "total_tokens": asked + answered,
            f"{prompt}_tokens_details": {"cached_tokens": cached},
            f"{completion}_tokens_details": {"reasoning_tokens": reasoning},
        }  # fmt: skip

    def logprobs(self, answer: StandInAnswer) -> Object:
        return {"content": [self.token(answer)]}

    def token(self, answer: StandInAnswer) -> Object:
        """The answer as if it were one token, which is all that confidence needs here."""
        return {"token": answer.text[:_PIECE] or "x", "logprob": self.logprob, "top_logprobs": []}


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a chat completion, whole or as a stream."""
    asked = _Asked(await request.read())
    if asked.body.get("stream"):
        return await _stream(request, asked)
    choices = [
        {"index": n, "message": _message(a), "finish_reason": a.finish_reason, "logprobs": asked.logprobs(a)}
        for n, a in enumerate(asked.answers)
    ]
    return _json({**asked.common, "object": "chat.completion", "choices": choices, "usage": asked.usage()})


async def complete(request: web.Request) -> web.Response:
    """Answer a text completion."""
    asked = _Asked(await request.read())
    choices = []
    for n, answer in enumerate(asked.answers):
        logprobs = {"tokens": [answer.text[:_PIECE]], "token_logprobs": [asked.logprob], "top_logprobs": None}
        choices.append({"index": n, "text": answer.text, "finish_reason": answer.finish_reason, "logprobs": logprobs})
    return _json({**asked.common, "object": "text_completion", "choices": choices, "usage": asked.usage()})


async def respond(request: web.Request) -> web.Response:
    """Answer a request of the responses API."""
    asked = _Asked(await request.read())
    answer = asked.answers[0]
    output: list[Object] = []
    if answer.reasoning is not None:
        text = {"type": "reasoning_text", "text": answer.reasoning}
        output.append({"type": "reasoning", "id": "r", "summary": [], "content": [text]})
    part: Object = {"type": "output_text", "text": answer.text, "annotations": [], "logprobs": [asked.token(answer)]}
    if answer.refusal is not None:
        part = {"type": "refusal", "refusal": answer.refusal, "logprobs": [asked.token(answer)]}
    output.append({"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]})
    for call_id, (name, arguments) in zip(answer.ids, answer.tool_calls, strict=True):
        output.append({"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments})
    length = answer.finish_reason == "length"
    body = {
        **asked.common, "object": "response", "output": output, "usage": asked.usage("input", "output"),
        "status": "incomplete" if length else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if length else None,
    }  # fmt: skip
    return _json(body)


async def _stream(request: web.Request, asked: _Asked) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):  # The gateway leaves when its client does.
        await _write_stream(response, asked)
    return response


async def _write_stream(response: web.StreamResponse, asked: _Asked) -> None:
    for n, answer in enumerate(asked.answers):
        logprobs: Object | None = asked.logprobs(answer)
        for delta in _deltas(answer):
            choice = {"index": n, "delta": delta, "finish_reason": None, "logprobs": logprobs}
            await response.write(_event(asked, [choice]))
            logprobs = None
            if special_of(asked.seed) is Special.SLOW:
                await asyncio.sleep(_SLOW_SECONDS)
        last = {"index": n, "delta": {}, "finish_reason": answer.finish_reason, "logprobs": None}
        await response.write(_event(asked, [last]))
    await response.write(_event(asked, [], usage=asked.usage()))
    await response.write(b"data: [DONE]\n\n")


def _deltas(answer: StandInAnswer) -> Iterator[Object]:
    """The pieces of an answer: a tool call's arguments come in halves."""
    yield {"role": "assistant", "content": ""}
    for name, text in (("reasoning", answer.reasoning), ("content", answer.text), ("refusal", answer.refusal)):
        size = max(_PIECE, len(text or "") // 30)
        for start in range(0, len(text or ""), size):
            yield {name: (text or "")[start : start + size]}
    for position, (call_id, (name, arguments)) in enumerate(zip(answer.ids, answer.tool_calls, strict=True)):
        half = len(arguments) // 2
        function = {"name": name, "arguments": arguments[:half]}
        yield {"tool_calls": [{"index": position, "id": call_id, "type": "function", "function": function}]}
        yield {"tool_calls": [{"index": position, "function": {"arguments": arguments[half:]}}]}


def _event(asked: _Asked, choices: list[Object], **fields: Any) -> bytes:
    chunk = {**asked.common, "object": "chat.completion.chunk", "choices": choices, **fields}
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _message(answer: StandInAnswer) -> Object:
    message: Object = {"role": "assistant", "content": answer.text or None}
    if answer.reasoning is not None:
        message["reasoning"] = answer.reasoning
    if answer.refusal is not None:
        message["refusal"] = answer.refusal
    if answer.tool_calls:
        message["tool_calls"] = [
            {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
            for call_id, (name, arguments) in zip(answer.ids, answer.tool_calls, strict=True)
        ]
    return message


def _json(body: Object) -> web.Response:
    return web.Response(body=orjson.dumps(body), content_type="application/json")


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "chaos-base", "object": "model"}]})


async def healthy(request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    """Entry point."""
    app = web.Application(client_max_size=64 << 20)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/v1/responses", respond)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", healthy)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
