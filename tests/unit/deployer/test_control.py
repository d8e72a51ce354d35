"""The time after a promotion: some users stay on the previous adapter, guards go on, and it ends by itself."""

from __future__ import annotations

from datetime import timedelta

import pytest

from schemas.base import Variant
from schemas.predictions import RequestObserved
from schemas.rollouts import Stage
from services.deployer.clients import Strategy
from services.deployer.statistics.guards import Guard
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from tests.unit.deployer.canaries import feedback
from tests.unit.deployer.fakes import Deployer, deliveries, evaluated, observed

TASK = "support-desk"
FLAG = f"ratchet.{TASK}.control"


async def promoted(**rollout: object) -> Deployer:
    """A promoted candidate, of whose users 5 % are control for seven days."""
    deployer = Deployer()
    settings = {"canary_wealth": 2, "min_canary_users": 0, "control_days": 7, **rollout}
    await deployer.handlers.on_evaluated(evaluated(**settings))
    await deployer.compare_and_label(range(20), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    return deployer


def seen(deployer: Deployer, number: int, variant: Variant, status: int = 200) -> RequestObserved:
    """A request that the promoted adapter answered as the primary, or the one before it as control."""
    adapter = deployer.last.primary_adapter if variant is Variant.PRIMARY else deployer.last.previous_adapter
    later = deployer.last.occurred_at + timedelta(minutes=1)
    return observed(deployer.last, number, variant, status).model_copy(
        update={"adapter": adapter, "occurred_at": later}
    )


async def see(deployer: Deployer, numbers: range, variant: Variant, status: int = 200) -> None:
    await deployer.handlers.on_observed(deliveries(seen(deployer, n, variant, status) for n in numbers))


async def after(deployer: Deployer, days: float, monkeypatch: pytest.MonkeyPatch) -> None:
    since = (await deployer.rollouts.last_entered(TASK)).stage_since
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: since + timedelta(days=days))
    await deployer.handlers.tick(TASK)


async def test_after_a_promotion_a_share_of_users_stays_on_the_previous_adapter_for_a_week(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = await promoted()
    assert "everyone, but for 5 % who stay on the base model for 7 days as control" in deployer.last.reason
    flag = deployer.admin.flags[FLAG]
    (strategy,) = flag.strategies
    group = f"{deployer.last.rollout_id}.control"
    assert flag.enabled
    assert strategy["parameters"] == {"rollout": "5", "stickiness": "userId", "groupId": group}
    moves = len(deployer.publisher.changes)
    await after(deployer, 6.9, monkeypatch)
    assert deployer.admin.flags[FLAG].enabled and len(deployer.publisher.changes) == moves
    await after(deployer, 7.1, monkeypatch)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.PROMOTED, "a1")
    assert deployer.last.reason == "its control has ended: 7 days without harm that guards or labels see"
    assert not deployer.admin.flags[FLAG].enabled
    assert deployer.admin.serves(TASK) == "a1"
    moves = len(deployer.publisher.changes)
    await after(deployer, 8, monkeypatch)
    assert len(deployer.publisher.changes) == moves, "it has ended once"


async def test_a_control_lasts_its_days_from_when_the_promotion_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were counted from the decision: a promotion that waited eight days for a replica had no control at all."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, control_days=7))
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    decided = (await deployer.rollouts.last_entered(TASK)).stage_since
    deployer.adapters.is_away = False
    monkeypatch.setattr("tests.unit.deployer.fakes.utc_now", lambda: decided + timedelta(days=8))
    await after(deployer, 8, monkeypatch)
    assert (deployer.last.stage, deployer.last.control) == (Stage.PROMOTED, True)
    await after(deployer, 14.9, monkeypatch)
    assert deployer.admin.flags[FLAG].enabled
    await after(deployer, 15.1, monkeypatch)
    assert not deployer.admin.flags[FLAG].enabled
    assert deployer.last.reason == "its control has ended: 7 days without harm that guards or labels see"


async def test_without_control_days_nobody_stays_and_nothing_is_written() -> None:
    deployer = await promoted(control_days=0)
    assert FLAG not in deployer.admin.flags
    assert "as control" not in deployer.last.reason
    await see(deployer, range(200), Variant.PRIMARY, 502)
    assert (await deployer.ledger.load(deployer.last.rollout_id)).canary.bad(Guard.ERRORS) == (0, 0)


