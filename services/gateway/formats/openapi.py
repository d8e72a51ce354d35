"""The OpenAPI documentation of routes and bodies that FastAPI does not handle itself."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from schemas.base import MAX_COUNT
from services.gateway.formats.anthropic.schema import ANSWERING, ANTHROPIC_ERROR, PROMPT
from services.gateway.formats.api import MAX_PREDICTIONS
from services.gateway.formats.validation import FEEDBACK_KINDS, MAX_FEEDBACK_TEXT, MAX_OWN_ID, MAX_REFERENCE, MAX_USER

_Schema = dict[str, Any]
_TEXT: _Schema = {"type": "string"}
_PARTS: _Schema = {
    "type": "array", "minItems": 1, "items": {
        "type": "object", "required": ["type"], "properties": {"type": {"type": "string"}, "text": _TEXT},
    },
}  # fmt: skip
_CONTENT: _Schema = {"anyOf": [_TEXT, _PARTS, {"type": "null"}]}
_MESSAGE: _Schema = {
    "type": "object", "required": ["role"], "properties": {
        "role": {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9_-]{0,31}$"}, "content": _CONTENT,
        "tool_call_id": {"type": "string"},
        "tool_calls": {"type": "array", "items": {"type": "object"}},
    },
}  # fmt: skip
_MESSAGES: _Schema = {"type": "array", "minItems": 1, "items": _MESSAGE}
_MODEL: _Schema = {"type": "string", "description": "The task's name."}
_USER: _Schema = {
    "type": ["string", "null"],
    "description": "Makes a canary sticky; stored only as a keyed hash. The header x-ratchet-user works too.",
}  # fmt: skip
_COMMON: dict[str, _Schema] = {
    "model": _MODEL, "user": _USER, "stream": {"type": ["boolean", "null"]},
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": MAX_PREDICTIONS},
    "stream_options": {"type": ["object", "null"]},
}  # fmt: skip
_PROMPT_TEXTS: _Schema = {
    "anyOf": [
        _TEXT, {"type": "array", "minItems": 1, "items": _TEXT},
        {"type": "array", "minItems": 1, "items": {"type": "integer"}},
        {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 1, "items": {"type": "integer"}}},
    ]
}  # fmt: skip
_PROMPT: _Schema = {"anyOf": [*_PROMPT_TEXTS["anyOf"], {"type": "null"}]}
_EMBEDS: _Schema = {"anyOf": [_TEXT, {"type": "array", "items": _TEXT}, {"type": "null"}]}
_HAS_PROMPT: list[_Schema] = [
    {"required": ["prompt"], "properties": {"prompt": _PROMPT_TEXTS}},
    {"required": ["prompt_embeds"], "properties": {"prompt_embeds": {"type": ["string", "array"], "minItems": 1}}},
]
"""Either of the two is enough."""
_OBJECTS: _Schema = {"type": ["array", "null"], "items": {"type": "object"}}
_COUNT: _Schema = {"type": ["number", "null"], "minimum": 0, "maximum": MAX_COUNT}
_NAME: _Schema = {"type": ["string", "null"], "maxLength": 200}
_PREDICTION: _Schema = {
    "type": "object", "required": ["task", "messages", "latency_ms"], "properties": {
        "task": {"type": "string"}, "messages": _MESSAGES,
        "answer": {"type": ["string", "null"], "description": "Required without `tool_calls` and `refusal`."},
        "tool_calls": {**_OBJECTS, "description": "Of the answer, as the chat API has them."},
        "refusal": {"type": ["string", "null"]}, "reasoning": {"type": ["string", "null"]},
        "finish_reason": _NAME, "tools": _OBJECTS, "tool_choice": {}, "response_format": {},
        "parameters": {"type": ["object", "null"], "description": "Temperature, seed and the like."},
        "prediction_id": {
            "type": ["string", "null"], "maxLength": MAX_OWN_ID,
            "description": "The application's own, unique in the task. Feedback names it as <task>/<own id>.",
        },
        "occurred_at": {
            "type": ["string", "null"], "format": "date-time",
            "description": "With its zone, in the last 92 days and at most an hour ahead; default: now.",
        },
        "latency_ms": {"type": "number", "minimum": 0, "maximum": 1e9},
        "prompt_tokens": _COUNT, "answer_tokens": _COUNT, "model": _NAME, "adapter": _NAME,
        "confidence": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "logprob": {"type": ["number", "null"], "minimum": -1e9, "maximum": 0},
        "user": {**_USER, "maxLength": MAX_USER}, "metadata": {},
        "session": {"type": ["string", "null"], "maxLength": MAX_USER, "description": "Stored only as a keyed hash."},
    },
}  # fmt: skip


def request_body(schema: _Schema) -> dict[str, Any]:
    """The `openapi_extra` of a route that parses its own body."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _object(required: list[str], properties: dict[str, _Schema]) -> _Schema:
    """An object; fields that are not listed are passed on to the model server."""
    return {"type": "object", "required": required, "properties": properties, "additionalProperties": True}


