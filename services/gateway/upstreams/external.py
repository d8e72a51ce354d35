"""The fallback: an external OpenAI-compatible API, used when no replica answers. Off unless it is configured, since
conversations are sent to a third party.

Its answers are logged with variant EXTERNAL; the header `x-ratchet-instead-of` names the arm they replace. Their events
say what was sent, `external_fields`, but for what is said in words in the place of a constraint: that is no part of the
conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx

from services.gateway.json_codec import decode_json, encode_json
from services.gateway.settings import UpstreamLimits
from services.gateway.upstreams.http_client import UpstreamResponse
from services.gateway.upstreams.outside import OutsideApi, OutsideStream
from services.gateway.upstreams.upstream import ModelNotServed, ServerKey, UpstreamFailed

CREDENTIALS = ("api_key", "authorization", "headers", "extra_headers")
"""What a client of another gateway, such as LiteLLM's, has in its request to sign in with elsewhere, and a tool that is
a server. It is in no event, since no redactor knows a password from any other word."""
_VLLM_ONLY = (
    *CREDENTIALS,
    "guided_choice", "guided_json", "guided_regex", "guided_grammar", "chat_template",
    "chat_template_kwargs", "add_generation_prompt", "continue_final_message", "add_special_tokens", "top_k", "min_p",
    "repetition_penalty", "length_penalty", "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos",
    "skip_special_tokens", "spaces_between_special_tokens", "truncate_prompt_tokens", "prompt_logprobs",
    "allowed_token_ids", "bad_words", "use_beam_search", "logprob_token_ids", "return_tokens_as_token_ids",
    "return_token_ids", "priority", "cache_salt", "documents", "mm_processor_kwargs", "vllm_xargs",
    "thinking_token_budget", "watermarking", "kv_transfer_params", "ec_transfer_params", "include_reasoning",
    "media_io_kwargs", "mm_payload", "repetition_detection", "request_id", "session_id", "return_mm_kwargs",
    "return_prompt_text", "return_token_offsets", "routed_experts_prompt_start", "stream_interval", "truncation_side",
    "enable_response_messages",
)  # fmt: skip
"""Fields that only vLLM knows; OpenAI's API rejects them."""
_VLLM_ONLY_OF = {
    "messages": ("echo",),
    "input": ("seed", "stop", "logit_bias", "presence_penalty", "frequency_penalty"),
}
"""Those that OpenAI has in another of its APIs, by the field that an API is known by."""


class ExternalApi(OutsideApi):
    def __init__(self, url: str, key: str, limits: UpstreamLimits) -> None:
        name = "upstream unavailable, and the external API"
        super().__init__(url, ServerKey(key, name, "RATCHET_GATEWAY_FALLBACK_KEY"), limits)

    async def request(self, path: str, body: bytes, lines: bytes = b"", model: str = "") -> UpstreamResponse:
        return await super().request(path, without_vllm_fields(body), lines)

    def stream(
        self, path: str, body: bytes, lines: bytes = b"", model: str = ""
    ) -> AbstractAsyncContextManager[OutsideStream]:
        return super().stream(path, without_vllm_fields(body), lines)

    def error_of(self, response: httpx.Response) -> UpstreamFailed:
        """A refusal of the gateway's own model name, which is not the client's mistake, is a 502."""
        error = super().error_of(response)
        if isinstance(error, ModelNotServed):
            message = f"upstream unavailable, and the external API refused the gateway: {error.message}"
            return UpstreamFailed(502, message, "external_refused", raw=error.raw)
        return error


def without_vllm_fields(body: bytes) -> bytes:
    """Remove vLLM's own fields. A constraint to labels, which vLLM enforces, becomes an instruction in the prompt."""
    request: dict[str, Any] = decode_json(body)
    instruction = _instruction(request)
    request = external_fields(request)
    request.pop("structured_outputs", None)
    if instruction:
        _add_instruction(request, instruction)
    return encode_json(request)


