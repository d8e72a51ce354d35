"""What a crash, a redelivery or a dependency that is away leaves undone is done later, once, as the same event."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from schemas.base import utc_now
from schemas.cycles import StepFailed
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from services.deployer.rollout import Rollout
from services.deployer.wakes import Wakes
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from shared.settings import Settings
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, in_canary, in_shadow, pair, spec
from tests.waiting import until

TASK = "support-desk"


async def test_the_state_of_each_task_is_published_again_at_the_start_as_the_same_event() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(evaluated("a2", passed=False))
    before = list(deployer.publisher.events)
    sent = deployer.publisher.sent
    deployer.publisher.events.clear()
    await deployer.handlers.publish_again()
    assert (deployer.publisher.sent, list(deployer.publisher.events)) == (sent + 1, before[-1:])
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.SHADOW)


async def test_labels_publish_the_evidence_again_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow()
    start, moves = deployer.last, len(deployer.rollouts.moves)
    told = len(deployer.publisher.changes)

    async def tick(minutes: float) -> int:
        now = start.occurred_at + timedelta(minutes=minutes)
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: now)
        await deployer.handlers.tick(TASK)
        return len(deployer.publisher.changes) - told

    await deployer.compare(*[pair(start, number, ("refund", "delivery")) for number in range(3)])
    await deployer.compare(pair(start, 9, ("refund", "refund")))
    assert await tick(1.1) == 0, "nothing new is known"
    asked = deployer.publisher.questions
    await deployer.handlers.on_corrections(deliveries([answer(asked[0], label="delivery")]))
    assert await tick(1.9) == 0, "a minute has not passed"
    assert await tick(2.2) == 1
    assert await tick(4) == 1, "no label came in"
    await deployer.handlers.on_corrections(deliveries([answer(asked[1], label="refund")]))
    await deployer.compare(pair(start, 8, ("refund", None)))  # Lost without a label: the candidate failed.
    assert await tick(5.5) == 2
    events = deployer.publisher.changes[told:]
    evidence = [event.evidence for event in events]
    assert [(e.labels, e.wins, e.losses, e.ties, e.pending) for e in evidence] == [
        (1, 1, 0, 1, 2), (2, 1, 2, 1, 1),
    ]  # fmt: skip
    for event in events:
        assert event.occurred_at > start.occurred_at
        assert event.model_copy(
            update={name: getattr(start, name) for name in ("event_id", "occurred_at", "evidence")}
        ) == start, "nothing else of the last change is new"  # fmt: skip
    assert len(deployer.rollouts.moves) == moves, "it is no move"
    deployer.transitions._published.clear()
    sent = deployer.publisher.sent
    assert (await tick(7), deployer.publisher.sent) == (2, sent + 1), "after a restart it is the same event"


async def test_after_a_newer_candidate_fails_offline_the_older_one_is_published_again() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(evaluated("a2", passed=False))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.SHADOW)
    assert deployer.publisher.changes[-2].candidate_adapter == "a2"
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.last.stage is Stage.CANARY


async def test_a_redelivered_evaluation_changes_nothing() -> None:
    deployer = Deployer()
    event = evaluated()
    for _ in range(3):
        await deployer.handlers.on_evaluated(event)
    writes = deployer.admin.writes
    await deployer.handlers.on_evaluated(event)
    assert len(deployer.publisher.changes) == 2
    await deployer.handlers.tick(TASK)
    assert deployer.admin.writes == writes


@pytest.mark.parametrize("crash_at", range(10))
async def test_a_crash_between_any_two_writes_is_repaired_at_the_next_tick(crash_at: int) -> None:
    deployer = Deployer()
    deployer.admin.crash_at = crash_at
    event = evaluated(canary_wealth=2, min_canary_users=0)
    for _ in range(30):
        try:
            if not deployer.publisher.changes:
                await deployer.handlers.on_evaluated(event)
            await deployer.compare_and_label(range(20), "delivery")
            await deployer.handlers.tick(TASK)
        except DependencyUnavailable:
            deployer.admin.crash_at = None
        if deployer.publisher.changes and deployer.last.stage is Stage.PROMOTED:
            break
    assert [change.stage for change in deployer.publisher.changes] == [
        Stage.QUEUED, Stage.SHADOW, Stage.CANARY, Stage.PROMOTED,
    ]  # fmt: skip
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.canary"].enabled


async def test_a_crash_before_the_event_publishes_the_same_event_later() -> None:
    deployer = Deployer()
    deployer.publisher.is_away = True
    await deployer.handlers.on_evaluated(evaluated())
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    await deployer.handlers.tick(TASK)
    assert [change.stage for change in deployer.publisher.changes] == [Stage.QUEUED, Stage.SHADOW]
    assert deployer.publisher.sent == 2


async def test_what_came_while_the_deployer_was_down_promotes_nobody_whose_task_has_changed_meanwhile() -> None:
    """Labels wait in one topic and the task's change in another, and whichever is read first decided."""
    before = await in_canary(24)
    await before.see_canary(5)
    again = Deployer(before.rollouts, before.ledger, before.admin)
    again.handlers.tasks = LatestByKey("tasks.changed")  # Not read to its end yet.
    label = asyncio.create_task(again.compare_and_label_in(before.last, range(30, 32), "delivery"))
    changed = spec().model_copy(update={"system_prompt": "Another one."})
    await again.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await again.handlers.tasks.read_to({})
    await label
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.admin.serves(TASK)) == (Stage.INCONCLUSIVE, None)


