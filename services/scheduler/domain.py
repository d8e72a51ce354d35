"""The rules of when a cycle is due, which step it is in, when a step is late and how a cycle ends. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal, get_args
from uuid import UUID

from croniter import CroniterBadDateError, croniter

from schemas.adapters import AdapterEvaluated
from schemas.base import Event
from schemas.cycles import CycleFinished, CycleStarted, Fence, Step, StepFailed
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskSpec
from shared.identity import event_id

STEPS: tuple[Step, ...] = get_args(Step)
NAME = "scheduler"
MODEL_PASSED = (
    "no offline gate stops the model {name}. It is served to whoever names it (`model: {name}`), at RATCHET_MODELS or "
    "through the gateway: ratchet keys create APP --pass-through. No rollout moves users to it yet."
)
_RANDOM = re.compile(r"(?<![a-z])r(?![a-z])", re.IGNORECASE)
_ANY_DAY = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ScheduledRun:
    """The last run of a task's cron that was decided on: started, or skipped because a cycle was running."""

    cron: str
    considered_at: datetime


@dataclass(frozen=True)
class Cycle:
    """A stored cycle. `late_step`: reported late, and silent since. `waits`: its candidate waits for its turn."""

    started: CycleStarted
    step: Step
    step_since: datetime
    progress_at: datetime | None
    late_step: Step | None
    timeout_minutes: int
    waits: bool = False


@dataclass(frozen=True)
class CycleEnd:
    """How a cycle ends and why."""

    outcome: Literal["promoted", "rejected", "inconclusive", "failed", "skipped"]
    reason: str
    adapter: str | None = None


def valid_cron(cron: str) -> bool:
    """Return True for five fields, in UTC. Names such as @weekly are refused: the file must say when.

    So are a day that no calendar has, such as 31 April, and croniter's R, which is another time whenever it is read.
    """
    if len(cron.split()) != 5 or _RANDOM.search(cron) or not croniter.is_valid(cron):
        return False
    try:
        next_cycle_at(cron, _ANY_DAY)
    except CroniterBadDateError:
        return False
    return True


def latest_run(cron: str, now: datetime) -> datetime:
    """Return the latest scheduled time at or before `now`."""
    previous: datetime = croniter(cron, now.astimezone(UTC) + timedelta(seconds=1)).get_prev(datetime)
    return previous


def next_cycle_at(cron: str, now: datetime) -> datetime:
    """Return the next scheduled time after `now`."""
    following: datetime = croniter(cron, now.astimezone(UTC)).get_next(datetime)
    return following


def check_schedule(cron: str, last: ScheduledRun | None, now: datetime) -> tuple[bool, ScheduledRun]:
    """Return whether a cycle is due, and the run to store.

    However many runs were missed while the scheduler was down, one cycle is started. A new task, or one whose cron
    has changed, waits for its next run. So does one whose last run is after its next: the clock was ahead.
    """
    if last is None or last.cron != cron or last.considered_at > next_cycle_at(cron, now):
        return False, ScheduledRun(cron, now)
    latest = latest_run(cron, now)
    if latest <= last.considered_at:
        return False, last
    return True, ScheduledRun(cron, latest)


def cycle_name(task: str, now: datetime) -> str:
    """Return `<task>-<UTC yyyymmdd-hhmmss>`."""
    return f"{task}-{now.astimezone(UTC):%Y%m%d-%H%M%S}"


def cycle_started(spec: TaskSpec, trigger: Literal["cron", "command"], fence: Fence, now: datetime) -> CycleStarted:
    """Return the event that starts a cycle of this task now."""
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


def is_later_step(step: Step, than: Step) -> bool:
    """Return True if `step` comes after `than`. Events overtake each other, but a cycle never goes back."""
    return STEPS.index(step) > STEPS.index(than)