def external_fields(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of a request is sent, `given` unchanged: with what is said in words, `structured_outputs` of labels
    and `response_format` of schemas, in the place of those words."""
    request = {name: value for name, value in given.items() if name not in _VLLM_ONLY}
    for known_by, names in _VLLM_ONLY_OF.items():
        for name in names if known_by in request else ():
            request.pop(name, None)
    if not _labels(request):
        request.pop("structured_outputs", None)
    if _is_completion(request) and _schema(request.get("response_format"), "json_schema") is None:
        request.pop("response_format", None)
    if isinstance(tools := request.get("tools"), list):
        request["tools"] = [_relaxed(tool) for tool in tools]
    if isinstance(options := request.get("stream_options"), dict):
        request["stream_options"] = _without(options, "continuous_usage_stats")
    if isinstance(messages := request.get("messages"), list):
        request["messages"] = [_without(message, "reasoning") for message in messages]
    return request


def _without(value: Any, name: str) -> Any:
    """A copy of an object without this field; the value itself if it has none."""
    if not isinstance(value, dict) or name not in value:
        return value
    return {own: inner for own, inner in value.items() if own != name}


def _relaxed(tool: Any) -> Any:
    """Ask for no strict arguments: OpenAI refuses a whole request for one schema that its strict mode does not take."""
    if not isinstance(tool, dict):
        return tool
    if isinstance(function := tool.get("function"), dict):
        return {**tool, "function": _relaxed(function)}
    # The responses API has a function's fields at the top, and is strict unless it is told otherwise.
    return {**tool, "strict": False} if tool.get("strict") else tool


def _is_completion(request: Mapping[str, Any]) -> bool:
    return "input" not in request and ("prompt" in request or "prompt_embeds" in request)


def _labels(request: Mapping[str, Any]) -> list[str]:
    """The labels that vLLM would constrain an answer to; empty for another constraint."""
    constraint = request.get("structured_outputs")
    labels = constraint.get("choice") if isinstance(constraint, dict) else None
    return labels if isinstance(labels, list) and all(isinstance(label, str) for label in labels) else []


def _instruction(request: dict[str, Any]) -> str:
    """Return what the prompt says of labels in the place of a constraint; empty where the API keeps it itself.

    Takes the schema of a list out of the request: OpenAI's API has schemas of objects alone, and its completions none.
    """
    if labels := _labels(request):
        return f"Answer with exactly one of these labels and nothing else: {', '.join(labels)}"
    if _is_completion(request):
        schema = _schema(request.pop("response_format", None), "json_schema")
    elif _is_of_list(schema := _schema(request.get("response_format"), "json_schema")):
        del request["response_format"]
    elif _is_of_list(schema := _schema(request.get("text"), "format")):  # Of the responses API.
        del request["text"]["format"]
    else:
        return ""
    if schema is None:
        return ""
    return f"Answer with JSON that this JSON Schema describes and nothing else: {encode_json(schema).decode()}"


def _schema(wanted: Any, name: str) -> dict[str, Any] | None:
    """The schema in the field `name` of what is wanted of the answer."""
    named = wanted.get(name) if isinstance(wanted, dict) else None
    schema = named.get("schema") if isinstance(named, dict) else None
    return schema if isinstance(schema, dict) else None


def _is_of_list(schema: dict[str, Any] | None) -> bool:
    return schema is not None and schema.get("type") == "array"


def _add_instruction(request: dict[str, Any], instruction: str) -> None:
    """Say it where the request's API has instructions. A prompt of token ids cannot say it."""
    messages, prompt = request.get("messages"), request.get("prompt")
    if isinstance(messages, list):
        request["messages"] = [{"role": "system", "content": instruction}, *messages]
    elif "input" in request:
        own = request.get("instructions")
        request["instructions"] = f"{own}\n\n{instruction}" if own else instruction
    elif isinstance(prompt, str):
        request["prompt"] = f"{instruction}\n\n{prompt}"
    elif isinstance(prompt, list):
        request["prompt"] = [f"{instruction}\n\n{text}" if isinstance(text, str) else text for text in prompt]
