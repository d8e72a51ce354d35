"""The scheduler's API: start a cycle now, stop following one, list the tasks, erase people; metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from schemas.base import TaskName
from schemas.tasks import TaskSpec
from services.scheduler.domain import is_late, next_cycle_at, valid_cron
from services.scheduler.erasure import ErasureAnnouncer
from services.scheduler.handlers import Handlers
from services.scheduler.metrics import step_metrics
from services.scheduler.settings import SchedulerSettings
from services.scheduler.storage import PostgresCycleStore
from services.scheduler.task_watcher import TaskWatcher
from shared.http import HttpError, build_http


class StartCycle(BaseModel):
    model_config = ConfigDict(extra="forbid")

    task: TaskName


class ErasureRequest(BaseModel):
    """Body of `POST /api/subjects/forget`. `users` are named as in the application's `user` field."""

    model_config = ConfigDict(extra="forbid")

    users: list[Annotated[str, StringConstraints(min_length=1, max_length=500)]] = Field(default=[], max_length=100)
    hashes: list[Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")]] = Field(default=[], max_length=100)
    task: TaskName | None = Field(default=None, description="The only task to erase in; unset: every task.")
    announce: bool = Field(
        default=True, description="False: erase nothing, only report the hashes and the adapters in use."
    )


def build_app(
    settings: SchedulerSettings,
    handlers: Handlers,
    cycles: PostgresCycleStore,
    tasks: TaskWatcher,
    erasures: ErasureAnnouncer,
    ready: Callable[[], list[str]],
) -> FastAPI:
    """The routes: `POST /api/cycles` · `POST /api/cycles/{cycle_id}/stop` · `GET /api/tasks` · `GET /metrics` ·
    `POST /api/subjects/forget`.
    """
    app = build_http("Ratchet scheduler", ready, notes=lambda: list(tasks.invalid_files.values()))

    @app.post("/api/cycles", status_code=202)
    async def start(body: StartCycle) -> dict[str, str]:
        await tasks.scan()  # Whoever edits a task and then starts a cycle means the edited task.
        if (fault := tasks.fault_of(body.task)) is not None:
            message = f"no cycle of {body.task} is started while the task's file is invalid:\n{fault}"
            raise HttpError(409, message, "invalid_task_file", "task")
        spec = _spec_of(tasks, body.task)
        cycle_id = await handlers.start(spec, "command")
        if cycle_id is None:
            held_up_by = await handlers.what_holds_up(body.task)
            raise HttpError(409, f"one at a time: {held_up_by}", "cycle_running", "task")
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
        running = {cycle.started.task: cycle for cycle in await cycles.running()}
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
                "next_cycle_at": next_cycle_at(spec.cron, handlers.now()) if valid_cron(spec.cron) else None,
                "cycle_id": cycle.started.cycle_id if cycle else None,
                "step": cycle.step if cycle else None,
                "late": cycle is not None and is_late(cycle, handlers.now(), handlers.listening_since),
            })  # fmt: skip
        return {"tasks": items, "broken": tasks.invalid_files}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(
            step_metrics(await cycles.running(), handlers.now(), handlers.listening_since),
            media_type=CONTENT_TYPE_LATEST,
        )

    @app.post("/api/subjects/forget", status_code=202)
    async def forget(body: ErasureRequest) -> dict[str, Any]:
        if not body.users and not body.hashes:
            raise HttpError(422, "name at least one of users and hashes", "nobody", "users")
        await tasks.until_read()
        specs = list(tasks.specs()) if body.task is None else [_spec_of(tasks, body.task)]
        if not specs:
            raise HttpError(404, "there is no task yet", "unknown_task", "task")
        return (await erasures.forget(body.users, body.hashes, specs, announce=body.announce)).body()

    return app


def _spec_of(tasks: TaskWatcher, name: str) -> TaskSpec:
    if (spec := tasks.get(name)) is None:
        names = ", ".join(spec.name for spec in tasks.specs()) or "none yet"
        raise HttpError(404, f"no task {name!r}; tasks: {names}", "unknown_task", "task")
    return spec
