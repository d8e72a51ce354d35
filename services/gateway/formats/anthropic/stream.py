"""Chunks of the chat API as the events of Anthropic's streams.

A message is a list of blocks, one open at a time: each begins, gets its pieces and ends before the next one begins.
"""

from __future__ import annotations

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
from services.gateway.formats.conversation import Object, answer_text, arguments_text


class MessageStream:
    """Makes the events of one message. Malformed chunks raise KeyError, TypeError, AttributeError or ValueError."""

    def __init__(self, message_id: str, model: str) -> None:
        self._id = message_id
        self._model = model
        self._started = False
        self._index = -1
        self._open = ""
        """The type of the open block."""
        self._call = -1
        """The number of the last tool call."""
        self._arguments: list[str] = []
        """Of the last tool call."""
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
        self._close_block()
        if self._index < 0:
            self._open_block(text_block(""))
            self._close_block()
        arguments = ["".join(self._arguments)] if self._call >= 0 else []
        stop_reason, stop_sequence = stop_of(finish_reason, self._stopped_at, arguments, refused=self._refused)
        delta = {"stop_reason": stop_reason, "stop_sequence": stop_sequence}
        self._add("message_delta", {"delta": delta, "usage": usage_of(usage), "ratchet": ratchet})
        self._add("message_stop", {})
        return self._take()

    def _feed_delta(self, delta: Object) -> None:
        if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
            if self._open != "thinking":
                self._open_block({"type": "thinking", "thinking": "", "signature": ""})
            self._add_piece({"type": "thinking_delta", "thinking": str(reasoning)})
        for name in ("content", "refusal"):
            if text := answer_text(delta.get(name)):
                self._refused = self._refused or name == "refusal"
                if self._open != "text":
                    self._open_block(text_block(""))
                self._add_piece({"type": "text_delta", "text": text})
        for call in delta.get("tool_calls") or ():
            self._feed_call(call)

    def _feed_call(self, piece: Object) -> None:
        number, function = piece.get("index") or 0, piece.get("function") or {}
        if number != self._call or self._open != "tool_use":
            if number <= self._call or not function.get("name"):
                raise ValueError("a tool call goes on after its end, or begins without a name")
            self._open_block(tool_use_block(piece.get("id"), str(function["name"]), {}))
            self._call, self._arguments = number, []
        if arguments := arguments_text(function.get("arguments")):
            self._arguments.append(arguments)
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
        self._open = ""

    def _add_piece(self, delta: Object) -> None:
        self._add("content_block_delta", {"index": self._index, "delta": delta})

    def _add(self, kind: str, event: Object) -> None:
        self._events.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **event})))

    def _take(self) -> bytes:
        events, self._events = b"".join(self._events), []
        return events
