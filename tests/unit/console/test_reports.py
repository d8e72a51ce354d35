"""The console serves the inspection of a cycle's dataset from the artifact store, and lets it run nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from services.console.reports import mount_reports
from shared.errors import DependencyUnavailable
from shared.http import build_http
from shared.storage.artifacts import ArtifactStore
from tests.unit.console.test_cycle_page import stored


class History:
    """The events of cycles, in memory."""

    def __init__(self, **cycles: list[dict[str, Any]]) -> None:
        self._cycles = cycles

    async def events(self, cycle_id: str) -> list[dict[str, Any]]:
        return self._cycles.get(cycle_id, [])


HISTORY = History(
    built=[stored("cycles.started", 0), stored("datasets.built", 1, dataset_id="desk-1")],
    stopped=[stored("steps.failed", 1, "too-few.json", cycle_id="stopped")],
    skipped=[stored("steps.failed", 1, "too-little-new.json", cycle_id="skipped")],
    deleted=[stored("datasets.built", 1, dataset_id="desk-0")],
)


def write(store: Path, folder: str) -> None:
    (store / folder).mkdir(parents=True)
    (store / folder / "quality.html").write_text(f"<h1>{folder}</h1>")


async def get(path: str, artifacts: Any) -> httpx.Response:
    app = build_http("console", list, 1_000)
    mount_reports(app, HISTORY, artifacts)  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://console") as client:
        return await client.get(path)


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    write(tmp_path, "datasets/desk-1")
    write(tmp_path, "inspections/stopped")
    return ArtifactStore(str(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize(("cycle", "folder"), [("built", "datasets/desk-1"), ("stopped", "inspections/stopped")])
async def test_a_cycles_inspection_is_served_and_can_run_nothing(store: ArtifactStore, cycle: str, folder: str) -> None:
    answer = await get(f"/cycles/{cycle}/report", store)
    assert (answer.status_code, answer.text) == (200, f"<h1>{folder}</h1>")
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("cycle", ["skipped", "deleted", "unknown", "..%2F..%2Fsecrets"])
async def test_a_cycle_without_an_inspection_is_not_found(store: ArtifactStore, cycle: str) -> None:
    assert (await get(f"/cycles/{cycle}/report", store)).status_code == 404


async def test_a_store_that_is_away_is_unavailable() -> None:
    class Away:
        def lines(self, *_: str) -> None:
            raise DependencyUnavailable("no S3 server")

    answer = await get("/cycles/built/report", Away())
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
