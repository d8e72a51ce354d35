"""Embeddings, rerank and score are passed on and observed, and never logged: nobody could correct them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

EMBEDDINGS = {"object": "list", "data": [{"embedding": [0.1, 0.25]}], "model": "small", "usage": {}}
RERANKED = {
    "id": "score-1", "model": "small", "usage": {"prompt_tokens": 9, "total_tokens": 9},
    "results": [{"index": 1, "document": {"text": "b"}, "relevance_score": 0.9}],
}  # fmt: skip
SCORED = {
    "id": "score-1", "object": "list", "created": 1, "model": "small", "usage": {},
    "data": [{"index": 0, "object": "score", "score": 0.5}],
}  # fmt: skip
RERANK: dict[str, Any] = {"query": "which", "documents": ["a", "b"], "top_n": 1, "max_tokens_per_doc": 9}


@pytest.mark.parametrize(
    ("path", "fields", "answer"),
    [
        ("/v1/embeddings", {"input": ["x"], "dimensions": 2}, EMBEDDINGS),
        ("/v1/rerank", RERANK, RERANKED),
        ("/rerank", RERANK, RERANKED),
        ("/v2/rerank", RERANK, RERANKED),
        ("/v1/score", {"text_1": "a", "text_2": ["b"]}, SCORED),
        ("/score", {"queries": "a", "documents": [{"content": [{"type": "image_url"}]}]}, SCORED),
    ],
)
async def test_what_nobody_could_correct_is_passed_on_and_observed_but_not_logged(
    gateway: Gateway, path: str, fields: dict[str, Any], answer: dict[str, Any]
) -> None:
    gateway.upstream.answer = answer
    response = await gateway.http.post(path, json={"model": "haiku", "user": "ann", **fields})
    assert response.json() == {**answer, "model": "haiku"}
    assert gateway.upstream.asked == [{"model": "small", **fields}]
    assert gateway.upstream.paths == [path]
    assert gateway.log.predictions == []
    assert [(event.status, event.task) for event in gateway.log.observed] == [(200, "haiku")]
    assert gateway.log.observed[0].subject is not None
    assert gateway.log.observed[0].user_hash == gateway.log.observed[0].subject


async def test_embeddings_as_bytes_are_refused_with_what_to_ask_for(gateway: Gateway) -> None:
    asked = {"model": "haiku", "input": "x", "encoding_format": "bytes"}
    response = await gateway.http.post("/v1/embeddings", json=asked)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "encoding_format")
    assert "base64" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v2/rerank", "/score"])
async def test_another_answer_is_garbled(gateway: Gateway, path: str) -> None:
    gateway.upstream.answer = {"object": "error"}
    response = await gateway.http.post(path, json={"model": "haiku"})
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_garbled")
    assert [event.status for event in gateway.log.observed] == [502]
