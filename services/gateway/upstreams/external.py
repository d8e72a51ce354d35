"""Somebody else's OpenAI-compatible API, for when no replica of ours answers. Off unless a person sets it: texts leave.

How a use case asks it (`arms` from `domain.choose_arms(flags, external_model)`, last of them the external arm):

    arms = choose_arms(flags, external_model)
    while arms:
        arm = arms[0]
        source = external if arm.variant is Variant.EXTERNAL else replicas
        body = …, with "model": arm.model_name(spec.base_model)
        try:
            raw = await source.post(path, body)
        except UpstreamFailed as error:
            arms = remaining_arms(arms, arm, down=error.down) if error.down or isinstance(error, NotServed) else ()
            …if not arms: raise

`model` of the logged prediction is `arm.model_name(spec.base_model)`, its variant EXTERNAL, and the client is told by
`x-ratchet-instead-of`, as with any arm that stands in.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from services.gateway.observability.metrics import Metrics
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.replicas import Replicas
from services.gateway.upstreams.upstream import NotServed, UpstreamFailed

_VLLM_ONLY = (
    "structured_outputs", "guided_choice", "guided_json", "guided_regex", "guided_grammar", "chat_template",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens", "top_k", "min_p",
    "repetition_penalty", "length_penalty", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs",
    "allowed_token_ids", "bad_words", "use_beam_search", "logprob_token_ids", "return_tokens_as_token_ids",
    "return_token_ids", "priority", "cache_salt", "documents", "mm_processor_kwargs", "vllm_xargs",
)  # fmt: skip
"""Fields of vLLM that OpenAI's API refuses as unknown."""


class ExternalApi:
    """An `Upstream`. It is asked as a replica is, but never probed: each look would be paid for."""

    def __init__(self, url: str, key: str, limits: UpstreamLimits, metrics: Metrics) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._api = Replicas([base_url_of(url)], limits, metrics, headers=headers)

    async def close(self) -> None:
        await self._api.close()

    async def post(self, path: str, body: bytes) -> bytes:
        try:
            return await self._api.post(path, without_vllm_fields(body))
        except UpstreamFailed as error:
            raise _ours(error) from error

    def stream(self, path: str, body: bytes) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return _Told(self._api.stream(path, without_vllm_fields(body)))


class _Told(AbstractAsyncContextManager[AsyncIterator[bytes]]):
    """A stream whose failure to begin is told as the API's."""

    def __init__(self, stream: AbstractAsyncContextManager[AsyncIterator[bytes]]) -> None:
        self._stream = stream

    async def __aenter__(self) -> AsyncIterator[bytes]:
        try:
            return await self._stream.__aenter__()
        except UpstreamFailed as error:
            raise _ours(error) from error

    async def __aexit__(self, *raised: Any) -> None:
        await self._stream.__aexit__(*raised)


def base_url_of(url: str) -> str:
    """An API's address without the `/v1` that OpenAI's clients want in their `base_url`: it is in every path."""
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def without_vllm_fields(body: bytes) -> bytes:
    """The request in OpenAI's terms. That the answer must be one of some labels, vLLM enforces: others are told."""
    asked: dict[str, Any] = orjson.loads(body)
    constraint = asked.get("structured_outputs")
    for name in _VLLM_ONLY:
        asked.pop(name, None)
    labels = constraint.get("choice") if isinstance(constraint, dict) else None
    if labels and isinstance(asked.get("messages"), list):
        order = f"Answer with exactly one of these labels and nothing else: {', '.join(labels)}"
        asked["messages"] = [{"role": "system", "content": order}, *asked["messages"]]
    return orjson.dumps(asked)


def _ours(error: UpstreamFailed) -> UpstreamFailed:
    """What a client may hear: that our key is refused, or our model's name wrong, is not the client's mistake."""
    if error.status in (401, 403) or isinstance(error, NotServed):
        said = f"no model server answers, and the external API refuses us: {error.message}"
        return UpstreamFailed(502, said, "external_refused", raw=error.raw)
    return error
