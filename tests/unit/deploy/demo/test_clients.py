"""The application of the loop: how it asks the gateway."""

from __future__ import annotations

import httpx
import orjson
import pytest

from deploy.demo.clients import GatewayClient, parameters_of
from deploy.demo.data.rows import DataRow
from schemas.tasks import TaskKind


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [
        (TaskKind.EXTRACTION, 0.0), (TaskKind.TOOLS, 0.0), (TaskKind.CLASSIFICATION, None),
        (TaskKind.MULTI_LABEL, None), (TaskKind.GENERATION, None),
    ],
)  # fmt: skip
async def test_objects_and_calls_are_asked_for_greedily(kind: TaskKind, temperature: float | None) -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(orjson.loads(request.content))
        return httpx.Response(400, text="no")

    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        await GatewayClient(http, "http://gateway", "orders", parameters_of(kind)).ask(
            DataRow("a question", "{}"), "ann"
        )
    assert [body.get("temperature") for body in bodies] == [temperature]
    assert bodies[0]["user"] == "ann"
