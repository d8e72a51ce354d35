"""A model server with adapters that answers at once: `python -m tests.chaos.rollouts.engine PORT [VLLM]`.

It has what the deployer needs of vLLM: it lists and loads adapters, answers with a label and with log-probabilities by
which an adapter is recognised, and forgets every adapter when it is killed. An adapter's manifest says how it answers:
`seed`, and `breaks_streams`. `GET /state` says since when it runs, and how often it was asked to prove each adapter.

With the address of a vLLM it passes on what is for models of vLLM's base, so that one fleet has both (`passing.py`).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from tests.chaos.rollouts.passing import PassedOn, is_passed, is_probe
from tests.chaos.rollouts.tasks import BASE_MODEL, LABELS

TOP = 20
"""Log-probabilities of a token, as many as a probe asks for."""
Object = dict[str, Any]


@dataclass
class Served:
    """A model. `probes`: how often it was asked for the first token alone, with its log-probabilities."""

    seed: str
    breaks_streams: bool = False
    probes: int = 0


def number(*parts: object) -> int:
    """Return a number that is the same for the same parts."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:6], "big")


def last_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message."""
    content = messages[-1].get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def first_tokens(seed: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the likeliest first tokens of a model's answer, with their log-probabilities."""
    text = last_text(messages)
    return {f"t{n}": -0.1 - number(seed, text, n) % 90 / 10 for n in range(TOP)}


def read_manifest(folder: str) -> Served:
    """Return what the adapter in a folder is. Raises OSError, KeyError or ValueError."""
    manifest = json.loads((Path(folder) / "manifest.json").read_text())
    return Served(str(manifest["seed"]), bool(manifest["breaks_streams"]))


class Engine:
    """`vllm`: the engine behind it, if there is one."""

    def __init__(self, vllm: PassedOn | None) -> None:
        self._started = time.time()
        self._vllm = vllm
        self._models = {BASE_MODEL: Served("base")}

    async def state(self, _: web.Request) -> web.Response:
        adapters = {name: model.probes for name, model in self._models.items() if name != BASE_MODEL}
        started = self._started
        if self._vllm is not None:
            restarted, passed = await self._vllm.state()
            started, adapters = max(started, restarted), adapters | passed
        return web.json_response({"started": started, "adapters": adapters})

    async def models(self, _: web.Request) -> web.Response:
        names = [*self._models, *(await self._vllm.models() if self._vllm is not None else ())]
        return web.json_response({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})

    async def load(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._vllm is not None and is_passed(body["lora_name"]):
            return await self._vllm.post(request.path, body)
        try:
            self._models.setdefault(body["lora_name"], await asyncio.to_thread(read_manifest, body["lora_path"]))
        except (OSError, KeyError, ValueError) as error:
            return _refused(400, repr(error))
        return web.Response(text="loaded")

    async def unload(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self._vllm is not None and is_passed(body["lora_name"]):
            return await self._vllm.post(request.path, body)
        self._models.pop(body["lora_name"], None)
        return web.Response(text="unloaded")

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(text='vllm:num_requests_waiting{engine="0"} 0\nvllm:kv_cache_usage_perc{engine="0"} 0.0\n')

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body: Object = orjson.loads(await request.read())
        if self._vllm is not None and is_passed(body["model"]):
            return await self._vllm.chat(request, body)
        model = self._models.get(body["model"])
        if model is None:
            return _refused(404, f"the model {body['model']} does not exist")
        if is_probe(body):
            model.probes += 1
        choices = (body.get("structured_outputs") or {}).get("choice") or LABELS
        text = choices[number(model.seed, last_text(body["messages"])) % len(choices)]
        if body.get("stream"):
            return await _stream(request, body, text, breaks=model.breaks_streams)
        tops = [_token(*top) for top in first_tokens(model.seed, body["messages"]).items()]
        logprobs = {"content": [{**_token(text, -0.2), "top_logprobs": tops}]}
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        choice |= {"logprobs": logprobs}
        return web.json_response({**_head(body, "chat.completion"), "choices": [choice], "usage": _USAGE})


_USAGE = {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13}


async def _stream(request: web.Request, body: Object, text: str, *, breaks: bool) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    logprobs = {"content": [{**_token(text, -0.2), "top_logprobs": []}]}
    deltas: list[Object] = [
        {"delta": {"role": "assistant", "content": text}, "finish_reason": None, "logprobs": logprobs},
        {"delta": {}, "finish_reason": "stop", "logprobs": None},
    ]
    head = _head(body, "chat.completion.chunk")
    for delta in deltas:
        await response.write(_event({**head, "choices": [{"index": 0, **delta}]}))
        if breaks and request.transport is not None:
            request.transport.close()
            return response
    await response.write(_event({**head, "choices": [], "usage": _USAGE}) + b"data: [DONE]\n\n")
    return response


def _event(chunk: Object) -> bytes:
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


def _head(body: Object, kind: str) -> Object:
    return {"id": "c", "created": 1, "model": body["model"], "object": kind}


def _token(token: str, logprob: float) -> Object:
    return {"token": token, "logprob": logprob, "bytes": None}


def _refused(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message, "type": "refused", "code": status}}, status=status)


def main() -> None:
    """Entry point."""
    engine = Engine(PassedOn(sys.argv[2]) if len(sys.argv) > 2 else None)
    app = web.Application(client_max_size=8 << 20)
    app.add_routes([
        web.get("/state", engine.state), web.get("/v1/models", engine.models), web.get("/metrics", engine.metrics),
        web.get("/health", engine.metrics), web.post("/v1/chat/completions", engine.chat),
        web.post("/v1/load_lora_adapter", engine.load), web.post("/v1/unload_lora_adapter", engine.unload),
    ])  # fmt: skip
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
