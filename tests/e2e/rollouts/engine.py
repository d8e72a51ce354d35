"""A fast engine with adapters, as a process: `python -m tests.e2e.rollouts.engine PORT`.

It loads, lists and unloads LoRA adapters as vLLM does, and reports log-probabilities by which each model is proved.
What a model answers follows from its name: see `Kind`. A message names its own right label, as its last word.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from deploy.devstack.ports import take_ports
from tests.conftest import ROOT
from tests.unit.shared.adapter_folders import first_tokens

BASE = "base"
BASE_SECONDS, SLOW_SECONDS = 0.2, 4.0
"""An answer of the base takes so long, and those of other adapters no time: a busy machine makes no good one slow. The
limit is set by one of the slowest answers of the base, which a busy machine makes many times slower than it is."""
CHUNKS = 4
LOADED = web.AppKey("loaded", set[str])


class Kind(StrEnum):
    """What an adapter does; its name begins with it. The base model is right about every second message."""

    GOOD = "good"
    """Right."""
    BAD = "bad"
    """Wrong, which shadow's pairs show."""
    BREAKS = "breaks"
    """Right, but its streams break off: no pair shows that, since replays are not streamed."""
    SLOW = "slow"
    """Right, but late: pairs are compared by their answers alone."""

    def named(self, number: int | str) -> str:
        return f"{self.value}-{number}"


def text_of(number: int, labels: Sequence[str]) -> str:
    """Return a message of its own for each number."""
    return f"Message {number:07} is about {labels[number % len(labels)]}"


def truth_of(text: str) -> str:
    return text.rsplit(" ", 1)[-1]


def answer_of(model: str, text: str, choices: Sequence[str]) -> str:
    """Return what a model answers: the right label, or the one after it."""
    truth = truth_of(text)
    if model.startswith(Kind.BAD) or (model == BASE and zlib.crc32(text.encode()) % 2):
        others = [*choices, "another"]
        return others[(others.index(truth) + 1) % len(others)] if truth in others else "another"
    return truth


async def complete(request: web.Request) -> web.StreamResponse:
    body = orjson.loads(await request.read())
    model = body["model"]
    if model != BASE and model not in request.app[LOADED]:
        message = f"The model `{model}` does not exist."
        return web.json_response({"error": {"message": message, "type": "NotFoundError", "code": 404}}, status=404)
    choices = (body.get("structured_outputs") or {}).get("choice") or ()
    text = answer_of(model, str(body["messages"][-1]["content"]), choices)
    if body.get("max_tokens") != 1:
        await asyncio.sleep(SLOW_SECONDS if model.startswith(Kind.SLOW) else BASE_SECONDS * (model == BASE))
    head = {"id": "c", "created": 1, "model": model}
    usage = {"prompt_tokens": 20, "completion_tokens": 1, "total_tokens": 21}
    if body.get("stream"):
        return await _stream(request, head, text, usage)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": _logprobs(model, text)}
    return web.json_response({**head, "object": "chat.completion", "choices": [choice], "usage": usage})


async def _stream(request: web.Request, head: dict[str, Any], text: str, usage: dict[str, Any]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    head = {**head, "object": "chat.completion.chunk"}
    for number in range(CHUNKS):
        delta = {"role": "assistant", "content": text} if number == 0 else {"content": ""}
        choice = {"index": 0, "delta": delta, "finish_reason": "stop" if number == CHUNKS - 1 else None}
        logprobs = _logprobs(head["model"], text) if number == 0 else None
        await response.write(_event({**head, "choices": [{**choice, "logprobs": logprobs}]}))
        if head["model"].startswith(Kind.BREAKS) and request.transport is not None:
            request.transport.abort()
            return response
    await response.write(_event({**head, "choices": [], "usage": usage}) + b"data: [DONE]\n\n")
    return response


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


def _logprobs(model: str, text: str) -> dict[str, Any]:
    """The probes of an adapter are its answers' `top_logprobs`."""
    top = [{"token": token, "logprob": logprob, "bytes": None} for token, logprob in first_tokens(model).items()]
    return {"content": [{"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": top}]}


async def models(request: web.Request) -> web.Response:
    data = [{"id": name, "object": "model"} for name in (BASE, *sorted(request.app[LOADED]))]
    return web.json_response({"object": "list", "data": data})


async def load(request: web.Request) -> web.Response:
    body = orjson.loads(await request.read())
    if not (Path(body["lora_path"]) / "adapter_config.json").is_file():
        return web.json_response({"error": {"message": f"no adapter in {body['lora_path']}"}}, status=400)
    request.app[LOADED].add(body["lora_name"])
    return web.Response(text="loaded")


async def unload(request: web.Request) -> web.Response:
    request.app[LOADED].discard(orjson.loads(await request.read())["lora_name"])
    return web.Response(text="unloaded")


async def metrics(request: web.Request) -> web.Response:
    return web.Response(text='vllm:num_requests_waiting{engine="0"} 0.0\nvllm:kv_cache_usage_perc{engine="0"} 0.0\n')


def build() -> web.Application:
    app = web.Application(client_max_size=4 * 1024**2)
    app[LOADED] = set()
    app.add_routes(
        [
            web.post("/v1/chat/completions", complete), web.get("/v1/models", models), web.get("/metrics", metrics),
            web.post("/v1/load_lora_adapter", load), web.post("/v1/unload_lora_adapter", unload),
        ]
    )  # fmt: skip
    return app


@contextmanager
def fast_engine() -> Iterator[str]:
    """Run the engine as a process. Yields its address."""
    (port,) = take_ports(1)
    argv = [sys.executable, "-m", "tests.e2e.rollouts.engine", str(port)]
    process = subprocess.Popen(argv, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    web.run_app(build(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
