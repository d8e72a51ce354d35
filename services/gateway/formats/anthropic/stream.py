"""Chunks of the chat API as the events of Anthropic's streams.

A message is a list of blocks, one open at a time: each begins, gets its pieces and ends before the next one begins.
So a tool call that begins before the one before it is complete waits, with its pieces, until that is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import orjson

from services.gateway.formats.anthropic.answer import (
    new_message,
    new_signature,
    stop_of,
    text_block,
    tool_use_block,
    usage_of,
)
from services.gateway.formats.api import TokenUsage, token_usage
from services.gateway.formats.conversation import Object, answer_text, arguments_text, begins_another_call, is_json


class _ToolCallInParts:
    """A tool call while its pieces arrive."""

    __slots__ = ("arguments", "call_id", "is_begun", "name")

    def __init__(self, call_id: Any, name: str) -> None:
        self.call_id = call_id
        self.name = name
        self.arguments: list[str] = []
        self.is_begun = False
        """Whether its block has begun."""

    @property
    def may_end(self) -> bool:
        """True once its arguments are complete. The last piece is looked at first: others come one by one."""
        return bool(self.arguments) and self.arguments[-1].rstrip().endswith("}") and is_json("".join(self.arguments))


class MessageStream:
    """Makes the events of one message. Malformed chunks raise KeyError, TypeError, AttributeError or ValueError."""

    def __init__(self, message_id: str, model: str) -> None:
        self._id = message_id
        self._model = model
        self._started = False
        self._index = -1
        self._open = ""
        """The type of the open block."""
        self._call: _ToolCallInParts | None = None
        """The tool call whose block is open."""
        self._calls: dict[int, _ToolCallInParts] = {}
        """The latest tool call of each number."""
        self._waiting_calls: deque[_ToolCallInParts] = deque()
        """Those that began before the open one was complete."""
        self._waiting: list[str] = []
        """Text that arrived within a tool call, and follows it as a block of its own."""
        self._last_arguments: list[str] = []
        """Of the last tool call's block."""
        self._refused = False
        self._stopped_at: Any = None
        self._events: list[bytes] = []

    def feed(self, chunk: Object) -> bytes:
        """Return the events that a chunk becomes."""
        if not self._started:
            self._started = True
            usage = token_usage(chunk.get("usage"), "prompt", "completion")
            self._add("message_start", {"message": new_message(self._id, self._model, usage)})
        for choice in chunk["choices"]:
            if isinstance(choice.get("stop_reason"), str):
                self._stopped_at = choice["stop_reason"]
            self._feed_delta(choice.get("delta") or {})
        return self._take()

    def end(self, finish_reason: str | None, usage: TokenUsage, ratchet: Mapping[str, Any]) -> bytes:
        """Return the last events. `message_delta` has `ratchet`: Anthropic's client drops it from `message_stop`."""
        self._begin_waiting_calls()
        self._close_block()
        if self._index < 0:
            self._open_block(text_block(""))
            self._close_block()
        arguments = ["".join(self._last_arguments)] if self._calls else []
        stop_reason, stop_sequence = stop_of(finish_reason, self._stopped_at, arguments, refused=self._refused)
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        self._add("message_delta", {"delta": delta, "usage": usage_of(usage), "ratchet": ratchet})
        self._add("message_stop", {})
        return self._take()

    def _feed_delta(self, delta: Object) -> None:
        if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
            if self._open != "thinking":
                self._begin_waiting_calls()
                self._open_block({"type": "thinking", "thinking": "", "signature": ""})
            self._add_piece({"type": "thinking_delta", "thinking": str(reasoning)})
        for name in ("content", "refusal"):
            if text := answer_text(delta.get(name)):
                self._refused = self._refused or name == "refusal"
                self._feed_text(text)
        for call in delta.get("tool_calls") or ():
            self._feed_call(call)

    def _feed_text(self, text: str) -> None:
        if self._open == "tool_use":
            self._waiting.append(text)
            return
        if self._open != "text":
            self._open_block(text_block(""))
        self._add_piece({"type": "text_delta", "text": text})

    def _feed_call(self, piece: Object) -> None:
        number, function = piece.get("index") or 0, piece.get("function") or {}
        call = self._calls.get(number)
        if call is None or begins_another_call(call.call_id, call.name, call.arguments, piece):
            if not function.get("name"):
                raise ValueError("a tool call begins without a name")
            call = self._calls[number] = _ToolCallInParts(piece.get("id"), str(function["name"]))
            self._waiting_calls.append(call)
        if arguments := arguments_text(function.get("arguments")):
            if call.is_begun and call is not self._call:
                raise ValueError("a tool call goes on after its end")
            call.arguments.append(arguments)
            if call is self._call:
                self._add_arguments(arguments)
        while self._waiting_calls and (self._call is None or self._call.may_end):
            self._begin_call()

    def _begin_waiting_calls(self) -> None:
        """Begin those that wait: what is not complete now will not be."""
        while self._waiting_calls:
            self._begin_call()

    def _begin_call(self) -> None:
        call = self._waiting_calls.popleft()
        self._open_block(tool_use_block(call.call_id, call.name, {}))
        self._call, call.is_begun, self._last_arguments = call, True, call.arguments
        if call.arguments:
            self._add_arguments("".join(call.arguments))

    def _add_arguments(self, arguments: str) -> None:
        self._add_piece({"type": "input_json_delta", "partial_json": arguments})

    def _open_block(self, block: Object) -> None:
        self._close_block()
        self._index += 1
        self._open = block["type"]
        self._add("content_block_start", {"index": self._index, "content_block": block})

    def _close_block(self) -> None:
        if not self._open:
            return
        if self._open == "thinking":
            self._add_piece({"type": "signature_delta", "signature": new_signature()})
        self._add("content_block_stop", {"index": self._index})
        self._open, self._call = "", None
        if self._waiting:
            text, self._waiting = "".join(self._waiting), []
            self._feed_text(text)
            self._close_block()

    def _add_piece(self, delta: Object) -> None:
        self._add("content_block_delta", {"index": self._index, "delta": delta})

    def _add(self, kind: str, event: Object) -> None:
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **event})))

    def _take(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events
