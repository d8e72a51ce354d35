"""A call in the form of each API, and what the lake must say of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from tests.chaos.load.answers import HIGH_LOGPROB, LOW_LOGPROB, Special, StandInAnswer, answers_to, usage_of
from tests.chaos.load.conversations import Call, Object
from tests.chaos.tasks import BASE_MODEL, MAX_ANSWER_TOKENS, SYSTEM_PROMPT

PATHS = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "messages": "/v1/messages",
}
_MOST_TOKENS = {
    "chat": ("max_tokens", "max_completion_tokens"),
    "responses": ("max_output_tokens",),
    "messages": ("max_tokens",),
    "completions": (),
}
"""The names under which each API takes the most tokens of an answer: the gateway sets the first if none is there."""


def body_of(call: Call, model: str, seed: int) -> Object:
    """The body to send, without who asks."""
    stream = {"stream": True} if call.stream else {}
    return {"model": model, **_BODIES[call.api](call), **_seed_fields(call, seed), **stream}


def said_of(call: Call, seed: int, *, labels: bool = False) -> Object:
    """What the lake must say of a request to a model server."""
    parameters = {**call.parameters, **_seed_fields(call, seed)}
    if labels:
        parameters = {"temperature": 0.0, "max_tokens": MAX_ANSWER_TOKENS, "seed": seed}
    names = _MOST_TOKENS[call.api]
    if names and not any(name in parameters for name in names):
        parameters[names[0]] = MAX_ANSWER_TOKENS
    confidence = LOW_LOGPROB if call.special is Special.LOW else HIGH_LOGPROB
    answers = answers_to(seed, call.parameters.get("n", 1), functions=call.functions, labels=labels)
    tools = [_flat(tool) for tool in call.tools] if call.api == "responses" else call.tools
    return {
        "api": call.api, "messages": with_system(call), "tools": tools, "tool_choice": call.tool_choice,
        "response_format": call.response_format, "parameters": parameters, "stream": call.stream,
        "constrained": labels, "truncated": call.truncated, "model": BASE_MODEL, "variant": "base",
        "usage": usage_of(seed), "leaves": call.leaves,
        "answers": [
            answer_said(answer, logprob=confidence, truncated=call.special is Special.LONG) for answer in answers
        ],
    }  # fmt: skip


def with_system(call: Call) -> list[Object]:
    """The messages as the model gets them: those of a task whose application sends no system prompt have the task's."""
    added = not call.has_system and call.api != "completions"
    return [{"role": "system", "content": SYSTEM_PROMPT}, *call.messages] if added else call.messages


def answer_said(answer: StandInAnswer, **fields: Any) -> Object:
    """What the lake must say of an answer."""
    return {
        "text": answer.text, "tool_calls": tool_calls_of(answer), "refusal": answer.refusal,
        "reasoning": answer.reasoning, "finish_reason": answer.finish_reason, **fields,
    }  # fmt: skip


def tool_calls_of(answer: StandInAnswer) -> list[Object]:
    """The calls of tools in an answer, as the chat API has them."""
    return [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        for call_id, (name, arguments) in zip(answer.ids, answer.tool_calls, strict=True)
    ]


def _seed_fields(call: Call, seed: int) -> Object:
    """The seed, which Anthropic's API has not: there it goes where a chat template would find it."""
    return {"chat_template_kwargs": {"seed": seed}} if call.api == "messages" else {"seed": seed}


def _chat(call: Call) -> Object:
    fields = {"tools": call.tools, "tool_choice": call.tool_choice, "response_format": call.response_format}
    return {"messages": call.messages, **call.parameters, **{name: value for name, value in fields.items() if value}}


def _completions(call: Call) -> Object:
    return {"prompt": call.messages[0]["content"], **call.parameters}


def _responses(call: Call) -> Object:
    items = [item for message in call.messages for item in _items(message)]
    fields = {"tools": [_flat(tool) for tool in call.tools], "tool_choice": call.tool_choice}
    given = {name: value for name, value in fields.items() if value}
    return {"input": items, "text": call.response_format, **call.parameters, **given}


def _items(message: Object) -> list[Object]:
    if message["role"] == "tool":
        output = {"call_id": message["tool_call_id"], "output": message["content"]}
        return [{"type": "function_call_output", **output}]
    calls = [
        {"type": "function_call", "call_id": call["id"], **call["function"]} for call in message.get("tool_calls", ())
    ]
    said = [{"role": message["role"], "content": message["content"]}] if message["content"] is not None else []
    return said + calls


def _flat(tool: Object) -> Object:
    """A tool as the responses API has it."""
    return {"type": "function", **tool["function"]}


def _messages(call: Call) -> Object:
    """Anthropic's form: the results of tools are blocks of one message of the user."""
    messages: list[Object] = []
    for message in call.messages:
        role = "user" if message["role"] == "tool" else message["role"]
        if role == "user" and message["role"] == "tool" and messages[-1]["role"] == "user":
            messages[-1]["content"] += _blocks(message)
        elif role != "system":
            messages.append({"role": role, "content": _blocks(message)})
    system = [message["content"] for message in call.messages if message["role"] == "system"]
    tools = [
        {"name": function["name"], "description": function["description"], "input_schema": function["parameters"]}
        for function in (tool["function"] for tool in call.tools)
    ]
    fields = {"tools": tools, "tool_choice": _CHOICES[call.tool_choice], "system": system[0] if system else None}
    return {"messages": messages, **call.parameters, **{name: value for name, value in fields.items() if value}}


def _blocks(message: Object) -> list[Object]:
    if message["role"] == "tool":
        return [{"type": "tool_result", "tool_use_id": message["tool_call_id"], "content": message["content"]}]
    said = [{"type": "text", "text": message["content"]}] if message["content"] is not None else []
    return said + [
        {
            "type": "tool_use", "id": call["id"], "name": call["function"]["name"],
            "input": json.loads(call["function"]["arguments"]),
        }
        for call in message.get("tool_calls", ())
    ]  # fmt: skip


_CHOICES: Mapping[str | None, Object | None] = {None: None, "auto": {"type": "auto"}, "required": {"type": "any"}}
_BODIES: Mapping[str, Callable[[Call], Object]] = {
    "chat": _chat,
    "completions": _completions,
    "responses": _responses,
    "messages": _messages,
}