FEEDBACK = _object(
    ["prediction_id", "kind"],
    {
        "prediction_id": {"type": "string", "maxLength": MAX_REFERENCE}, "kind": {"enum": list(FEEDBACK_KINDS)},
        "positive": {"type": ["boolean", "null"], "description": "For thumbs and accepted."},
        "text": {"type": ["string", "null"], "maxLength": MAX_FEEDBACK_TEXT, "description": "For edited and label."},
        "user": _USER,
    },
)  # fmt: skip


def predictions_schema(max_items: int) -> _Schema:
    """One prediction made outside the gateway, or a list of them."""
    return {"anyOf": [_PREDICTION, {"type": "array", "minItems": 1, "maxItems": max_items, "items": _PREDICTION}]}


_SCORED: _Schema = {"anyOf": [{"type": "string"}, {"type": "object"}, {"type": "array", "minItems": 1}]}
_ANSWER_ROUTES = {
    "/v1/chat/completions": (
        "OpenAI's chat completions", _object(["model", "messages"], {**_COMMON, "messages": _MESSAGES}),
    ),
    "/v1/completions": (
        "OpenAI's completions", {
            **_object(["model"], {**_COMMON, "prompt": _PROMPT, "prompt_embeds": _EMBEDS}), "anyOf": _HAS_PROMPT,
        },
    ),
    "/v1/responses": (
        "OpenAI's responses, which are not stored",
        _object(["model", "input"], {
            "model": _MODEL, "user": _USER, "stream": {"type": ["boolean", "null"]},
            "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
            "instructions": {"type": ["string", "null"]},
        }),
    ),
    "/v1/messages": (
        "Anthropic's messages; its errors have Anthropic's shape",
        _object(["model", "messages"], {"model": _MODEL, **PROMPT, **ANSWERING}),
    ),
    "/v1/messages/count_tokens": (
        "The tokens of the prompt that the model would get: nothing is answered or logged",
        _object(["model", "messages"], {"model": _MODEL, **PROMPT}),
    ),
    "/v1/embeddings": (
        "OpenAI's embeddings, which are not logged as predictions",
        _object(["model", "input"], {"model": _MODEL, "user": _USER, "input": {}}),
    ),
    **dict.fromkeys(("/v1/rerank", "/rerank", "/v2/rerank"), (
        "vLLM's rerank, the shape of Jina's and Cohere's; it is not logged as predictions",
        _object(["model", "query", "documents"], {
            "model": _MODEL, "user": _USER, "query": _SCORED, "documents": _SCORED,
            "top_n": {"type": "integer", "minimum": 0},
        }),
    )),
    **dict.fromkeys(("/v1/score", "/score"), (
        "vLLM's score of pairs, which is not logged as predictions",
        _object(["model"], {
            "model": _MODEL, "user": _USER, "queries": _SCORED, "documents": _SCORED, "items": _SCORED,
            "text_1": _SCORED, "text_2": _SCORED, "data_1": _SCORED, "data_2": _SCORED,
        }),
    )),
}  # fmt: skip
_ERROR: _Schema = {
    "type": "object", "required": ["error"], "properties": {
        "error": {
            "type": "object", "required": ["message"], "properties": {
                "message": {"type": "string"}, "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]}, "code": {"type": ["string", "integer", "null"]},
            },
        },
    },
}  # fmt: skip
ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "The error", "content": {"application/json": {"schema": _ERROR}}},
}


_ANTHROPIC_ERRORS: dict[int | str, dict[str, Any]] = {
    "default": {"description": "The error", "content": {"application/json": {"schema": ANTHROPIC_ERROR}}},
}
_ANTHROPIC_ROUTES = ("/v1/messages", "/v1/messages/count_tokens")


def document_answer_routes(app: FastAPI) -> None:
    """Add the routes that the ASGI app answers before FastAPI to the documentation of `app`."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        schema = generate()
        schema["paths"].update({path: {"post": _operation(path, *route)} for path, route in _ANSWER_ROUTES.items()})
        return schema

    app.openapi = openapi  # type: ignore[method-assign]


def _operation(path: str, summary: str, schema: _Schema) -> dict[str, Any]:
    answer = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    errors = _ANTHROPIC_ERRORS if path in _ANTHROPIC_ROUTES else ERRORS
    responses = {"200": {"description": "The answer", "content": answer}, **errors}
    return {"summary": summary, **request_body(schema), "responses": responses}
