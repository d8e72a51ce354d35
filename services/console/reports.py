"""The inspection of a cycle's dataset as a page, as the dataset builder published it (schemas/quality.py)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol

from fastapi import FastAPI, Path
from fastapi.responses import HTMLResponse

from schemas.catalog import topic_of
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt
from services.console.history import CycleHistory
from shared.http import HttpError

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}


class ArtifactReader(Protocol):
    """What is needed of the artifact store."""

    def lines(self, kind: str, name: str, file: str) -> Iterator[bytes]: ...


def report_page(cycle_id: str) -> str:
    """Return the address of a cycle's inspection inside the console."""
    return f"/cycles/{cycle_id}/report"


def report_folder(records: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    """Return kind and name of the folder that has a cycle's inspection; None if its events name none."""
    for record in reversed(records):
        event = record["event"]
        if record["topic"] == topic_of(DatasetBuilt).name:
            return "datasets", event["dataset_id"]
        if record["topic"] == topic_of(StepFailed).name and event.get("report"):
            return "inspections", event["cycle_id"]
    return None


def mount_reports(app: FastAPI, history: CycleHistory, artifacts: ArtifactReader) -> None:
    """Add the route. The page can run nothing: the texts in it are people's."""

    @app.get("/cycles/{cycle_id}/report", include_in_schema=False)
    async def report(cycle_id: Annotated[str, Path(max_length=200, pattern=r"^[^\x00]+$")]) -> HTMLResponse:
        folder = report_folder(await history.events(cycle_id))
        if folder is None:
            raise HttpError(404, f"no inspection of a cycle {cycle_id!r}", "unknown_report", "cycle_id")
        try:
            page = await asyncio.to_thread(lambda: b"".join(artifacts.lines(*folder, "quality.html")))
        except OSError as error:
            gone = "it was deleted, or RATCHET_ARTIFACTS is another store here"
            reason = f"the inspection of {cycle_id} is not in the artifact store: {gone}"
            raise HttpError(404, reason, "unknown_report", "cycle_id") from error
        return HTMLResponse(page, headers=_HEADERS)
