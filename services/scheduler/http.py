"""The scheduler's small API: start a cycle now, stop following one, list the tasks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, StringConstraints

from schemas.base import TaskName
from services.scheduler.domain import turn_after
from services.scheduler.handlers import Handlers
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import Storage
from services.scheduler.tasks import Tasks
from shared.http import HttpError, build_http


class StartCycle(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task: TaskName


def build_app(
    settings: SchedulerSettings,
    handlers: Handlers,
    storage: Storage,
    tasks: Tasks,
    ready: Callable[[], list[str]],
) -> FastAPI:
    """`POST /api/cycles` · `POST /api/cycles/{cycle_id}/stop` · `GET /api/tasks`."""
    app = build_http(
        "Ratchet scheduler", ready, settings.scheduler_max_body_bytes, notes=lambda: list(tasks.broken.values())
    )

    @app.post("/api/cycles", status_code=202)
    async def start(body: StartCycle) -> dict[str, str]:
        if (spec := tasks.get(body.task)) is None:
            known = ", ".join(spec.name for spec in tasks.specs()) or "none yet"
            raise HttpError(404, f"no task {body.task!r}; tasks: {known}", "unknown_task", "task")
        cycle_id = await handlers.start(spec, "command")
        if cycle_id is None:
            names = [c.started.cycle_id for c in await storage.running() if c.started.task == body.task]
            running = f"cycle {names[0]}" if names else f"a cycle of {body.task}"
            raise HttpError(409, f"{running} is running; one at a time", "cycle_running", "task")
        return {"cycle_id": cycle_id}

    @app.post("/api/cycles/{cycle_id}/stop", status_code=202)
    async def stop(
        cycle_id: Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00]+$")],
    ) -> dict[str, str]:
        if not await handlers.stop(cycle_id):
            raise HttpError(404, f"no running cycle {cycle_id!r}", "unknown_cycle", "cycle_id")
        return {"cycle_id": cycle_id}

    @app.get("/api/tasks")
    async def list_tasks() -> dict[str, Any]:
        running = {cycle.started.task: cycle for cycle in await storage.running()}
        items = []
        for spec in tasks.specs():
            cycle = running.get(spec.name)
            items.append({
                "name": spec.name,
                "kind": spec.kind,
                "base_model": spec.base_model,
                "revision": spec.revision,
                "labels": len(spec.labels),
                "cron": spec.cron,
                "next_turn": turn_after(spec.cron, handlers.now()),
                "cycle_id": cycle.started.cycle_id if cycle else None,
                "step": cycle.step if cycle else None,
            })  # fmt: skip
        return {"tasks": items, "broken": tasks.broken}

    return app
