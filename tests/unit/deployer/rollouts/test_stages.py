"""A rollout from shadow to its end: what advances it, what ends it, and when it waits."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from schemas.adapters import AdapterEvaluated
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from services.deployer.rollout import offline_reason
from tests.unit.deployer.fakes import Deployer, evaluated, in_canary, in_shadow, pair, spec

TASK = "support-desk"


async def test_a_candidate_that_wins_is_promoted_through_the_canary() -> None:
    deployer = await in_shadow()
    assert deployer.last.stage is Stage.SHADOW
    assert deployer.admin.serves(TASK) is None
    await deployer.compare_and_label(range(9), "delivery")
    assert deployer.last.stage is Stage.SHADOW
    await deployer.compare_and_label(range(9, 10), "delivery")
    assert deployer.last.stage is Stage.CANARY
    assert deployer.admin.serves(TASK, in_canary=True) == "a1"
    await deployer.compare_and_label(range(10, 25), "delivery")
    assert deployer.last.stage is Stage.CANARY, "the canary has not served enough users"
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert deployer.last.primary_adapter == "a1"
    assert deployer.last.reason.startswith("wealth ")
    assert "≥ 1040 = 1/α after 25 wins, 0 losses, 0 ties, 0 pending" in deployer.last.reason
    assert deployer.last.evidence.canary_requests == 5
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.shadow"].enabled
    assert not deployer.admin.flags[f"ratchet.{TASK}.canary"].enabled
    assert [change.stage for change in deployer.publisher.changes] == [
        Stage.QUEUED, Stage.SHADOW, Stage.CANARY, Stage.PROMOTED,
    ]  # fmt: skip


async def test_the_next_candidate_inherits_the_primary_and_of_the_alpha_of_a_promotion_half_a_share() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_users=0)
    first = deployer.last.evidence.alpha
    await deployer.compare_and_label(range(20), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert deployer.last.primary_adapter == "a1"
    assert deployer.last.evidence.alpha == pytest.approx(first / 2, rel=1e-4), "half a share of it is given back"
    assert deployer.last.evidence.wealth == 1.0


async def test_a_predecessor_that_was_not_promoted_gives_no_alpha_back() -> None:
    deployer = await in_shadow()
    first = deployer.last.evidence.alpha
    await deployer.compare_and_label(range(7), "refund")
    assert deployer.last.stage is Stage.REJECTED
    await deployer.handlers.on_evaluated(evaluated("a2"))
    assert deployer.last.stage is Stage.SHADOW
    assert deployer.last.evidence.alpha < first / 1_000, "what it spent accrues again, day by day"


async def test_between_any_two_writes_of_a_promotion_the_canarys_users_keep_the_candidate() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    write, served = deployer.admin._write, []

    def watched(flag: str, **changes: object) -> None:
        write(flag, **changes)
        served.append((deployer.admin.serves(TASK, in_canary=True), deployer.admin.serves(TASK)))

    deployer.admin._write = watched
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert len(served) >= 3
    assert {canary for canary, _ in served} == {"a1"}
    everyone = [other for _, other in served]
    assert everyone == sorted(everyone, key=lambda adapter: adapter == "a1"), "once promoted, never taken away"


async def test_a_candidate_that_fails_an_offline_gate_is_rejected_and_changes_no_flag() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(passed=False))
    assert deployer.last.stage is Stage.REJECTED
    assert "min_gain (-0.1, required >= 0)" in deployer.last.reason
    assert "accuracy 0.200 against production's 0.300" in deployer.last.reason
    assert deployer.admin.flags == {}


def test_generated_texts_are_told_by_their_score_and_not_by_how_many_are_right_to_the_letter() -> None:
    event = AdapterEvaluated.model_validate_json(
        Path("schemas/examples/adapters.evaluated.v1/generation.json").read_bytes()
    )
    (gating,) = [row for row in event.texts if row.gates]
    assert f"({gating.metric} {gating.candidate.value:.3f} against production's" in offline_reason(event)


async def test_a_worse_candidate_is_rejected_and_the_primary_stays() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(7), "refund")
    assert deployer.last.stage is Stage.REJECTED
    assert "0 wins, 7 losses" in deployer.last.reason
    assert deployer.admin.serves(TASK, in_canary=True) is None
    await deployer.compare(pair(deployer.publisher.changes[0], 99, ("refund", "delivery")))
    assert len(deployer.publisher.questions) == 7, "an ended rollout asks no questions"


async def test_a_candidate_ends_inconclusive_when_its_labels_are_spent_without_proof() -> None:
    deployer = await in_shadow(max_labels=4)
    await deployer.compare_and_label(range(6), "login")
    assert len(deployer.publisher.questions) == 4
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert "all 4 labels are spent" in deployer.last.reason


@pytest.mark.parametrize(
    ("wins", "stage", "missing"),
    [
        (3, "shadow", "the proof"),
        (12, "canary", "the proof"),
        (25, "canary", "5 users whom the canary of 5 % has served"),
    ],
)
async def test_a_rollout_that_nothing_ends_expires_and_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, wins: int, stage: str, missing: str
) -> None:
    """One label that never came, or traffic that never enters a canary, locked the weekly cycle for good."""
    deployer = await in_shadow(max_days=10)
    await deployer.compare_and_label(range(wins), "delivery")
    assert deployer.last.stage.value == stage
    entered = deployer.last.occurred_at
    for days, ended in ((9.9, False), (10.1, True)):
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda days=days: entered + timedelta(days=days))
        await deployer.handlers.tick(TASK)
        assert (deployer.last.stage is Stage.INCONCLUSIVE) is ended
    assert deployer.last.reason.startswith(f"10 days in {stage} without {missing}, after {wins} wins")
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_a_candidate_that_answers_as_production_does_ends_with_nothing_to_promote() -> None:
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(999)])
    assert deployer.last.stage is Stage.SHADOW
    await deployer.compare(pair(deployer.last, 999, ("refund", "refund")))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert deployer.last.reason == "nothing to promote: its answers are production's in all 1000 pairs"
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.compare(pair(deployer.last, 5_000, ("refund", "delivery")))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(1_001)])
    assert deployer.last.stage is Stage.SHADOW, "one that differs is something to decide about"


async def test_a_pair_that_differs_and_has_no_ticket_yet_is_something_to_decide_about() -> None:
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(990)])
    batch = [pair(deployer.last, number, ("refund", "refund")) for number in range(990, 1_010)]
    await deployer.compare(*batch, pair(deployer.last, 5_000, ("refund", "delivery")))
    assert deployer.last.stage is Stage.SHADOW, deployer.last.reason
    assert len(deployer.publisher.questions) == 1


async def test_after_its_proof_a_candidate_whose_later_labels_are_losses_waits_and_is_rejected_for_harm() -> None:
    """19 wins in a row were worth 1/alpha, and 100 losses behind them were not looked at."""
    deployer = await in_shadow()
    await deployer.compare_and_label(range(25), "delivery")
    assert deployer.last.evidence.wealth < 1 / deployer.last.evidence.alpha  # Of the change to canary; proven since.
    await deployer.compare_and_label(range(25, 50), "refund")
    assert deployer.last.stage is Stage.CANARY
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY, "proven once, and the labels as they stand are not worth a promotion"
    await deployer.compare_and_label(range(50, 125), "refund")
    assert deployer.last.stage is Stage.REJECTED
    assert "the candidate is worse" in deployer.last.reason


async def test_a_candidate_that_recovers_after_losses_is_promoted() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.compare_and_label(range(25, 43), "refund")
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    await deployer.compare_and_label(range(50, 80), "delivery")
    assert deployer.last.stage is Stage.PROMOTED


async def test_a_changed_task_invalidates_the_comparison() -> None:
    deployer = await in_shadow()
    changed = spec().model_copy(update={"system_prompt": "Another prompt."})
    rollout = await deployer.rollouts.last_entered(TASK)
    assert rollout.is_invalidated_by(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    assert not rollout.is_invalidated_by(
        TaskChanged(task=TASK, task_revision=spec().revision, spec=spec(canary_steps=(50,)))
    )
    await deployer.transitions.end(TASK, Stage.INCONCLUSIVE, "the task changed")
    assert (deployer.last.stage, deployer.last.reason) == (Stage.INCONCLUSIVE, "the task changed")


async def test_a_label_promotes_nobody_whose_task_has_changed_since_the_last_tick() -> None:
    deployer = await in_canary(24)
    await deployer.see_canary(5)
    changed = spec().model_copy(update={"system_prompt": "Another one."})
    await deployer.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await deployer.compare_and_label(range(30, 32), "delivery")
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert deployer.last.reason.startswith("the task's prompt, labels or base model changed")


async def test_a_candidate_of_a_task_that_has_changed_does_not_enter_shadow() -> None:
    deployer = Deployer()
    changed = spec().model_copy(update={"system_prompt": "Another one."})
    await deployer.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await deployer.handlers.on_evaluated(evaluated())
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert await deployer.rollouts.draws(TASK) == [], "it has spent no alpha"
