"""A model server that answers at once, with log-probabilities: `python -m tests.chaos.upstream PORT`.

It replaces vLLM, which is not tested here. A request's `seed` comes back in the answer's `finish_reason`, which
the gateway stores unchanged, so the checker recognises a client's request in the lake.
"""

from __future__ import annotations

import sys

import orjson
from aiohttp import web

from tests.chaos.ledger import MARKER_PREFIX


async def complete(request: web.Request) -> web.Response:
    """Answer a chat completion, with the low confidence of `is_low` seeds."""
    body = orjson.loads(await request.read())
    number = int(body.get("seed") or 0)
    logprob = -3.0 if is_low(number) else -0.01
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "delivery"},
        "finish_reason": f"{MARKER_PREFIX}chat-{number}",
        "logprobs": {"content": [{"token": "delivery", "logprob": logprob, "top_logprobs": []}]},
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    completion = {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}
    return web.Response(body=orjson.dumps({**completion, "usage": usage}), content_type="application/json")


def is_low(number: int) -> bool:
    """Return True if the request of this number gets a low confidence: one in two hundred."""
    return number % 200 == 7


async def models(request: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "chaos-base", "object": "model"}]})


async def healthy(request: web.Request) -> web.Response:
    return web.Response()


def main() -> None:
    """Entry point."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    app.router.add_get("/v1/models", models)
    app.router.add_get("/health", healthy)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
