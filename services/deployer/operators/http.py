"""The deployer's API: where each task's candidate is, its history, and the commands of `ratchet rollout`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query
from pydantic import BaseModel, ConfigDict, StringConstraints

from schemas.base import TaskName
from services.deployer.domain import control_evidence
from services.deployer.operators.commands import CommandRefused, OperatorCommands
from services.deployer.rollout import Move, Rollout
from services.deployer.settings import DeployerSettings
from services.deployer.storage.ledger import LedgerStore
from services.deployer.storage.rollouts import RolloutStore
from services.deployer.transitions import RolloutTransitions
from shared.http import HttpError, build_http

Command = Literal["pause", "resume", "promote", "rollback"]
_Printable = StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00-\x1f]+$")


class CommandBody(BaseModel):
    """Body of a command: who gives it, and why. Both are in the history, which is never deleted."""

    model_config = ConfigDict(extra="forbid")

    by: Annotated[str, _Printable, StringConstraints(max_length=100)]
    reason: Annotated[str, _Printable, StringConstraints(max_length=1_000)]


def build_app(
    settings: DeployerSettings,
    rollouts: RolloutStore,
    ledger: LedgerStore,
    transitions: RolloutTransitions,
    commands: OperatorCommands,
    trouble: Mapping[str, str],
    trouble_of: Callable[[str], str],
) -> FastAPI:
    """`trouble`: what keeps a task's tick from its end; `trouble_of`: an adapter's on the replicas.

    `GET /api/rollouts` · `GET /api/rollouts/{task}/moves` · `POST /api/rollouts/{task}/{command}`."""
    app = build_http("Ratchet deployer", list)
    calls: dict[Command, Callable[[str, str, str], Awaitable[Rollout]]] = {
        "pause": commands.pause,
        "resume": commands.resume,
        "promote": commands.promote,
        "rollback": commands.rollback,
    }

    @app.get("/api/rollouts")
    async def status() -> dict[str, Any]:
        found = [await rollouts.last_changed(task) or await rollouts.newest(task) for task in await rollouts.tasks()]
        return {"rollouts": [await _with_evidence_now(rollout) for rollout in found if rollout is not None]}

    async def _with_evidence_now(rollout: Rollout) -> dict[str, Any]:
        """Return the rollout as a body; while it is compared, with the labels that came since its last move."""
        evidence = rollout.evidence
        if rollout.active:
            evidence = await transitions.evidence(rollout)
        elif rollout.control:
            fresh = await ledger.load(rollout.rollout_id, fresh=True)
            evidence = control_evidence(evidence, fresh, rollout.spec.rollout)
        return {
            "trouble": trouble.get(rollout.task, ""),
            "adapters": {name: found for name in _serving(rollout) if (found := trouble_of(name))},
            "primary": rollout.primary,
            "previous": rollout.previous,
            "stage_since": rollout.stage_since,
            "canary_wealth": rollout.spec.rollout.canary_wealth,
            "control_percent": rollout.spec.rollout.control_percent if rollout.control else 0,
            "control_until": rollout.control_until,
            **_move_body(rollout.move),
            "evidence": evidence.model_dump(mode="json"),
        }

    @app.get("/api/rollouts/{task}/moves")
    async def moves(task: TaskName, limit: Annotated[int, Query(ge=1, le=1_000)] = 50) -> dict[str, Any]:
        return {"moves": [_move_body(move) for move in await rollouts.history(task, limit)]}

    @app.post("/api/rollouts/{task}/{command}", status_code=202)
    async def command(task: TaskName, command: Command, body: CommandBody) -> dict[str, Any]:
        try:
            rollout = await calls[command](task, body.by, body.reason)
        except CommandRefused as error:
            raise HttpError(409, f"{error.reason}. {error.way_out}".strip(), "refused", "command") from error
        return _move_body(rollout.move)

    return app


def _serving(rollout: Rollout) -> list[str]:
    """The adapters that users may be served, and a candidate."""
    names = [rollout.primary, rollout.previous, rollout.candidate if rollout.active else None]
    return [name for name in dict.fromkeys(names) if name is not None]


def _move_body(move: Move) -> dict[str, Any]:
    return {
        "task": move.task,
        "rollout_id": move.rollout_id,
        "version": move.version,
        "at": move.at,
        "candidate": move.candidate,
        "stage": move.stage,
        "canary_percent": move.canary_percent,
        "paused": move.paused,
        "reason": move.reason,
        "moved_by": move.moved_by,
        "evidence": move.evidence.model_dump(mode="json"),
    }
