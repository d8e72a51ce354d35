"""OpenAI's chat format, in and out: what a client may send, what vLLM is asked, what the client gets back. No I/O.

Hand-written checks instead of a model: they run on every request, and they say what to do in the caller's terms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from schemas.base import Role
from schemas.predictions import Confidence
from schemas.tasks import TaskKind, TaskSpec
from services.gateway.checks import MAX_USER, bad, checked_text, text_field
from services.gateway.domain import Arm, confidence

MAX_MESSAGES = 64
_NOT_PASSED_ON = {"model", "messages", "user", "stream", "stream_options", "n", "logprobs"}
"""The client's fields that the gateway answers for itself; every other one goes to the upstream as it came."""
_OVERRULED_BY_LABELS = {
    "temperature", "max_tokens", "max_completion_tokens", "min_tokens", "stop", "response_format", "structured_outputs",
    "tools", "tool_choice", "logit_bias",
}  # fmt: skip
"""A classification's answer is one of the labels, whole: what could change or cut it is not passed on."""


@dataclass(frozen=True)
class ChatRequest:
    """A sound request: `messages` is what the model will see, the task's system prompt included."""

    messages: list[dict[str, str]]
    user: str | None
    stream: bool
    include_usage: bool
    wants_logprobs: bool
    passed_on: dict[str, Any]


@dataclass(frozen=True)
class ChatAnswer:
    """The upstream's answer, read."""

    body: dict[str, Any]
    text: str
    confidence: Confidence
    prompt_tokens: int
    answer_tokens: int
    finish_reason: str | None


def parse_messages(value: Any, spec: TaskSpec) -> list[dict[str, str]]:
    """The conversation with the task's system prompt put first if the client sent none. Raises HttpError 400."""
    if not isinstance(value, list) or not value:
        raise bad("`messages` must be a list with at least one message", "messages")
    messages = [_message(item, f"messages.{number}") for number, item in enumerate(value)]
    if spec.system_prompt and all(message["role"] != Role.SYSTEM for message in messages):
        messages.insert(0, {"role": "system", "content": spec.system_prompt})
    if len(messages) > MAX_MESSAGES:
        raise bad(f"{len(messages)} messages with the system prompt; at most {MAX_MESSAGES} are taken", "messages")
    return messages


def _message(item: Any, where: str) -> dict[str, str]:
    if not isinstance(item, dict):
        raise bad(f"`{where}` must be an object with `role` and `content`", where)
    role = item.get("role")
    role = (
        "system" if role == "developer" else role
    )  # OpenAI's newer name of the same; chat templates know the old one.
    if role not in list(Role):
        allowed = ", ".join(Role)
        raise bad(f"`{where}.role` is {str(role)[:50]!r}; a task takes: {allowed}", f"{where}.role")
    return {"role": role, "content": checked_text(_content(item.get("content"), where), f"{where}.content")}


def _content(content: Any, where: str) -> str:
    """Text as it is; a list of text parts joined by line breaks, as vLLM itself joins them."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise bad(f"`{where}.content` must be text, or a list of text parts", f"{where}.content")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise bad(
                f"`{where}.content` has a part of type {str(kind)[:50]!r}; only text is taken", f"{where}.content"
            )
        texts.append(part["text"])
    return "\n".join(texts)


def parse_chat(data: dict[str, Any], spec: TaskSpec) -> ChatRequest:
    """Check a chat completion request of a known task. Raises HttpError 400 with the field at fault."""
    for flag in ("stream", "logprobs"):
        if not isinstance(data.get(flag, False), bool | None):
            raise bad(f"`{flag}` must be true or false", flag)
    if data.get("n") not in (None, 1):
        raise bad("`n` must be 1: each answer is one prediction; send several requests", "n")
    options = data.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad("`stream_options` must be an object", "stream_options")
    refused = _NOT_PASSED_ON | (_OVERRULED_BY_LABELS if spec.kind is TaskKind.CLASSIFICATION else set())
    return ChatRequest(
        messages=parse_messages(data.get("messages"), spec),
        user=text_field(data, "user", MAX_USER),
        stream=bool(data.get("stream")),
        include_usage=bool((options or {}).get("include_usage")),
        wants_logprobs=bool(data.get("logprobs")),
        passed_on={name: value for name, value in data.items() if name not in refused},
    )


def upstream_body(request: ChatRequest, spec: TaskSpec, arm: Arm) -> bytes:
    """What vLLM is asked: the arm's model, always with log-probabilities, and a label constraint for labels."""
    body: dict[str, Any] = {
        **request.passed_on, "model": arm.adapter or spec.base_model, "messages": request.messages, "logprobs": True,
    }  # fmt: skip
    if spec.kind is TaskKind.CLASSIFICATION:
        body |= {"temperature": 0.0, "structured_outputs": {"choice": list(spec.labels)}}
    if "max_tokens" not in body and "max_completion_tokens" not in body:
        body["max_tokens"] = spec.max_answer_tokens
    return orjson.dumps(body)


def read_answer(body: Any, kind: TaskKind) -> ChatAnswer:
    """Read the upstream's answer. Raises ValueError if it is not a chat completion."""
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        tokens = [float(token["logprob"]) for token in (choice.get("logprobs") or {}).get("content") or ()]
        usage = body.get("usage") or {}
        return ChatAnswer(
            body=body,
            text=text,
            confidence=confidence(kind, tokens),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            answer_tokens=int(usage.get("completion_tokens") or len(tokens)),
            finish_reason=choice.get("finish_reason") or None,
        )
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"not a chat completion: {error!r}") from error


def completion(answer: ChatAnswer, request: ChatRequest, task: str, prediction_id: str) -> dict[str, Any]:
    """The client's answer: under the task's name and our id, without log-probabilities it did not ask for."""
    body = {**answer.body, "id": prediction_id, "model": task}
    if not request.wants_logprobs:
        body["choices"] = [{**choice, "logprobs": None} for choice in body["choices"]]
    return body


def sse(body: dict[str, Any], include_usage: bool) -> list[bytes]:
    """A finished completion as the server-sent events of a stream: the answer whole, its end, `[DONE]`."""
    choice = body["choices"][0]
    delta = {"role": "assistant"} | {k: v for k, v in choice["message"].items() if v is not None}
    if calls := delta.get("tool_calls"):
        delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
    common = {
        "id": body["id"], "object": "chat.completion.chunk", "created": body.get("created", 0), "model": body["model"],
    }  # fmt: skip
    first = {"index": 0, "delta": delta, "logprobs": choice.get("logprobs"), "finish_reason": None}
    last = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": choice.get("finish_reason")}
    chunks: list[dict[str, Any]] = [{**common, "choices": [first]}, {**common, "choices": [last]}]
    if include_usage:
        chunks.append({**common, "choices": [], "usage": body.get("usage")})
    return [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks] + [b"data: [DONE]\n\n"]
