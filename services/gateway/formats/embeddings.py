"""OpenAI's embeddings: passed on. An embedding is no prediction that a person could correct: it is observed only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.domain import ChatMessage
from services.gateway.formats.api import ApiAnswer, encode_json
from services.gateway.tasks.served import ServedTask


class EmbeddingRequest:
    """See `api.Asked`."""

    path: ClassVar[str] = "/v1/embeddings"
    prediction_count = 0
    __slots__ = ("_data", "facts")

    def __init__(self, data: dict[str, Any], facts: ServedTask) -> None:
        self.facts = facts
        self._data = data
        data.pop("user", None)

    def messages_for_event(self, number: int) -> list[ChatMessage]:
        return []

    def encode_for_upstream(self, model: str) -> bytes:
        self._data["model"] = model
        return encode_json(self._data)

    def parse_answer(self, body: Any) -> ApiAnswer:
        if not isinstance(body, dict) or "data" not in body:
            raise ValueError("no list of embeddings")
        return ApiAnswer((), 0, 0)

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["model"] = self.facts.name
        return body

    def open_relay(self, ids: Sequence[str]) -> None:
        return None
