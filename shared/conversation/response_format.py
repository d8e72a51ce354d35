"""The format that a task's answers are asked in, as the chat, completions and responses APIs take it. Pure."""

from __future__ import annotations

from pydantic import JsonValue

from schemas.conversation import Call, JsonObject
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


def has_own_form(spec: TaskSpec) -> bool:
    """Return True if a task says itself what form its answers have, by a schema or its functions."""
    return spec.answer_schema is not None or bool(spec.tools)


def form_asked_for(call: Call) -> JsonObject | None:
    """Return the JSON that an application itself asked an answer to be, as the chat API takes it.

    None: free text, or the form that the gateway asks for, which is the task's.
    """
    wanted = None if call.constrained else json_asked_for(call.response_format)
    if wanted is None or wanted["type"] != "json_schema" or "json_schema" in wanted:
        return wanted
    return {"type": "json_schema", "json_schema": {name: value for name, value in wanted.items() if name != "type"}}


def tool_choice_asked_for(call: Call) -> JsonValue:
    """Return which tool an application wants called, as the chat API takes it; None: as the model likes."""
    choice = call.tool_choice
    if isinstance(choice, dict) and choice.get("type") == "function" and "function" not in choice:
        return {"type": "function", "function": {"name": choice.get("name")}}
    return None if choice == "auto" else choice


def json_asked_for(response_format: JsonValue) -> JsonObject | None:
    """Return the part of a call's `response_format` that asks for JSON; None where it does not.

    Applications also send what asks for nothing, `{"type": "text"}`. The responses API has the part in `format`.
    """
    wanted = response_format if isinstance(response_format, dict) else {}
    if isinstance(of_responses := wanted.get("format"), dict):
        wanted = of_responses
    return wanted if wanted.get("type") in ("json_object", "json_schema") else None
