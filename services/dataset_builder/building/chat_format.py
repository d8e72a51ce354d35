"""What a label becomes in an example, and what a conversation must be to be one. Pure.

A conversation that production answered is one that the model's chat template takes. So the rules ask only what training
needs: a question, an answer, and results of tools that belong to calls. Its number of messages is no matter: what is
too long is decided in tokens (`length.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import jsonschema_rs
from pydantic import JsonValue

from schemas.conversation import INSTRUCTIONS, Answer, JsonObject, Message, Role, ToolCall
from schemas.tasks import TaskSpec
from shared.answers import answer_form
from shared.conversation import has_own_form, json_asked_for
from shared.grading.json_values import json_or_nothing, read_json
from shared.grading.tool_calls import split_calls
from shared.identity import content_hash

DEVELOPER = "developer"
_SHOWN_CHARS = 500
_CALL_ID_LENGTH = 9
"""The only length that the strictest chat templates (Mistral's) accept."""
_SHOWN_ROLES = 50

Rejection = tuple[str, str]
"""The reason, and the detail."""


def answer_message(label: str, answers: Sequence[Answer], tools: Sequence[JsonObject]) -> Message:
    """Return the assistant's message that a label stands for.

    A label that repeats tool calls of the original answer, or has others in the form of `Answer.plain`, becomes tool
    calls again: as a text it would teach the model to write JSON where it should call a tool.
    """
    for answer in answers:
        if answer.tool_calls and answer.plain.strip() == label:
            return Message(role=Role.ASSISTANT, content=answer.text or None, tool_calls=answer.tool_calls)
    if not tools:
        return _plain_answer(label)
    text, calls = _written_calls(label)
    return Message(role=Role.ASSISTANT, content=text or None, tool_calls=calls)


@lru_cache(maxsize=1_000)
def _plain_answer(label: str) -> Message:
    """Messages are frozen, and a task's labels few: a build needs that of each row twice."""
    return Message(role=Role.ASSISTANT, content=label or None)


def cut_answer_error(label: str, answers: Sequence[Answer], spec: TaskSpec) -> Rejection | None:
    """Return the rejection of a label that repeats an answer that did not end by itself; a task's label is whole."""
    for answer in answers:
        if answer.plain.strip() == label and not answer.is_whole and answer_form(spec).labels(label) is None:
            return "cut", f"the answer that was accepted as it is ended by {answer.finish_reason}"
    return None


def format_error(messages: Sequence[Message], tools: Sequence[JsonObject], spec: TaskSpec) -> Rejection | None:
    """Return what is wrong with a chat example; None if it is valid."""
    if messages[-1].role != Role.ASSISTANT:
        return "wrong_end", f"ends with {messages[-1].role}; the assistant's answer must be last"
    if (error := _order_error(messages)) is not None:
        return error
    for number, message in enumerate(messages):
        if not message.text.strip() and message.role != Role.TOOL:  # A tool may have nothing to say.
            return "empty_content", f"message {number} is empty"
    return _answer_error(messages[-1], spec) or _calls_error(messages[-1].tool_calls, tools)


def output_error(answer: Message, response_format: JsonValue, spec: TaskSpec) -> Rejection | None:
    """Return why an answer is none of its task; None if it is one.

    The form of a task's answers is that of today, not that of the call, which may be an earlier one.
    """
    if (problem := answer_form(spec).problem(answer.text)) is not None:
        return problem.reason, str(problem)[:_SHOWN_CHARS]
    return None if has_own_form(spec) else _asked_form_error(answer, response_format)


def _asked_form_error(answer: Message, response_format: JsonValue) -> Rejection | None:
    """Return how an answer breaks the format that its call asked for; None if it does not, or calls tools instead.

    `response_format`: as in OpenAI's APIs. A schema that is none, or refers to others, asks for no more than JSON.
    """
    wanted = json_asked_for(response_format)
    if wanted is None or answer.tool_calls:
        return None
    try:
        value = read_json(answer.text)
    except ValueError as error:
        return "invalid_json", f"the call asked for JSON: {error}"
    if wanted["type"] == "json_object":
        return None if isinstance(value, dict) else ("invalid_json", "the call asked for a JSON object")
    named = wanted.get("json_schema")
    schema = (named if isinstance(named, dict) else wanted).get("schema")
    try:
        validator = jsonschema_rs.validator_for(schema, offline=True) if isinstance(schema, dict) else None
    except jsonschema_rs.ValidationError:
        return None
    fault = None if validator is None else next(iter(validator.iter_errors(value)), None)
    if fault is None:
        return None
    place = "/".join(map(str, fault.instance_path)) or "the answer"
    return "breaks_schema", f"{place}: {fault.message}"[:_SHOWN_CHARS]


def _order_error(messages: Sequence[Message]) -> Rejection | None:
    """Applications do send several messages of the user in a row, and a greeting of the assistant at the start.

    A developer message may stand anywhere: it instructs, and is no turn.
    """
    roles = [message.role for message in messages]
    start = next((number for number, role in enumerate(roles) if role not in INSTRUCTIONS), len(roles))
    dialogue = [message for message in messages[start:] if message.role != DEVELOPER]
    if all(message.role == Role.ASSISTANT for message in dialogue):
        return "nothing_asked", _shown(roles)
    if Role.SYSTEM in roles[start:]:  # Inputs are compared without such messages.
        return "misplaced_system", "a system message that is not at the start"
    if dialogue[0].role == Role.TOOL:
        return "result_without_call", "starts with a tool's result"
    open_calls: tuple[ToolCall, ...] = dialogue[0].tool_calls
    for before, message in pairwise(dialogue):
        if before.role == message.role == Role.ASSISTANT:
            return "roles_do_not_alternate", _shown(roles)
        if message.role == Role.TOOL:
            if before.role not in (Role.ASSISTANT, Role.TOOL) or not _is_result(message, open_calls):
                return "result_without_call", f"a tool's result ({message.tool_call_id}) that no call asked for"
        else:
            open_calls = message.tool_calls
    return None


def _shown(roles: Sequence[str]) -> str:
    return " ".join(roles[-_SHOWN_ROLES:])


def _is_result(message: Message, calls: Sequence[ToolCall]) -> bool:
    """True if one of the calls has the id of this result, or if either has none."""
    return any(message.tool_call_id is None or call.id in (None, message.tool_call_id) for call in calls)


def _answer_error(answer: Message, spec: TaskSpec) -> Rejection | None:
    rules, text = spec.dataset, answer.text
    if len(text) < spec.min_answer_chars and not answer.tool_calls:
        return "answer_too_short", f"{len(text)} characters; at least {spec.min_answer_chars}"
    if len(text) > rules.max_answer_chars:
        return "answer_too_long", f"{len(text)} characters; at most {rules.max_answer_chars}"
    return None


def _calls_error(calls: Sequence[ToolCall], tools: Sequence[JsonObject]) -> Rejection | None:
    if not calls:
        return None
    known = {function.get("name") for tool in tools if isinstance(function := tool.get("function"), dict)}
    for call in calls:
        if tools and call.name not in known:
            return "unknown_tool", f"{call.name[:100]!r} is none of the tools"
        if not isinstance(json_or_nothing(call.arguments or "{}"), dict):
            return "invalid_arguments", f"the arguments of {call.name[:100]} are no JSON object"
    return None


def _written_calls(label: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Split a label into its text and its tool calls, with ids that it decides; the label itself without."""
    text, calls = split_calls(label)
    ids = [content_hash(label, str(number), length=_CALL_ID_LENGTH) for number in range(len(calls))]
    return text, tuple(
        ToolCall(name=call.name, arguments=call.arguments, id=call_id) for call, call_id in zip(calls, ids, strict=True)
    )