def cycle_end(event: Event) -> CycleEnd | None:
    """Return the end that this event brings to its cycle, if any. A candidate that fails offline has no rollout, and
    nor has a model of its own.

    A promotion that is taken back before its event could be published is told by its rollback alone.
    """
    if isinstance(event, RolloutChanged) and event.stage is Stage.PROMOTED:
        return CycleEnd("promoted", event.reason, event.candidate_adapter)
    if isinstance(event, RolloutChanged) and event.stage in (Stage.REJECTED, Stage.ROLLED_BACK):
        return CycleEnd("rejected", event.reason, event.candidate_adapter)
    if isinstance(event, RolloutChanged) and event.stage is Stage.INCONCLUSIVE:
        return CycleEnd("inconclusive", event.reason, event.candidate_adapter)
    if isinstance(event, AdapterEvaluated) and event.verdict == "failed":
        failed = [f"{g.name} ({g.measured:.4g}, required {g.required})" if g.measured is not None
                  else f"{g.name} (required {g.required})" for g in event.gates if not g.passed]  # fmt: skip
        return CycleEnd("rejected", f"offline gates failed: {', '.join(failed)}"[:2_000], event.adapter)
    if isinstance(event, AdapterEvaluated) and event.kind == "model":
        return CycleEnd("inconclusive", MODEL_PASSED.format(name=event.adapter), event.adapter)
    if isinstance(event, StepFailed) and event.skipped:
        return CycleEnd("skipped", event.reason[:2_000])
    if isinstance(event, StepFailed) and event.service != NAME:  # Ours says that a step is late, not that it failed.
        return CycleEnd("failed", f"{event.service}: {event.reason}"[:2_000])
    return None


def cycle_finished(started: CycleStarted, end: CycleEnd, at: datetime, ended_by: UUID | None) -> CycleFinished:
    """Return the event of a cycle's end. Its id follows from the cycle's. `ended_by`: None for an operator."""
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
        ended_by=ended_by,
    )


def silence(cycle: Cycle, now: datetime, listening_since: datetime) -> timedelta:
    """Return how long nothing was heard of the cycle's step.

    `listening_since`: when this process started. Before, the step may have been down too, and its progress may still
    have to be read from Kafka.
    """
    return max(now - max(_heard_at(cycle), listening_since), timedelta(0))  # It was another machine's clock.


def is_late(cycle: Cycle, now: datetime, listening_since: datetime) -> bool:
    """Return True for a step without progress for longer than its task allows.

    It may still finish. A candidate that waits for its turn, which may take weeks, is not late.
    """
    return not cycle.waits and silence(cycle, now, listening_since) > timedelta(minutes=cycle.timeout_minutes)


def describe(cycle: Cycle, now: datetime, listening_since: datetime) -> str:
    """Return which step a cycle is in, and how long nothing was heard of it."""
    minutes = silence(cycle, now, listening_since).total_seconds() / 60
    since = ", since the scheduler started" if listening_since > _heard_at(cycle) else ""
    return f"cycle {cycle.started.cycle_id} is in step {cycle.step}, without progress for {minutes:.0f} minutes{since}"


def _heard_at(cycle: Cycle) -> datetime:
    return max(cycle.step_since, cycle.progress_at or cycle.step_since)


def way_to_end(cycle: Cycle) -> str:
    """Return the command that ends a cycle whose step does not answer. One in its rollout ends with its candidate."""
    task = cycle.started.task
    return f"ratchet rollout rollback {task}" if cycle.step == "rollout" else f"ratchet cycle {task} --stop"


def late_step_report(cycle: Cycle, now: datetime, listening_since: datetime) -> StepFailed | None:
    """Return the report of a late step, once until it progresses; None while it is on time. The cycle goes on."""
    if cycle.late_step == cycle.step or not is_late(cycle, now, listening_since):
        return None
    started = cycle.started
    return StepFailed(
        event_id=event_id("late", started.cycle_id, cycle.step, _heard_at(cycle).astimezone(UTC)),
        occurred_at=now,
        task=started.task,
        task_revision=started.task_revision,
        cycle_id=started.cycle_id,
        service=NAME,
        step=cycle.step,
        reason=f"late: {describe(cycle, now, listening_since)} (step_timeout_minutes is {cycle.timeout_minutes})",
        way_out=f"{LATE_STEP_HINTS[cycle.step]} See `ratchet status`, `ratchet dlq list` and the log of that service. "
        f"If it cannot finish: {way_to_end(cycle)}",
    )


LATE_STEP_HINTS: dict[Step, str] = {
    "failures": "The failure_miner clusters the suspects.",
    "dataset": "The dataset_builder builds the dataset.",
    "training": "The trainer trains: look at the job's log.txt below <home>/jobs/trainer.",
    "evaluation": "The evaluator asks vLLM: is it up?",
    "rollout": "The deployer waits for labels on discordant pairs: is the review queue empty? Is there live traffic?",
}
