"""OpenAI's embeddings: passed on. An embedding is no prediction that a person could correct: it is observed only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.formats.api import Outcome, dumped
from services.gateway.formats.rendering import Turn
from services.gateway.tasks.served import TaskFacts


class Embedding:
    """See `dialects.Asked`."""

    path: ClassVar[str] = "/v1/embeddings"
    predictions = 0
    __slots__ = ("_data", "facts")

    def __init__(self, data: dict[str, Any], facts: TaskFacts) -> None:
        self.facts = facts
        self._data = data
        data.pop("user", None)

    def conversation(self, number: int) -> list[Turn]:
        return []

    def body(self, model: str) -> bytes:
        self._data["model"] = model
        return dumped(self._data)

    def read(self, body: Any) -> Outcome:
        if not isinstance(body, dict) or "data" not in body:
            raise ValueError("no list of embeddings")
        return Outcome((), 0, 0)

    def shaped(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["model"] = self.facts.name
        return body

    def relay(self, ids: Sequence[str]) -> None:
        return None
