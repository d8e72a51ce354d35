"""APIs whose answers nobody could correct, so that they are no predictions: passed on, and only observed. No I/O.

OpenAI's embeddings, and vLLM's rerank (the shape of Jina's and Cohere's API) and score, under each of their paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.formats.api import ApiAnswer, ApiRequest
from services.gateway.formats.conversation import Object
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import bad_request, quoted
from services.gateway.tasks.served import ServedTask


class ObservedRequest(ApiRequest):
    """`answer_field`: what an answer of the API has."""

    answer_field: ClassVar[str] = "data"
    prediction_count = 0
    __slots__ = ()

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data

    def calls(self, media: MediaReferences, *, external: bool = False) -> list[Object]:
        return []

    def parse_answer(self, body: Any) -> ApiAnswer:
        if not isinstance(body, dict) or self.answer_field not in body:
            raise ValueError(f"without `{self.answer_field}`")
        return ApiAnswer(())

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["model"] = self.task.name
        return body

    def open_relay(self, ids: Sequence[str]) -> None:
        return None


class EmbeddingRequest(ObservedRequest):
    path: ClassVar[str] = "/v1/embeddings"
    __slots__ = ()

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        super().__init__(data, task)
        if (wanted := data.get("encoding_format")) not in (None, "float", "base64"):
            message = f"`encoding_format` is {quoted(wanted)}; it must be float or base64: answers are JSON"
            raise bad_request(message, "encoding_format")


class ScoreRequest(ObservedRequest):
    path: ClassVar[str] = "/v1/score"
    __slots__ = ()


class UnversionedScoreRequest(ScoreRequest):
    path: ClassVar[str] = "/score"
    __slots__ = ()


class RerankRequest(ObservedRequest):
    path: ClassVar[str] = "/v1/rerank"
    answer_field: ClassVar[str] = "results"
    __slots__ = ()


class UnversionedRerankRequest(RerankRequest):
    path: ClassVar[str] = "/rerank"
    __slots__ = ()


class RerankV2Request(RerankRequest):
    path: ClassVar[str] = "/v2/rerank"
    __slots__ = ()


OBSERVED_APIS: tuple[type[ObservedRequest], ...] = (
    EmbeddingRequest, RerankRequest, UnversionedRerankRequest, RerankV2Request, ScoreRequest, UnversionedScoreRequest,
)  # fmt: skip