async def test_a_promoted_adapter_that_fails_where_the_control_does_not_is_rolled_back_by_itself() -> None:
    deployer = await promoted()
    await see(deployer, range(100), Variant.PRIMARY, 502)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED, "of 5 % of users, nobody among a hundred is no wonder"
    await see(deployer, range(100, 200), Variant.PRIMARY, 502)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.ROLLED_BACK, "ratchet")
    assert "200 of the 200 users with a failed request were in it, which has 95 % of users" in deployer.last.reason
    assert deployer.last.reason.endswith("the base model serves again")
    assert deployer.admin.serves(TASK) is None
    assert not deployer.admin.flags[FLAG].enabled


async def test_failures_that_the_control_has_as_well_take_nothing_back() -> None:
    deployer = await promoted()
    await see(deployer, range(950), Variant.PRIMARY, 502)
    await see(deployer, range(950, 1_000), Variant.ROLLBACK, 502)
    await deployer.handlers.tick(TASK)
    counts = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert (deployer.last.stage, counts.bad(Guard.ERRORS)) == (Stage.PROMOTED, (950, 1_000))


async def test_complaints_about_a_promoted_adapter_take_it_back() -> None:
    deployer = await promoted()
    await see(deployer, range(200), Variant.PRIMARY)
    for number in range(200):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK
    assert "200 of the 200 with negative feedback" in deployer.last.reason


async def test_complaints_about_answers_of_before_the_promotion_count_nowhere() -> None:
    """They counted as the control's: each made up for twenty about the promoted adapter, since control has 5 %."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(control_days=7))
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    for number in (*range(5), *range(500, 530)):  # The canary's answers, and what the primary answered then.
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).canary.bad(Guard.FEEDBACK) == (0, 0)
    await see(deployer, range(1_000, 1_200), Variant.PRIMARY)
    for number in range(1_000, 1_200):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK


async def test_complaints_of_the_control_take_nothing_back() -> None:
    deployer = await promoted()
    await see(deployer, range(190), Variant.PRIMARY)
    await see(deployer, range(190, 200), Variant.ROLLBACK)
    for number in range(200):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    await deployer.handlers.tick(TASK)
    counts = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert (deployer.last.stage, counts.bad(Guard.FEEDBACK)) == (Stage.PROMOTED, (190, 200))


async def test_what_guards_saw_in_the_canary_counts_on_after_the_promotion() -> None:
    """All guards together may spend .05 once, the week included: evidence goes on from where it was."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(control_days=7))
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    await deployer.handlers.on_feedback(feedback(deployer.last, 0))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    await see(deployer, range(50, 53), Variant.PRIMARY)
    for number in (0, 50, 51):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    arms = (await deployer.ledger.load(deployer.last.rollout_id)).canary.arms[Guard.FEEDBACK]
    assert [(step.percent, step.canary, step.bad) for step in arms] == [(5, 1, 1), (95, 2, 2)]


async def test_the_next_candidate_waits_until_the_control_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    queued, stays = deployer.publisher.changes[-2:]
    assert (queued.candidate_adapter, queued.stage) == ("a2", Stage.QUEUED)
    assert queued.reason.startswith("until the control of a1 ends")
    assert (stays.candidate_adapter, stays.stage, stays.control) == ("a1", Stage.PROMOTED, True), (
        "shadow goes on with it"
    )
    await after(deployer, 7.1, monkeypatch)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)


@pytest.mark.parametrize("by_command", [True, False])
async def test_a_rollback_by_a_person_ends_the_control_for_good(by_command: bool) -> None:
    """Else users would stay on the adapter before once rollback is turned off again."""
    deployer = await promoted()
    if by_command:
        await deployer.commands.rollback(TASK, "ann", "bad tone")
    else:
        deployer.admin._write(f"ratchet.{TASK}.rollback", enabled=True)
        await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.ROLLED_BACK
    assert not deployer.admin.flags[FLAG].enabled
    deployer.admin._write(f"ratchet.{TASK}.rollback", enabled=False)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert not deployer.admin.flags[FLAG].enabled
    assert deployer.admin.serves(TASK) == "a1"


