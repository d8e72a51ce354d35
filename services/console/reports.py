"""A cycle's inspection and evaluation as pages, as the dataset builder and the evaluator published them.

See schemas/quality.py and schemas/evaluation.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import FastAPI, Path
from fastapi.responses import HTMLResponse

from schemas.adapters import AdapterEvaluated
from schemas.catalog import topic_of
from schemas.cycles import StepFailed
from schemas.datasets import DatasetBuilt
from schemas.evaluation import EVALUATION_PAGE, EVALUATIONS
from services.console.history import PostgresCycleHistory
from shared.http import HttpError
from shared.storage.artifacts import ArtifactStore

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
}
CycleId = Annotated[str, Path(max_length=200, pattern=r"^[^\x00]+$")]
Folder = tuple[str, str]
"""Kind and name of a folder in the artifact store."""


def report_page(cycle_id: str) -> str:
    """Return the address of a cycle's inspection inside the console."""
    return f"/cycles/{cycle_id}/report"


def evaluation_page(cycle_id: str) -> str:
    """Return the address of the page of a cycle's evaluation inside the console."""
    return f"/cycles/{cycle_id}/evaluation"


def report_folder(records: Sequence[dict[str, Any]]) -> Folder | None:
    """Return the folder that has a cycle's inspection; None if its events name none."""
    for record in reversed(records):
        event = record["event"]
        if record["topic"] == topic_of(DatasetBuilt).name:
            return "datasets", event["dataset_id"]
        if record["topic"] == topic_of(StepFailed).name and event.get("report"):
            return "inspections", event["cycle_id"]
    return None


def evaluation_folder(records: Sequence[dict[str, Any]]) -> Folder | None:
    """Return the folder that has a cycle's last evaluation; None if its events name none."""
    for record in reversed(records):
        if record["topic"] == topic_of(AdapterEvaluated).name and (address := record["event"].get("report")):
            return EVALUATIONS, str(address).rstrip("/").rpartition("/")[2]
    return None


def mount_reports(app: FastAPI, history: PostgresCycleHistory, artifacts: ArtifactStore) -> None:
    """Add the routes. The pages can run nothing: the texts in them are people's."""

    async def page(what: str, cycle_id: str, folder: Folder | None, file: str) -> HTMLResponse:
        if folder is None:
            raise HttpError(404, f"no {what} of a cycle {cycle_id!r}", "unknown_report", "cycle_id")
        try:
            content = await asyncio.to_thread(lambda: b"".join(artifacts.lines(*folder, file)))
        except OSError as error:
            gone = "it was deleted, or RATCHET_ARTIFACTS is another store here"
            reason = f"the {what} of {cycle_id} is not in the artifact store: {gone}"
            raise HttpError(404, reason, "unknown_report", "cycle_id") from error
        return HTMLResponse(content, headers=_HEADERS)

    @app.get("/cycles/{cycle_id}/report", include_in_schema=False)
    async def report(cycle_id: CycleId) -> HTMLResponse:
        folder = report_folder(await history.events(cycle_id))
        return await page("inspection", cycle_id, folder, "quality.html")

    @app.get("/cycles/{cycle_id}/evaluation", include_in_schema=False)
    async def evaluation(cycle_id: CycleId) -> HTMLResponse:
        folder = evaluation_folder(await history.events(cycle_id))
        return await page("evaluation", cycle_id, folder, EVALUATION_PAGE)
