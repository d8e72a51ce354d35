"""The console serves the inspection of a cycle's dataset from the artifact store, and lets it run nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy import insert

from services.console.history import PostgresCycleHistory
from services.console.reports import mount_reports
from services.console.tables import EVENTS
from shared.errors import DependencyUnavailable
from shared.http import build_http
from shared.storage.artifacts import ArtifactStore
from tests.database import Database
from tests.unit.console.test_cycle_page import stored


def evaluated(report: str | None) -> dict[str, Any]:
    return stored("adapters.evaluated", 2, report=report)


Get = Callable[[str], Awaitable[httpx.Response]]
CYCLES = dict(
    built=[stored("cycles.started", 0), stored("datasets.built", 1, dataset_id="desk-1")],
    stopped=[stored("steps.failed", 1, "too-few.json", cycle_id="stopped")],
    skipped=[stored("steps.failed", 1, "too-little-new.json", cycle_id="skipped")],
    deleted=[stored("datasets.built", 1, dataset_id="desk-0"), evaluated("/elsewhere/evaluations/gone")],
    twice=[evaluated("s3://store/evaluations/first"), evaluated("s3://store/evaluations/second")],
    older=[evaluated(None)],
)


def write(store: Path, folder: str, page: str = "quality.html") -> None:
    (store / folder).mkdir(parents=True)
    (store / folder / page).write_text(f"<h1>{folder}</h1>")


@pytest.fixture
async def get(store: ArtifactStore, database: Database) -> Get:
    engine = await database.engine("console")
    async with engine.begin() as connection:
        for cycle, records in CYCLES.items():
            for record in records:
                await connection.execute(insert(EVENTS).values(event_id=uuid4(), task="desk", cycle_id=cycle, **record))
    app = build_http("console", list, 1_000)
    mount_reports(app, PostgresCycleHistory(engine), store)

    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://console") as client:
            return await client.get(path)

    return get


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    write(tmp_path, "datasets/desk-1")
    write(tmp_path, "inspections/stopped")
    write(tmp_path, "evaluations/second", "evaluation.html")
    return ArtifactStore(str(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(("cycle", "folder"), [("built", "datasets/desk-1"), ("stopped", "inspections/stopped")])
async def test_a_cycles_inspection_is_served_and_can_run_nothing(get: Get, cycle: str, folder: str) -> None:
    answer = await get(f"/cycles/{cycle}/report")
    assert (answer.status_code, answer.text) == (200, f"<h1>{folder}</h1>")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("cycle", ["skipped", "deleted", "unknown", "..%2F..%2Fsecrets"])
async def test_a_cycle_without_an_inspection_is_not_found(get: Get, cycle: str) -> None:
    assert (await get(f"/cycles/{cycle}/report")).status_code == 404


async def test_a_cycles_last_evaluation_is_served_and_can_run_nothing(get: Get) -> None:
    answer = await get("/cycles/twice/evaluation")
    assert (answer.status_code, answer.text) == (200, "<h1>evaluations/second</h1>")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("cycle", ["built", "older", "deleted", "unknown"])
async def test_a_cycle_without_an_evaluation_in_the_store_is_not_found(get: Get, cycle: str) -> None:
    assert (await get(f"/cycles/{cycle}/evaluation")).status_code == 404


async def test_a_store_that_is_away_is_unavailable(
    get: Get, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: str) -> None:
        raise DependencyUnavailable("no S3 server")

    monkeypatch.setattr(store, "lines", away)
    answer = await get("/cycles/built/report")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