async def test_a_hand_on_the_controls_flag_ends_it() -> None:
    deployer = await promoted()
    deployer.admin._write(FLAG, enabled=False)
    await deployer.handlers.tick(TASK)
    assert deployer.last.reason == "its control has ended: its flag was changed by hand"
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.PROMOTED, "ann in Unleash")
    await deployer.handlers.tick(TASK)
    assert not deployer.admin.flags[FLAG].enabled


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("off", "primary is off: the base model serves"),
        ("payload", "primary's payload is {'adapter': 'a0', 'previous': None}"),
        ("archived", "primary is archived: the base model serves"),
    ],
)
async def test_a_hand_on_primary_ends_the_control_so_that_it_is_in_the_history(how: str, says: str) -> None:
    """It was obeyed and told nowhere, and the control, which had nobody to be compared with, went on for its week."""
    deployer = await promoted()
    primary = f"ratchet.{TASK}.primary"
    if how == "payload":
        other = Strategy(variant="primary", payload={"adapter": "a0", "previous": None})
        await deployer.admin.set_strategy(primary, other)
    elif how == "archived":
        deployer.admin.archive(primary)
    else:
        await deployer.admin.switch(primary, False)
    by_hand = deployer.admin.flags[primary]
    for _ in range(2):
        await deployer.handlers.tick(TASK)
    (move, *_) = await deployer.rollouts.history(TASK, 1)
    assert (move.reason, move.moved_by) == (f"its control has ended: {says}, by hand", "ann in Unleash")
    assert (deployer.last.stage, deployer.last.control, deployer.last.reason) == (Stage.PROMOTED, False, move.reason)
    assert deployer.admin.flags[primary] == by_hand
    assert not deployer.admin.flags[FLAG].enabled


@pytest.mark.parametrize("by_hand", [True, False])
async def test_the_end_of_a_control_does_not_turn_a_primary_on_that_a_hand_turned_off(
    by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployer = await promoted()
    await deployer.admin.switch(f"ratchet.{TASK}.primary", False)
    if by_hand:
        await deployer.admin.switch(FLAG, False)
        await deployer.handlers.tick(TASK)
    else:
        await after(deployer, 7.1, monkeypatch)
    assert deployer.last.reason.startswith("its control has ended: ")
    assert not deployer.admin.flags[FLAG].enabled
    assert deployer.admin.serves(TASK) is None, "the promoted adapter served everyone again"


async def test_the_end_of_a_control_leaves_a_payload_that_a_hand_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await promoted()
    by_hand = Strategy(variant="primary", payload={"adapter": "a0", "previous": None})
    await deployer.admin.set_strategy(f"ratchet.{TASK}.primary", by_hand)
    await after(deployer, 7.1, monkeypatch)
    assert deployer.last.reason.startswith("its control has ended: ")
    assert deployer.admin.serves(TASK) == "a0"


async def test_a_restart_goes_on_with_the_control() -> None:
    deployer = await promoted()
    again = Deployer(deployer.rollouts, deployer.ledger, deployer.admin)
    again.publisher = deployer.publisher
    await see(deployer, range(200), Variant.PRIMARY, 502)
    await again.handlers.tick(TASK)
    assert (await again.rollouts.last_entered(TASK)).stage is Stage.ROLLED_BACK


async def test_a_promotion_that_fails_is_taken_back_also_while_the_tasks_are_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A crash came before the deployer acted on what its guards had counted, and after it the broker was away."""
    monkeypatch.setattr("services.deployer.handlers._READ_SECONDS", 0.0)
    deployer = await promoted()
    await see(deployer, range(200), Variant.PRIMARY, 502)
    again = Deployer(deployer.rollouts, deployer.ledger, deployer.admin)
    again.handlers.tasks = LatestByKey("tasks.changed")
    with pytest.raises(DependencyUnavailable, match="not read to its end yet") as error:
        await again.handlers.tick(TASK)
    assert error.value.way_out == "Is Kafka there? ratchet status"
    assert (again.last.stage, again.admin.serves(TASK)) == (Stage.ROLLED_BACK, None)
