"""OpenAI's embeddings, passed on. An embedding is not a prediction (nobody could correct it): it is only observed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.formats.api import ApiAnswer, ApiRequest
from services.gateway.formats.conversation import Object
from services.gateway.formats.media import MediaReferences
from services.gateway.tasks.served import ServedTask


class EmbeddingRequest(ApiRequest):
    path: ClassVar[str] = "/v1/embeddings"
    prediction_count = 0
    __slots__ = ()

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data

    def calls(self, media: MediaReferences) -> list[Object]:
        return []

    def parse_answer(self, body: Any) -> ApiAnswer:
        if not isinstance(body, dict) or "data" not in body:
            raise ValueError("not a list of embeddings")
        return ApiAnswer(())

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["model"] = self.task.name
        return body

    def open_relay(self, ids: Sequence[str]) -> None:
        return None
