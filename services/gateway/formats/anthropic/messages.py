"""Anthropic's messages route: a chat request whose answers go back in Anthropic's shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from services.gateway.formats.anthropic.answer import message_of
from services.gateway.formats.anthropic.request import chat_body, settle_tool_choice, tokenize_body
from services.gateway.formats.anthropic.stream import MessageStream
from services.gateway.formats.api import ApiAnswer
from services.gateway.formats.chat import ChatRequest
from services.gateway.formats.chunks import ChunkRelay
from services.gateway.json_codec import encode_json
from services.gateway.tasks.served import ServedTask


class MessagesRequest(ChatRequest):
    path: ClassVar[str] = "/v1/messages"
    api: ClassVar[str] = "messages"
    __slots__ = ("_answer",)

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        super().__init__(chat_body(data), task)
        settle_tool_choice(self._data)

    def do_without(self, field: str) -> bool:
        """Thinking that is disabled is the effort `none`; where the model has no such effort it is `low`, as vLLM's own
        `/v1/messages` does it."""
        if field != "reasoning_effort" or self._data.get(field) != "none":
            return False
        self._data[field] = "low"
        return True

    @property
    def upstream_path(self) -> str:
        return ChatRequest.path

    def encode_for_tokenizer(self, model: str) -> bytes:
        """Return the body for vLLM's `/tokenize`: the prompt that the model would get. Raises HttpError 400."""
        return encode_json({"model": model, **tokenize_body(self._data)})

    def parse_answer(self, body: Any) -> ApiAnswer:
        self._answer = super().parse_answer(body)
        return self._answer

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        stopped_at = body["choices"][0].get("stop_reason")
        return message_of(self._answer.choices[0], stopped_at, self._answer.usage, ids[0], self.task.name)

    def open_relay(self, ids: Sequence[str]) -> ChunkRelay | None:
        return MessageRelay(self, ids) if self._stream else None


class MessageRelay(ChunkRelay):
    """A `StreamRelay` that makes Anthropic's events of chunks. Those from the end of the answer on are held back."""

    def __init__(self, request: MessagesRequest, ids: Sequence[str]) -> None:
        super().__init__(request, ids)
        self._message = MessageStream(ids[0], request.task.name)
        self._last: list[bytes] = []

    def relay(self, chunk: dict[str, Any]) -> bytes:
        events = self._message.feed(chunk)
        if self._unfinished > 0:
            return events
        self._last.append(events)
        return b""

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        answer = self.answer_so_far()
        return b"".join(self._last) + self._message.end(answer.choices[0].finish_reason, answer.usage, ratchet)