async def test_a_canary_that_fails_is_ended_also_while_the_tasks_are_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash came before the deployer acted on what its guards had counted, and after it the broker was away."""
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 0.0)
    before = await in_canary()
    await before.see_canary(30, status=502)
    again = Deployer(before.rollouts, before.ledger, before.admin)
    again.handlers.tasks = LatestByKey("tasks.changed")
    with pytest.raises(DependencyUnavailable, match="not read to its end yet"):
        await again.handlers.tick(TASK)
    assert (again.last.stage, again.admin.serves(TASK, in_canary=True)) == (Stage.REJECTED, None)
    assert "the canary fails too often: 30 of the 30 users" in again.last.reason


async def test_the_same_adapter_evaluated_again_starts_a_new_rollout() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(7), "refund")
    await deployer.handlers.on_evaluated(evaluated())
    assert (deployer.last.stage, deployer.last.evidence.wealth) == (Stage.SHADOW, 1.0)
    assert deployer.last.rollout_id != deployer.publisher.changes[0].rollout_id


async def test_pairs_and_labels_are_stored_while_unleash_is_away_and_decided_at_a_later_tick() -> None:
    deployer = await in_shadow()
    deployer.admin.crash_at = 0
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.handlers.trouble == {TASK: "Unleash is away"}
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.evidence.wins) == (Stage.CANARY, 10)


@pytest.mark.parametrize("stage", [Stage.REJECTED, Stage.INCONCLUSIVE])
async def test_an_end_that_a_crash_left_stored_is_carried_out_also_while_the_tasks_are_not_read_yet(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 0.0)
    again, rollout = await _restarted_unread(await in_canary())
    await again.rollouts.save(rollout.with_stage(stage, "it has ended", rollout.evidence, utc_now()))
    with pytest.raises(DependencyUnavailable, match="not read to its end yet"):
        await again.handlers.tick(TASK)
    assert (again.last.stage, again.admin.serves(TASK, in_canary=True)) == (stage, None)
    assert await again.rollouts.unsettled(TASK) == []


async def test_a_rise_that_a_crash_left_stored_waits_until_the_tasks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 0.0)
    again, rollout = await _restarted_unread(await in_canary())
    await again.rollouts.save(rollout.with_promotion("it is better", rollout.evidence, utc_now()))
    with pytest.raises(DependencyUnavailable, match="not read to its end yet"):
        await again.handlers.tick(TASK)
    assert (again.publisher.changes, again.admin.serves(TASK)) == ([], None)


async def test_a_step_that_failed_makes_no_move_of_a_task_that_has_changed_or_is_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a crash left stored was made at once: for another prompt, and without the approval that was asked for."""
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 0.0)
    again, rollout = await _restarted_unread(await in_canary())
    await again.rollouts.save(rollout.with_promotion("it is better", rollout.evidence, utc_now()))
    failed = StepFailed(
        task=TASK, task_revision=rollout.task_revision, service="trainer", step="training", reason="no GPU", way_out=""
    )
    await again.handlers.on_step_failed(failed)
    assert (again.publisher.changes, again.admin.serves(TASK)) == ([], None)
    changed = spec().model_copy(update={"system_prompt": "Another one."})
    await again.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await again.handlers.tasks.read_to({})
    await again.handlers.on_step_failed(failed)
    assert (again.last.stage, again.admin.serves(TASK)) == (Stage.INCONCLUSIVE, None)


async def test_while_the_tasks_are_not_read_no_decision_waits_with_its_tasks_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each held it for ten seconds, in which neither a guard nor a hand on a flag of the task was acted on."""
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 1e6)
    again, _ = await _restarted_unread(await in_canary())
    again.handlers.wakes = Wakes()
    await again.admin.switch(f"ratchet.{TASK}.canary", False)
    tick = asyncio.create_task(again.handlers.tick(TASK))
    await until(tick.done, "the tick waits with the lock")
    assert isinstance(tick.exception(), DependencyUnavailable)
    assert again.last.paused == "canary is off, by hand"
    pairs = asyncio.create_task(again.compare(pair(again.last, 400, ("refund", "delivery"))))
    await until(pairs.done, "the pairs wait with the lock")
    assert again.handlers.trouble == {}, "nothing is away"
    assert again.publisher.questions == [], "they are stored, and the decision is the next tick's"

    async def read(table: LatestByKey[TaskChanged], settings: Settings) -> None:
        await table.read_to({})

    monkeypatch.setattr(LatestByKey, "read_to_end", read)
    await again.handlers.read_tasks()
    await again.handlers.wakes.wait(TASK, 1e6, 1e6)  # It is woken at once.
    await again.handlers.tick(TASK)
    assert len(again.publisher.questions) == 1


async def _restarted_unread(before: Deployer) -> tuple[Deployer, Rollout]:
    """Return a deployer after a restart that has not read the tasks, and the candidate that is stored."""
    again = Deployer(before.rollouts, before.ledger, before.admin)
    again.handlers.tasks = LatestByKey("tasks.changed")
    (rollout,) = await again.rollouts.counting([TASK])
    return again, rollout
