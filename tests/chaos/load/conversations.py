"""Requests of every kind, and what the lake must say of each.

Messages, tools and calls of tools are in the form of OpenAI's chat API; `apis.py` puts them into others. `said`, for
the ledger, is the same form, of all that a row must have: `api`, `messages`, `tools`, `tool_choice`,
`response_format`, `parameters`, `stream`, `constrained`, `truncated`, `model`, `variant`, `metadata`, `app`, `session`,
`usage`, `latency_ms`, `occurred_at` and `answers`, each with `text`, `tool_calls`, `refusal`, `reasoning`,
`finish_reason`, `truncated`, and `logprob` or `confidence`. What is not there has its default. It includes what the
gateway adds to a request: the task's system prompt, the most tokens of an answer, a classification's own parameters.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.load.answers import Special, StandInAnswer, answers_to, seed_of
from tests.chaos.load.people import Texts, long_text

Object = dict[str, Any]
FUNCTIONS = ("find_order", "refund_order", "open_ticket")
_LONG_CHARACTERS, _TOO_LONG_CHARACTERS = 100_000, 200_000
_EVERY = {"long": 60, "too long": 90, "long answer": 90, "leaves": 25}
"""One in so many conversations, the first of them early."""
_KINDS = {"tools": 45, "format": 15, "parts": 10, "several": 12, "completions": 8, "responses": 10, "messages": 12}
_LOW_SHARE = 0.04
_NEVER_ASKED = ("parts", "completions")
"""Kinds of which no answer becomes a training row (`never_trained`), so that nobody is asked about a doubtful one."""
_PICTURE = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(64)))


@dataclass
class Call:
    """What an application asks, and how. `leaves`: the client disconnects in the middle of the stream."""

    messages: list[Object]
    api: str = "chat"
    parameters: Object = field(default_factory=dict)
    tools: list[Object] = field(default_factory=list)
    tool_choice: Any = None
    response_format: Any = None
    stream: bool = False
    special: Special = Special.NOTHING
    truncated: bool = False
    leaves: bool = False

    @property
    def functions(self) -> tuple[str, ...]:
        return tuple(tool["function"]["name"] for tool in self.tools)

    @property
    def has_system(self) -> bool:
        return any(message["role"] == "system" for message in self.messages)


class Conversations:
    """Draws calls. `texts` seeds personal data in them, at every place that takes a text."""

    def __init__(self, texts: Texts, rng: random.Random) -> None:
        self._texts = texts
        self._random = rng
        self._count = 0
        self._first_kinds = iter([*_KINDS, *_KINDS])
        self._kinds: dict[str, Callable[[], Call]] = {
            "tools": self._with_tools, "format": self._with_format, "parts": self._with_parts,
            "several": self._several, "completions": self._completion, "responses": self._responses,
            "messages": self._anthropic,
        }  # fmt: skip

    def short(self) -> Call:
        """One message, as most requests are. A classification overrules its parameters."""
        return Call([_user(self._texts.next("messages"))], parameters={"temperature": 0.7, "stop": ["."]})

    def next(self) -> Call:
        """The next conversation: of each kind twice, then of a random one, and a few very long ones.

        `Texts` seeds the second text of each place: the shortest run has one in each.
        """
        self._count += 1
        for kind, every in _EVERY.items():
            if self._count % every == every // 3:
                return self._unusual(kind)
        kind = next(self._first_kinds, None) or self._random.choices(list(_KINDS), list(_KINDS.values()))[0]
        call = self._kinds[kind]()
        if kind not in _NEVER_ASKED and self._random.random() < _LOW_SHARE:
            call.special = Special.LOW
        if call.api in ("chat", "messages"):
            call.stream = self._random.random() < 0.4
        return call

    def elsewhere(self) -> tuple[Call, StandInAnswer]:
        """A conversation with tools that another model answered."""
        call = self._with_tools()
        call.api = "external"
        seed = seed_of(self._random.randrange(1_000_000))
        return call, answers_to(seed, 1, functions=call.functions)[0]

    def _unusual(self, kind: str) -> Call:
        if kind in ("long", "too long"):
            size = _LONG_CHARACTERS if kind == "long" else _TOO_LONG_CHARACTERS
            text = long_text(self._random, size, self._texts.next("long messages"))
            call = Call([_user(text), _assistant("what can I do"), _user(self._texts.next("messages"))])
            call.truncated = kind == "too long"
        else:
            call = Call([_user(self._texts.next("messages"))])
            call.special = Special.LONG if kind == "long answer" else Special.SLOW
            call.stream = call.leaves = kind == "leaves"
        return call

    def _with_tools(self) -> Call:
        """Several turns, with calls of tools in parallel and their results."""
        messages = [_system("You help customers of a shop.")] if self._random.random() < 0.5 else []
        messages.append({**_user(self._texts.next("messages")), "name": self._texts.author()})
        for turn in range(self._random.randint(1, 3)):
            calls = [self._tool_call(turn, number) for number in range(self._random.randint(1, 3))]
            messages.append({"role": "assistant", "content": None, "tool_calls": calls})
            messages += [self._tool_result(call["id"]) for call in calls]
            messages += [_assistant(self._texts.next("messages")), _user(self._texts.next("messages"))]
        choice = {"type": "function", "function": {"name": FUNCTIONS[0]}}
        return Call(
            messages, tools=[self._tool(name) for name in self._random.sample(FUNCTIONS, 2)],
            tool_choice=self._random.choice((None, "auto", "required", choice)),
            parameters={"parallel_tool_calls": True, "temperature": round(self._random.random(), 3)},
        )  # fmt: skip

    def _with_format(self) -> Call:
        schema = {
            "type": "object",
            "properties": {"reply": {"type": "string", "description": self._texts.next("response formats")}},
            "required": ["reply"],
        }
        parameters = {
            "temperature": 0.25, "top_p": 0.9, "max_completion_tokens": 33, "stop": [self._texts.next("parameters")],
            "presence_penalty": 0.5, "logit_bias": {"11": -5, "198": 3}, "top_k": 40,
            "chat_template_kwargs": {"note": self._texts.next("parameters"), "thinking": False},
        }  # fmt: skip
        named = {"name": "reply", "schema": schema, "strict": True}
        messages = [_user(self._texts.next("messages"))]
        return Call(messages, parameters=parameters, response_format={"type": "json_schema", "json_schema": named})

    def _with_parts(self) -> Call:
        picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_PICTURE.decode()}"}}
        parts = [{"type": "text", "text": self._texts.next("parts")}, {"type": "text", "text": "see this"}, picture]
        messages = [_system("Say what you see."), {"role": "user", "content": parts}]
        return Call(messages, parameters={"max_tokens": 12})

    def _several(self) -> Call:
        messages = [_user(self._texts.next("messages")), _assistant("as agreed"), _user(self._texts.next("messages"))]
        return Call(messages, parameters={"n": 2, "temperature": 1.0, "min_p": 0.05})

    def _completion(self) -> Call:
        parameters = {"max_tokens": 9, "n": self._random.choice((1, 2)), "repetition_penalty": 1.1}
        messages = [_user(self._texts.next("prompts"))]
        return Call(messages, api="completions", parameters=parameters, special=Special.PLAIN)

    def _responses(self) -> Call:
        call = self._without_names("responses")
        schema = {"type": "object", "properties": {"reply": {"type": "string"}}}
        call.response_format = {"format": {"type": "json_schema", "name": "reply", "schema": schema}}
        call.parameters = {"temperature": 0.5, "top_p": 0.75, "parallel_tool_calls": False}
        return call

    def _anthropic(self) -> Call:
        call = self._without_names("messages")
        call.parameters = {"temperature": 0.5, "top_p": 0.75, "max_tokens": 11}
        for message in call.messages:  # Arguments are objects in this API; the gateway writes them compactly.
            for made in message.get("tool_calls", ()):
                function = made["function"]
                function["arguments"] = json.dumps(json.loads(function["arguments"]), separators=(",", ":"))
        return call

    def _without_names(self, api: str) -> Call:
        """A conversation with tools in an API that has no authors' names."""
        call = self._with_tools()
        call.api = api
        for message in call.messages:
            message.pop("name", None)
        if isinstance(call.tool_choice, dict):
            call.tool_choice = "auto"
        return call

    def _tool(self, name: str) -> Object:
        fields = {"order": {"type": "string", "description": self._texts.next("tool descriptions")}}
        parameters = {"type": "object", "properties": fields, "required": ["order"]}
        function = {"name": name, "description": self._texts.next("tool descriptions"), "parameters": parameters}
        return {"type": "function", "function": function}

    def _tool_call(self, turn: int, number: int) -> Object:
        arguments = {"order": f"A-{self._random.randrange(100, 999)}", "note": self._texts.next("tool arguments")}
        function = {"name": self._random.choice(FUNCTIONS), "arguments": json.dumps(arguments)}
        return {"id": f"call_{turn}_{number}", "type": "function", "function": function}

    def _tool_result(self, call_id: str) -> Object:
        found = {"status": "late", "customer": self._texts.next("tool results")}
        content = json.dumps(found) if self._random.random() < 0.5 else self._texts.next("tool results")
        return {"role": "tool", "tool_call_id": call_id, "content": content}


def _system(text: str) -> Object:
    return {"role": "system", "content": text}


def _user(text: str) -> Object:
    return {"role": "user", "content": text}


def _assistant(text: str) -> Object:
    return {"role": "assistant", "content": text}
