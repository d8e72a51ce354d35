"""APIs whose answers nobody could correct, so that they are no predictions: passed on, and only observed. No I/O.

OpenAI's embeddings, and vLLM's rerank (the shape of Jina's and Cohere's API) and score, under each of their paths.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from services.gateway.formats.api import ApiAnswer, ApiRequest
from services.gateway.formats.conversation import Object
from services.gateway.formats.media import MediaReferences
from services.gateway.tasks.served import ServedTask

_BYTES, _METADATA = b"application/octet-stream", b"metadata"


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

    def headers_of_bytes(self, headers: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]] | None:
        """With vLLM's `encoding_format: bytes` the body is numbers, and a header says where each embedding is."""
        if headers.get(b"content-type") != _BYTES:
            return None
        found = [(b"content-type", _BYTES)]
        if (metadata := headers.get(_METADATA)) is not None:
            described = orjson.loads(metadata)
            if not isinstance(described, dict):
                raise ValueError("described by something else than an object")
            found.append((_METADATA, json.dumps({**described, "model": self.task.name}).encode()))
        return found


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
