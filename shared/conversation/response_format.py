"""The format that a task's answers are asked in, as the chat, completions and responses APIs take it. Pure."""

from __future__ import annotations

from pydantic import JsonValue

from schemas.conversation import JsonObject
from schemas.tasks import TaskSpec

_NAME = "answer"


def response_format(spec: TaskSpec) -> JsonObject | None:
    """Return `response_format` of a chat or completions request, by which vLLM guides decoding; None: free text."""
    if spec.answer_schema is None:
        return None
    return {"type": "json_schema", "json_schema": {"name": _NAME, "schema": spec.answer_schema}}


def responses_format(spec: TaskSpec) -> JsonObject | None:
    """Return the same as `text.format` of the responses API."""
    if spec.answer_schema is None:
        return None
    return {"type": "json_schema", "name": _NAME, "schema": spec.answer_schema}


def json_asked_for(response_format: JsonValue) -> JsonObject | None:
    """Return the part of a call's `response_format` that asks for JSON; None where it does not.

    Applications also send what asks for nothing, `{"type": "text"}`. The responses API has the part in `format`.
    """
    wanted = response_format if isinstance(response_format, dict) else {}
    if isinstance(of_responses := wanted.get("format"), dict):
        wanted = of_responses
    return wanted if wanted.get("type") in ("json_object", "json_schema") else None
