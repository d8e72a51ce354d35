"""When a cycle is due, where it stands, and when a step is late. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args

from croniter import croniter

from schemas.adapters import AdapterEvaluated
from schemas.base import Event
from schemas.cycles import CycleFinished, CycleStarted, Fence, Step, StepFailed
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from shared.identity import event_id

STEPS: tuple[Step, ...] = get_args(Step)
Outcome = Literal["promoted", "rejected", "failed"]
NAME = "scheduler"


@dataclass(frozen=True)
class Turn:
    """The last turn of a task's cron that was considered: started, or skipped because a cycle was running."""

    cron: str
    considered_at: datetime


@dataclass(frozen=True)
class Cycle:
    """A cycle as the scheduler remembers it."""

    started: CycleStarted
    step: Step
    step_since: datetime
    progress_at: datetime | None
    late_step: Step | None
    timeout_minutes: int


@dataclass(frozen=True)
class End:
    """How a cycle ends, and by which event."""

    outcome: Outcome
    reason: str
    adapter: str | None = None


def valid_cron(cron: str) -> bool:
    """Five fields, in UTC. Names such as @weekly are refused: the file should say when."""
    return len(cron.split()) == 5 and bool(croniter.is_valid(cron))


def turn_before(cron: str, now: datetime) -> datetime:
    """The latest turn at or before `now`."""
    previous: datetime = croniter(cron, now.astimezone(UTC) + timedelta(seconds=1)).get_prev(datetime)
    return previous


def turn_after(cron: str, now: datetime) -> datetime:
    """The next turn after `now`."""
    following: datetime = croniter(cron, now.astimezone(UTC)).get_next(datetime)
    return following


def due(cron: str, last: Turn | None, now: datetime) -> tuple[bool, Turn]:
    """Is a cycle due, and the turn to remember.

    However many turns were missed while the scheduler was down, one is started. A task that was never seen, or whose
    cron has changed, waits for its next turn.
    """
    if last is None or last.cron != cron:
        return False, Turn(cron, now)
    latest = turn_before(cron, now)
    if latest <= last.considered_at:
        return False, last
    return True, Turn(cron, latest)


def cycle_name(task: str, now: datetime) -> str:
    """`<task>-<UTC yyyymmdd-hhmmss>`."""
    return f"{task}-{now.astimezone(UTC):%Y%m%d-%H%M%S}"


def start_of(spec: TaskSpec, trigger: Literal["cron", "command"], fence: Fence, now: datetime) -> CycleStarted:
    """The event that starts a cycle of this task now."""
    name = cycle_name(spec.name, now)
    return CycleStarted(
        event_id=event_id("cycle started", name),
        occurred_at=now,
        task=spec.name,
        task_revision=spec.revision,
        cycle_id=name,
        trigger=trigger,
        data_cutoff=now,
        fence=fence,
    )


def further(step: Step, than: Step) -> bool:
    """Events of different topics overtake each other: a cycle's step only ever moves forward."""
    return STEPS.index(step) > STEPS.index(than)


def end_of(event: Event) -> End | None:
    """Does this event end its cycle? A candidate that failed its offline gates never reaches a rollout."""
    if isinstance(event, RolloutChanged) and event.stage is Stage.PROMOTED:
        return End("promoted", event.reason, event.candidate_adapter)
    if isinstance(event, RolloutChanged) and event.stage is Stage.REJECTED:
        return End("rejected", event.reason, event.candidate_adapter)
    if isinstance(event, AdapterEvaluated) and event.verdict == "failed":
        failed = [f"{g.name} ({g.measured:.4g}, required {g.required})" if g.measured is not None
                  else f"{g.name} (required {g.required})" for g in event.gates if not g.passed]  # fmt: skip
        return End("rejected", f"offline gates failed: {', '.join(failed)}"[:2_000], event.adapter)
    if isinstance(event, StepFailed) and event.service != NAME:  # Our own say that a step is late, not that it failed.
        return End("failed", f"{event.service}: {event.reason}"[:2_000])
    return None


def finished_of(started: CycleStarted, end: End, at: datetime) -> CycleFinished:
    """The event of a cycle's end: the same whenever it is made."""
    return CycleFinished(
        event_id=event_id("cycle finished", started.cycle_id),
        occurred_at=at,
        task=started.task,
        task_revision=started.task_revision,
        cycle_id=started.cycle_id,
        outcome=end.outcome,
        reason=end.reason,
        adapter=end.adapter,
        seconds=max(0.0, (at - started.occurred_at).total_seconds()),
    )


def late_of(cycle: Cycle, now: datetime) -> StepFailed | None:
    """The report of a late step, once a step; None while it is in time.

    It does not end the cycle: a late step that finishes after all goes on.
    """
    sign = max(cycle.step_since, cycle.progress_at or cycle.step_since)
    silent = now - sign
    if cycle.late_step == cycle.step or silent <= timedelta(minutes=cycle.timeout_minutes):
        return None
    started = cycle.started
    return StepFailed(
        event_id=event_id("late", started.cycle_id, cycle.step),
        occurred_at=now,
        task=started.task,
        task_revision=started.task_revision,
        cycle_id=started.cycle_id,
        service=NAME,
        step=cycle.step,
        reason=f"late: no sign of step {cycle.step} for {silent.total_seconds() / 60:.0f} minutes "
        f"(step_timeout_minutes is {cycle.timeout_minutes})",
        way_out=f"{WAITING_FOR[cycle.step]} See `ratchet status` and the log of that service. If it cannot go on: "
        f"POST /api/cycles/{started.cycle_id}/stop on the scheduler.",
    )


WAITING_FOR: dict[Step, str] = {
    "failures": "The failure_miner clusters the suspects.",
    "dataset": "The dataset_builder builds the dataset.",
    "training": "The trainer trains: look at the job's log.txt below <home>/jobs/trainer.",
    "evaluation": "The evaluator asks vLLM: is it up?",
    "rollout": "The deployer waits for labels on discordant pairs: is the review queue empty? Is there live traffic?",
}
