"""A model server that answers at once, with log-probabilities: `python -m tests.chaos.upstream PORT`.

It stands in for vLLM, which is not what is tested here. `seed` of a request comes back as the answer's
`finish_reason`, which the gateway stores as it is: so the checker recognises a client's request in the lake.
"""

from __future__ import annotations

import sys

import orjson
from aiohttp import web

from tests.chaos.ledger import MARK


async def complete(request: web.Request) -> web.Response:
    """One chat completion; a seed that is odd in thousands is answered without confidence to speak of."""
    asked = orjson.loads(await request.read())
    number = int(asked.get("seed") or 0)
    logprob = -3.0 if is_low(number) else -0.01
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "delivery"},
        "finish_reason": f"{MARK}chat-{number}",
        "logprobs": {"content": [{"token": "delivery", "logprob": logprob, "top_logprobs": []}]},
    }
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": [choice]}
    return web.Response(body=orjson.dumps({**body, "usage": usage}), content_type="application/json")


def is_low(number: int) -> bool:
    """Whether the request of this number is answered with low confidence: one in two hundred."""
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
