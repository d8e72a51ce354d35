"""A model server that answers every request with success: `python -m tests.integration.permissive_model PORT`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
from aiohttp import web

from deploy.devstack.ports import take_ports
from tests.conftest import ROOT

_USAGE = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6, "input_tokens": 5, "output_tokens": 1}
_TOKEN = {"token": "refund", "logprob": -0.1, "bytes": None, "top_logprobs": []}


def _chat(body: dict[str, Any], part: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": "refund"}
    choice = {"finish_reason": "stop", "logprobs": {"content": [_TOKEN]}, part: message}
    return {"id": "c", "created": 1, "choices": [{"index": index, **choice} for index in range(_count(body))]}


def _completion(body: dict[str, Any]) -> dict[str, Any]:
    logprobs = {"tokens": ["refund"], "token_logprobs": [-0.1], "top_logprobs": [{"refund": -0.1}], "text_offset": [0]}
    choice = {"text": "refund", "finish_reason": "stop", "logprobs": logprobs}
    return {"id": "c", "created": 1, "choices": [{"index": index, **choice} for index in range(_count(body))]}


def _response() -> dict[str, Any]:
    part = {"type": "output_text", "text": "refund", "annotations": [], "logprobs": [_TOKEN]}
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [part]}
    return {"id": "r", "object": "response", "created_at": 1, "status": "completed", "output": [item], "usage": _USAGE}


def _count(body: dict[str, Any]) -> int:
    n = body.get("n")
    return n if type(n) is int and 1 <= n <= 128 else 1


async def _answer(request: web.Request) -> web.StreamResponse:
    body = orjson.loads(await request.read())
    events: list[dict[str, Any]]
    if request.path == "/v1/chat/completions":
        answer, events = _chat(body, "message"), [_chat(body, "delta")]
    elif request.path == "/v1/completions":
        answer, events = _completion(body), [_completion(body)]
    elif request.path == "/v1/responses":
        answer = _response()
        delta = {"type": "response.output_text.delta", "delta": "refund", "logprobs": [_TOKEN]}
        events = [delta, {"type": "response.completed", "response": answer}]
    elif request.path == "/tokenize":
        answer, events = {"count": 5, "max_model_len": 100, "tokens": [1, 2, 3, 4, 5]}, []
    else:
        answer, events = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}]}, []
    if body.get("stream") is not True:
        return web.Response(body=orjson.dumps({**answer, "usage": _USAGE}), content_type="application/json")
    text = b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"
    return web.Response(body=text, content_type="text/event-stream")


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": []})


@contextmanager
def permissive_model() -> Iterator[str]:
    """Run the server as a process. Yields its address."""
    (port,) = take_ports(1)
    argv = [sys.executable, "-m", "tests.integration.permissive_model", str(port)]
    process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def main() -> None:
    """Entry point."""
    app = web.Application(client_max_size=4 * 1024**2)
    routes = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/tokenize")
    app.add_routes([web.get("/v1/models", _models), *(web.post(path, _answer) for path in routes)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
