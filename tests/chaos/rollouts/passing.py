"""A vLLM behind the stand-in: requests for its models are passed on, and what proves its adapters is counted."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import aiohttp
from aiohttp import web

from schemas.adapters import Probes
from schemas.conversation import Message, Messages, Role
from schemas.tasks import TaskSpec
from shared.conversation import chat_messages
from shared.errors import RatchetError
from shared.model.inference import InferenceClient
from shared.model.probes import measure_probes
from tests.chaos.rollouts.tasks import VLLM_BASE, VLLM_MARK, Kind
from tests.chaos.rollouts.traffic import message_of

_STARTED = re.compile(r"^process_start_time_seconds (\S+)", re.MULTILINE)
_SECONDS = aiohttp.ClientTimeout(60.0)
_AWAY = (aiohttp.ClientError, TimeoutError)
_ASKED = 24
"""Messages by whose answers models are told apart."""
Object = dict[str, Any]


def is_passed(model: str) -> bool:
    """Return True for a model that vLLM serves."""
    return model == VLLM_BASE or VLLM_MARK in model


def is_probe(body: Object) -> bool:
    """Return True for a request for the first token alone, with its log-probabilities."""
    return body.get("max_tokens") == 1 and bool(body.get("top_logprobs"))


class PassedOn:
    """Passes requests on. A vLLM that restarted has proved nothing yet."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session: aiohttp.ClientSession | None = None
        self._started = 0.0
        self._probes: dict[str, int] = {}

    @property
    def _http(self) -> aiohttp.ClientSession:
        self._session = self._session or aiohttp.ClientSession(timeout=_SECONDS)
        return self._session

    async def models(self) -> list[str]:
        """Return what vLLM lists; nothing while it is away."""
        with contextlib.suppress(*_AWAY):
            async with self._http.get(f"{self._url}/v1/models") as answer:
                return [model["id"] for model in (await answer.json())["data"]]
        return []

    async def state(self) -> tuple[float, dict[str, int]]:
        """Return since when it runs (now, while it is away), and how often each of its adapters was probed."""
        started = await self._note_start()
        if started is None:
            return time.time(), {}
        return started, {name: self._probes.get(name, 0) for name in await self.models() if name != VLLM_BASE}

    async def _note_start(self) -> float | None:
        """Return since when it runs, None while it is away; of one that started anew no earlier probe counts."""
        try:
            async with self._http.get(f"{self._url}/metrics") as answer:
                found = _STARTED.search(await answer.text())
        except _AWAY:
            return None
        started = float(found[1]) if found else time.time()
        if started != self._started:
            self._started, self._probes = started, {}
        return started

    async def post(self, path: str, body: Object) -> web.Response:
        """Pass on a request whose answer is short. 503 while vLLM is away."""
        try:
            async with self._http.post(self._url + path, json=body) as answer:
                content = await answer.read()
                return web.Response(body=content, status=answer.status, content_type=answer.content_type)
        except _AWAY as error:
            return web.json_response({"error": {"message": repr(error), "type": "away", "code": 503}}, status=503)

    async def chat(self, request: web.Request, body: Object) -> web.StreamResponse:
        """Pass on a chat completion, whole or as a stream; the streams of a fragile candidate break."""
        if not body.get("stream"):
            answer = await self.post(request.path, body)
            if is_probe(body) and answer.status == 200:
                await self._note_start()  # Else the next look at an engine that just started would forget this probe.
                self._probes[body["model"]] = self._probes.get(body["model"], 0) + 1
            return answer
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        try:
            async with self._http.post(self._url + request.path, json=body) as passed:
                if passed.status != 200:
                    return web.Response(
                        body=await passed.read(), status=passed.status, content_type=passed.content_type
                    )
                await response.prepare(request)
                async for piece in passed.content.iter_any():
                    await response.write(piece)
                    if body["model"].endswith(f"-{Kind.FRAGILE.value}"):
                        break
                else:
                    return response
        except _AWAY:
            if not response.prepared:
                return web.json_response({"error": {"message": "vLLM is away", "code": 503}}, status=503)
        if request.transport is not None:
            request.transport.close()
        return response


async def answers_of_vllm(url: str, model: str, spec: TaskSpec) -> tuple[str, ...]:
    """Return what a model answers to messages such as the traffic's, once vLLM answers."""
    client, chance = InferenceClient([url]), random.Random(0)
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    asked = [
        chat_messages((system, Message(role=Role.USER, content=message_of(number, chance)))) for number in range(_ASKED)
    ]
    try:
        while True:
            with contextlib.suppress(RatchetError):
                answers = [
                    await client.complete(model, messages, choices=spec.choices, max_tokens=spec.max_answer_tokens)
                    for messages in asked
                ]
                return tuple(answer.text for answer in answers)
            await asyncio.sleep(1.0)
    finally:
        await client.close()


async def probes_of_vllm(url: str, adapter: str, base_model: str, prompts: Sequence[Messages]) -> Probes:
    """Return the probes of an adapter, once vLLM answers."""
    client = InferenceClient([url])
    try:
        while True:
            with contextlib.suppress(RatchetError):
                return await measure_probes(client, url, adapter, base_model, prompts)
            await asyncio.sleep(1.0)
    finally:
        await client.close()
