"""The OpenAPI documentation of Anthropic's requests and errors. What is not listed is ignored or refused in words."""

from __future__ import annotations

from typing import Any

_Schema = dict[str, Any]


def _block(kind: str, **fields: _Schema) -> _Schema:
    """A block of Anthropic's content. All these fields are required."""
    return {"type": "object", "required": ["type", *fields], "properties": {"type": {"const": kind}, **fields}}


_NAME: _Schema = {"type": "string", "minLength": 1}
_TEXT_BLOCKS: _Schema = {
    "anyOf": [_NAME, {"type": "array", "minItems": 1, "items": _block("text", text=_NAME)}],
}
_SOURCES: _Schema = {
    "anyOf": [
        _block("base64", media_type=_NAME, data={"type": "string"}), _block("url", url=_NAME),
    ],
}  # fmt: skip
_USER_BLOCKS: _Schema = {
    "anyOf": [
        _block("text", text=_NAME), _block("image", source=_SOURCES),
        _block("document", source=_block("text", data=_NAME)),
        _block("tool_result", tool_use_id=_NAME, content=_TEXT_BLOCKS),
    ],
}  # fmt: skip
_ASSISTANT_BLOCKS: _Schema = {
    "anyOf": [
        _block("text", text=_NAME), _block("thinking", thinking={"type": "string"}),
        _block("tool_use", id=_NAME, name=_NAME, input={"type": "object"}),
    ],
}  # fmt: skip


def _turn(role: str, blocks: _Schema) -> _Schema:
    content: _Schema = {"anyOf": [_NAME, {"type": "array", "minItems": 1, "items": blocks}]}
    return {
        "type": "object", "required": ["role", "content"], "properties": {"role": {"const": role}, "content": content},
    }  # fmt: skip


PROMPT: dict[str, _Schema] = {
    "system": _TEXT_BLOCKS,
    "messages": {
        "type": "array", "minItems": 1,
        "items": {"anyOf": [_turn("user", _USER_BLOCKS), _turn("assistant", _ASSISTANT_BLOCKS)]},
    },
    "tools": {
        "type": "array", "items": {
            "type": "object", "required": ["name", "input_schema"], "properties": {
                "name": _NAME, "description": {"type": "string"}, "input_schema": {"type": "object"},
                "type": {"const": "custom"},
            },
        },
    },
    "tool_choice": {
        "type": "object", "required": ["type"], "properties": {"type": {"enum": ["auto", "any", "tool", "none"]}},
    },
    "thinking": {"type": "object", "properties": {"type": {"enum": ["enabled", "disabled", "adaptive"]}}},
    "output_config": {"type": "object", "properties": {"format": _block("json_schema", schema={"type": "object"})}},
}  # fmt: skip
"""Fields that make the prompt: those of both routes."""
ANSWERING: dict[str, _Schema] = {
    "max_tokens": {"type": "integer", "minimum": 1}, "stream": {"type": "boolean"},
    "stop_sequences": {"type": "array", "items": {"type": "string"}},
    "metadata": {
        "type": "object", "properties": {"user_id": {"type": ["string", "null"]}},
        "description": "`user_id` is as `user` elsewhere.",
    },
}  # fmt: skip
"""Fields that only an answer needs."""
ANTHROPIC_ERROR: _Schema = {
    "type": "object", "required": ["type", "error", "request_id"], "properties": {
        "type": {"const": "error"}, "request_id": {"type": "string"},
        "error": {
            "type": "object", "required": ["type", "message"],
            "properties": {"type": {"type": "string"}, "message": {"type": "string"}, "details": {"type": "object"}},
        },
    },
}  # fmt: skip
