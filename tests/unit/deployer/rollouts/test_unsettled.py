"""What becomes of a change that is saved and waits for a replica or for Unleash."""

from __future__ import annotations

from datetime import timedelta

import pytest

from schemas.base import Variant, utc_now
from schemas.rollouts import RolloutChanged, Stage
from schemas.tasks import TaskChanged
from services.deployer.clients import Strategy
from services.deployer.flags import canary_strategy
from services.deployer.operators.commands import CommandRefused
from services.deployer.rollout import Rollout
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, in_shadow, observed, pair, spec

TASK = "support-desk"
FLAGS = {flag: f"ratchet.{TASK}.{flag}" for flag in ("primary", "rollback", "canary", "shadow", "control")}


async def earned(**rollout: object) -> Deployer:
    """A canary that has earned its promotion, which no tick has found yet."""
    deployer = await in_shadow(**rollout)
    await earn(deployer, range(25))
    return deployer


async def earn(deployer: Deployer, wins: range) -> None:
    await deployer.compare_and_label(wins, "delivery")
    await deployer.see_canary(5)
    assert deployer.last.stage is Stage.CANARY


async def tick_in_vain(deployer: Deployer) -> None:
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)


async def fail(deployer: Deployer, users: int = 30) -> None:
    """Let so many users of the canary have a failed request, after what was saved last."""
    later = {"occurred_at": utc_now() + timedelta(seconds=1)}
    failed = [observed(deployer.last, number, Variant.CANARY, 502) for number in range(100, 100 + users)]
    await deployer.handlers.on_observed(deliveries(event.model_copy(update=later) for event in failed))


async def with_a_previous() -> Deployer:
    """Two promotions: b1 serves, and a1 did before it; c1 has earned a third."""
    deployer = await earned()
    await deployer.handlers.tick(TASK)
    await deployer.handlers.on_evaluated(evaluated("b1", against="a1"))
    await earn(deployer, range(100, 125))
    await deployer.handlers.tick(TASK)
    await deployer.handlers.on_evaluated(evaluated("c1", against="b1"))
    await earn(deployer, range(200, 240))
    assert deployer.admin.flags[FLAGS["primary"]].payload == {"adapter": "b1", "previous": "a1"}
    return deployer


async def test_a_promotion_that_is_refused_half_written_gives_everyone_the_primary_back() -> None:
    """The guard ended it in the state, and its flag went on serving it to everyone."""
    deployer = await earned()
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    assert deployer.admin.serves(TASK) == "a1"
    await fail(deployer)
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert deployer.admin.serves(TASK) is None
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("a2", Stage.SHADOW, "")


@pytest.mark.parametrize("flag", ["primary", "canary"])
async def test_a_promotion_that_is_refused_half_written_ends_also_where_its_flag_is_archived_by_then(
    flag: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It waited for the flag to be revived, and everything else of the task with it."""
    deployer = await earned()
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    deployer.admin.crash_at = None
    deployer.admin.archive(FLAGS[flag])
    await fail(deployer)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, await deployer.rollouts.unsettled(TASK)) == (Stage.REJECTED, [])
    is_told = f"{FLAGS['primary']} is archived as it was: before it is turned on again, give it" in caplog.text
    assert is_told is (flag == "primary"), "it would serve the candidate that was refused"


@pytest.mark.parametrize("is_paused", [True, False])
@pytest.mark.parametrize("how", ["a constraint", "another strategy before it"])
async def test_a_promotion_that_is_taken_back_serves_nobody_on_through_what_a_hand_added_to_primary(
    how: str, is_paused: bool
) -> None:
    """As it was not what the promotion had set any more, it was taken for a hand's, with the candidate in it."""
    deployer = await earned()
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    deployer.admin.crash_at = None
    primary = deployer.admin.flags[FLAGS["primary"]]
    (own,) = primary.strategies
    added = ({**own, "constraints": [{"contextName": "region", "operator": "IN", "values": ["eu"]}]},)
    if how != "a constraint":
        other = Strategy(10, variant="primary", payload={"adapter": "a0", "previous": None})
        added = (other.body(FLAGS["primary"]), own)
    deployer.admin._write(FLAGS["primary"], strategies=added)
    if not is_paused:
        await fail(deployer)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is (Stage.CANARY if is_paused else Stage.REJECTED)
    assert deployer.admin.flags[FLAGS["primary"]].payloads == [{"adapter": None, "previous": None}]


@pytest.mark.parametrize("writes", range(3))
async def test_a_refusal_is_finished_after_an_outage_between_any_two_of_its_writes(writes: int) -> None:
    deployer = await earned()
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    await fail(deployer)
    deployer.admin.crash_at = writes
    await tick_in_vain(deployer)
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.REJECTED, None)
    assert not any(deployer.admin.flags[FLAGS[flag]].enabled for flag in ("canary", "shadow"))


async def test_a_refusal_leaves_a_primary_that_a_hand_has_set_meanwhile() -> None:
    deployer = await earned()
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    await deployer.admin.switch(FLAGS["primary"], False)
    await fail(deployer)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert not deployer.admin.flags[FLAGS["primary"]].enabled


async def test_a_champion_whose_control_ends_while_no_replica_proves_it_goes_on_serving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = await earned(control_days=7)
    await deployer.handlers.tick(TASK)
    later = utc_now() + timedelta(days=7.1)
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: later)
    deployer.adapters.refused.add("a1")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter, deployer.last.control) == (Stage.PROMOTED, "a1", False)
    assert (deployer.admin.serves(TASK), deployer.admin.flags[FLAGS["control"]].enabled) == ("a1", False)
    await deployer.handlers.on_evaluated(evaluated("b1", against="a1"))
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("b1", Stage.SHADOW, "")


async def test_a_promotion_that_is_refused_leaves_the_adapter_before_the_primary_as_it_was() -> None:
    deployer = await with_a_previous()
    deployer.adapters.refused.add("c1")
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert (deployer.last.primary_adapter, deployer.last.previous_adapter) == ("b1", "a1")
    (needed,) = await deployer.rollouts.adapters()
    assert (needed.primary, needed.previous) == ("b1", "a1"), "a1 is still proved: rollback would serve it"
    await deployer.handlers.on_evaluated(evaluated("d1", against="b1"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("d1", Stage.SHADOW, "")


async def test_while_a_promotion_waits_the_adapter_that_rollback_would_serve_is_proved_on() -> None:
    deployer = await with_a_previous()
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    (needed,) = await deployer.rollouts.adapters()
    assert {needed.primary, needed.previous, needed.replaced} == {"a1", "b1", "c1"}


HANDS = {
    "primary": "primary is off: the base model serves, by hand",
    "rollback": "rollback is on: the previous adapter serves, by hand",
    "canary": "canary is off, by hand",
    "shadow": "shadow is off, by hand",
}


@pytest.mark.parametrize("flag", HANDS)
async def test_a_hand_on_any_flag_while_a_promotion_waits_for_a_replica_keeps_it_from_being_made(flag: str) -> None:
    deployer = await earned()
    since = (await deployer.rollouts.last_entered(TASK)).stage_since
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    by_hand = not deployer.admin.flags[FLAGS[flag]].enabled
    await deployer.admin.switch(FLAGS[flag], by_hand)
    flags = dict(deployer.admin.flags)
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, HANDS[flag])
    assert (deployer.last.moved_by, deployer.last.primary_adapter) == ("ann in Unleash", None)
    assert (await deployer.rollouts.last_entered(TASK)).stage_since == since, "its time goes on"
    assert deployer.admin.flags == flags, "no flag but the hand's has moved"
    await deployer.admin.switch(FLAGS[flag], not by_hand)
    await deployer.commands.resume(TASK, "ben", "it was a mistake")
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.PROMOTED, "a1")


async def test_a_hand_that_is_taken_back_while_a_promotion_waits_is_seen() -> None:
    deployer = await earned()
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    await deployer.admin.switch(FLAGS["canary"], False)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, "canary is off, by hand")
    await deployer.admin.switch(FLAGS["canary"], True)
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused


@pytest.mark.parametrize("flag", ["primary", "rollback", "shadow"])
async def test_a_hand_on_any_flag_while_a_canary_waits_for_a_replica_leaves_it_in_shadow(flag: str) -> None:
    deployer = await in_shadow()
    deployer.adapters.is_away = True
    await deployer.compare_and_label(range(12), "delivery")
    await deployer.admin.switch(FLAGS[flag], not deployer.admin.flags[FLAGS[flag]].enabled)
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.SHADOW, HANDS[flag])
    assert not deployer.admin.flags[FLAGS["canary"]].enabled


@pytest.mark.parametrize("is_written", [False, True])
async def test_a_hand_while_a_step_of_the_canary_waits_leaves_it_its_share(is_written: bool) -> None:
    deployer = await earned(canary_steps=(5, 25))
    own = deployer.admin.flags[FLAGS["canary"]]
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    if is_written:
        rise = await deployer.rollouts.last_entered(TASK)
        await deployer.admin.set_strategy(FLAGS["canary"], canary_strategy(rise))
    await deployer.admin.switch(FLAGS["primary"], False)
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.canary_percent) == (Stage.CANARY, 5)
    assert (deployer.last.paused, deployer.admin.flags[FLAGS["canary"]]) == (HANDS["primary"], own)


@pytest.mark.parametrize("outage", [None, 0, 1])
async def test_a_promotion_that_is_half_written_is_taken_back_after_a_hand(outage: int | None) -> None:
    deployer = await earned(control_days=7)
    flags = dict(deployer.admin.flags)
    deployer.admin.crash_at = 3  # Of its four writes the last is missing, which turns the control on.
    await tick_in_vain(deployer)
    assert deployer.admin.serves(TASK) == "a1"
    deployer.admin.crash_at = None
    await deployer.admin.switch(FLAGS["rollback"], True)
    if outage is not None:
        deployer.admin.crash_at = outage
        await tick_in_vain(deployer)
        deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, HANDS["rollback"])
    await deployer.admin.switch(FLAGS["rollback"], False)
    assert not deployer.admin.flags[FLAGS["control"]].enabled
    assert {name: deployer.admin.flags[name] for name in flags} == flags


async def test_a_primary_that_was_turned_off_while_a_promotion_was_half_written_stays_off() -> None:
    deployer = await earned()
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    deployer.admin.crash_at = None
    await deployer.admin.switch(FLAGS["primary"], False)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, HANDS["primary"])
    primary = deployer.admin.flags[FLAGS["primary"]]
    assert (primary.enabled, primary.payload) == (False, {"adapter": None, "previous": None})


async def test_a_hand_after_the_last_flag_was_set_is_not_overruled_while_the_broker_is_away() -> None:
    deployer = await earned()
    deployer.publisher.is_away = True
    await tick_in_vain(deployer)
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.admin.switch(FLAGS["primary"], False)
    await tick_in_vain(deployer)
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED, "it was made before the hand"
    assert not deployer.admin.flags[FLAGS["primary"]].enabled


async def test_what_a_promotion_that_was_not_made_would_have_given_away_is_not_debited() -> None:
    deployer = await earned()
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    await deployer.admin.switch(FLAGS["primary"], False)
    await deployer.handlers.tick(TASK)
    assert await deployer.rollouts.promotions(TASK) == []
    await deployer.admin.switch(FLAGS["primary"], True)
    deployer.adapters.is_away = False
    await deployer.commands.resume(TASK, "ben", "it was a mistake")
    (promotion,) = await deployer.rollouts.promotions(TASK)
    assert promotion.at == deployer.last.occurred_at


async def waiting(**rollout: object) -> tuple[Deployer, RolloutChanged]:
    """A candidate whose next move waits for a replica, and its last change that was published."""
    deployer = await earned(**rollout)
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    return deployer, deployer.last


MOVES = [{"canary_steps": (5, 25)}, {}, {"control_days": 7}]
"""Settings by which a step of the canary waits, a promotion, and one with a control."""


@pytest.mark.parametrize("rollout", MOVES)
async def test_people_are_asked_and_harm_ends_a_candidate_while_its_move_waits(rollout: dict[str, object]) -> None:
    deployer, canary = await waiting(**rollout)
    asked = len(deployer.publisher.questions)
    await deployer.compare_and_label_in(canary, range(300, 303), "refund")
    assert len(deployer.publisher.questions) == asked + 3
    assert deployer.last.stage is Stage.CANARY
    await deployer.compare_and_label_in(canary, range(303, 380), "refund")
    assert deployer.last.stage is Stage.REJECTED
    assert deployer.last.reason.startswith("the candidate is worse: wealth against it ")
    assert deployer.admin.serves(TASK, in_canary=True) is None


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_move_that_waits_is_not_made_while_the_labels_as_they_stand_speak_against_it(
    rollout: dict[str, object],
) -> None:
    deployer, canary = await waiting(**rollout)
    flags = dict(deployer.admin.flags)
    await deployer.compare_and_label_in(canary, range(300, 320), "refund")
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.canary_percent, deployer.last.paused) == (Stage.CANARY, 5, "")
    assert deployer.last.reason.startswith("stays in canary, its next move is not made: the labels as they stand are ")
    assert deployer.admin.flags == flags
    await deployer.compare_and_label_in(canary, range(320, 345), "delivery")
    assert (deployer.last.stage, deployer.last.canary_percent) != (Stage.CANARY, 5), "they speak for it again"


async def test_a_promotion_that_is_half_written_is_taken_back_where_labels_speak_against_it() -> None:
    deployer = await earned()
    canary, flags = deployer.last, dict(deployer.admin.flags)
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.compare_and_label_in(canary, range(300, 320), "refund")
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.flags) == (Stage.CANARY, flags)


async def test_a_canary_that_waits_is_not_opened_once_its_labels_were_changed() -> None:
    deployer = await in_shadow()
    deployer.adapters.is_away = True
    await deployer.compare_and_label(range(10), "delivery")
    assert (await deployer.rollouts.last_entered(TASK)).stage is Stage.CANARY
    for asked in deployer.publisher.questions[:3]:
        later = answer(asked, label="refund").model_copy(update={"occurred_at": utc_now() + timedelta(seconds=1)})
        await deployer.handlers.on_corrections(deliveries([later]))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.flags[FLAGS["canary"]].enabled) == (Stage.SHADOW, False)


async def test_what_people_are_asked_about_a_promotion_that_waits_outlives_the_retention() -> None:
    """Its tickets lost their texts: no answer counted any more, and it was promoted whatever people said by then."""
    deployer = await earned()
    canary = deployer.last
    deployer.adapters.is_away = True
    await tick_in_vain(deployer)
    await deployer.compare(*(pair(canary, number, ("refund", "delivery")) for number in range(300, 340)))
    await deployer.handlers.expire(TASK, utc_now())
    for asked in deployer.publisher.questions[25:]:
        await deployer.handlers.on_corrections(deliveries([answer(asked, label="refund")]))
    assert (await deployer.ledger.load(canary.rollout_id)).outcomes == [1.0] * 25 + [-1.0] * 40
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.CANARY, None)
    assert "its next move is not made: the labels as they stand" in deployer.last.reason


async def test_what_people_are_asked_about_a_control_outlives_the_retention_and_what_decided_does_not() -> None:
    deployer = await earned(control_days=7)
    await deployer.handlers.tick(TASK)
    fresh = pair(deployer.last, 300, ("refund", "delivery")).model_copy(update={"after_promotion": True})
    await deployer.compare(fresh)
    await deployer.handlers.expire(TASK, utc_now())
    rows = deployer.ledger.pairs.values()
    assert [row["event"].pair_id for row in rows if "expired" not in row] == ["pair-300"]
    await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[-1], label="delivery")]))
    ledger = await deployer.ledger.load(deployer.last.rollout_id, fresh=True)
    assert ledger.outcomes == [1.0]


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_candidate_whose_move_waits_for_too_long_expires(
    rollout: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployer, canary = await waiting(**rollout)
    for days in (27.9, 28.1):
        later = canary.occurred_at + timedelta(days=days)
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda later=later: later)
        if days < 28:
            await tick_in_vain(deployer)
            assert deployer.last == canary
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert deployer.last.reason.startswith("28 days in canary, and its next move still waits: vLLM is away, after 25 ")
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_a_move_that_is_due_when_the_time_is_over_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await earned()
    later = deployer.last.occurred_at + timedelta(days=29)
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: later)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_person_pauses_a_candidate_while_its_move_waits(rollout: dict[str, object]) -> None:
    deployer, _ = await waiting(**rollout)
    flags = dict(deployer.admin.flags)
    await deployer.commands.pause(TASK, "ben", "a holiday")
    assert (deployer.last.stage, deployer.last.canary_percent, deployer.last.paused) == (Stage.CANARY, 5, "a holiday")
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.paused, deployer.admin.flags) == ("a holiday", flags)
    await deployer.commands.resume(TASK, "ben", "back")
    assert (deployer.last.stage, deployer.last.canary_percent) != (Stage.CANARY, 5)


@pytest.mark.parametrize("rollout", [{}, {"control_days": 7}])
async def test_a_promotion_tells_that_what_people_were_asked_while_it_waited_is_of_the_comparison_before(
    rollout: dict[str, object],
) -> None:
    deployer, canary = await waiting(**rollout)
    await deployer.compare(pair(canary, 300, ("refund", "delivery")))
    asked = deployer.publisher.questions[-1]
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert deployer.last.promoted_at is not None
    assert deployer.last.occurred_at < asked.occurred_at < deployer.last.promoted_at
    assert canary.promoted_at is None


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_person_ends_a_candidate_while_its_move_waits(rollout: dict[str, object]) -> None:
    deployer, _ = await waiting(**rollout)
    ended = await deployer.commands.rollback(TASK, "ben", "bad tone")
    assert (ended.stage, ended.reason, ended.moved_by) == (Stage.REJECTED, "ended: bad tone", "ben")
    assert deployer.last.stage is Stage.REJECTED
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_a_pause_while_unleash_is_away_takes_back_what_a_promotion_has_written_later() -> None:
    deployer = await earned()
    flags = dict(deployer.admin.flags)
    deployer.admin.crash_at = 1
    await tick_in_vain(deployer)
    assert deployer.admin.serves(TASK) == "a1"
    with pytest.raises(DependencyUnavailable):
        await deployer.commands.pause(TASK, "ben", "a holiday")
    with pytest.raises(CommandRefused, match="paused already: a holiday"):
        await deployer.commands.pause(TASK, "ben", "a holiday")
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, "a holiday")
    assert deployer.admin.flags == flags


async def test_a_pause_of_a_candidate_that_could_not_enter_yet_lets_it_enter_paused() -> None:
    deployer = Deployer()
    deployer.admin.crash_at = 1
    await deployer.handlers.on_evaluated(evaluated())
    with pytest.raises(DependencyUnavailable):
        await deployer.commands.pause(TASK, "ben", "a holiday")
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.SHADOW, "a holiday")
    assert deployer.admin.flags[FLAGS["shadow"]].enabled


async def test_a_change_of_its_task_ends_a_candidate_while_its_promotion_waits() -> None:
    deployer, _ = await waiting()
    changed = spec().model_copy(update={"system_prompt": "Another one."})
    await deployer.handlers.tasks.put(TASK, TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.INCONCLUSIVE


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_newer_candidate_that_comes_while_a_move_waits_loses_nothing_of_it(rollout: dict[str, object]) -> None:
    deployer, _ = await waiting(**rollout)
    await deployer.handlers.on_evaluated(evaluated("a2", **rollout))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    if "canary_steps" in rollout:
        assert (deployer.last.candidate_adapter, deployer.last.canary_percent) == ("a1", 25)
        assert deployer.admin.flags[FLAGS["canary"]].strategies[0]["parameters"]["rollout"] == "25"
    else:
        assert ("a1", Stage.PROMOTED) in [(c.candidate_adapter, c.stage) for c in deployer.publisher.changes]
        assert (deployer.admin.serves(TASK), deployer.last.primary_adapter) == ("a1", "a1")


@pytest.mark.parametrize("rollout", MOVES)
@pytest.mark.parametrize("passed", [True, False])
async def test_while_a_move_waits_the_candidate_that_is_compared_stays_the_tasks_last_word(
    rollout: dict[str, object], passed: bool
) -> None:
    """Shadow reads one rollout a task, the last: with a newer one that is queued it made no more pairs."""
    deployer, canary = await waiting(**rollout)
    await deployer.handlers.on_evaluated(evaluated("a2", passed=passed, **rollout))
    assert deployer.last == canary
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    told = [(change.candidate_adapter, change.stage) for change in deployer.publisher.changes]
    assert ("a2", Stage.QUEUED if passed else Stage.REJECTED) in told, "told as soon as the move is made"
    moved = [c for c in deployer.publisher.changes if c.candidate_adapter == "a1"][-1]
    assert (moved.stage, moved.canary_percent) != (Stage.CANARY, 5)
    assert deployer.last == moved or (passed and moved.stage is Stage.PROMOTED and not moved.control)


async def paused_by_a_hand() -> Deployer:
    """A candidate that is paused since somebody turned its canary off."""
    deployer = await earned()
    await deployer.admin.switch(FLAGS["canary"], False)
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused == "canary is off, by hand"
    return deployer


async def resume_in_vain(deployer: Deployer) -> None:
    with pytest.raises(DependencyUnavailable):
        await deployer.commands.resume(TASK, "ben", "it was a mistake")


async def test_nobody_resumes_while_a_replica_does_not_prove_the_candidate() -> None:
    """It was done when the replica came back, days later, whatever hands had done to the flags by then."""
    deployer = await paused_by_a_hand()
    deployer.adapters.is_away = True
    await resume_in_vain(deployer)
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused) == (Stage.CANARY, "canary is off, by hand")
    assert not deployer.admin.flags[FLAGS["canary"]].enabled
    await deployer.commands.resume(TASK, "ben", "it was a mistake")
    assert deployer.last.stage is Stage.PROMOTED


async def test_a_pause_of_a_resumption_whose_flags_are_not_set_leaves_them_as_they_are() -> None:
    deployer = await paused_by_a_hand()
    deployer.admin.crash_at = 0
    await resume_in_vain(deployer)
    await deployer.commands.pause(TASK, "cleo", "wait")
    deployer.admin.crash_at = None
    flags = dict(deployer.admin.flags)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.paused, deployer.last.moved_by) == (Stage.CANARY, "wait", "cleo")
    assert deployer.admin.flags == flags, "the canary came on though it is paused"
    await deployer.commands.resume(TASK, "ben", "it was a mistake")
    assert deployer.last.stage is Stage.PROMOTED


@pytest.mark.parametrize("flag", ["primary", "rollback"])
async def test_a_hand_on_what_serves_everybody_while_a_resumption_is_not_settled_pauses_again(flag: str) -> None:
    deployer = await paused_by_a_hand()
    deployer.admin.crash_at = 0
    await resume_in_vain(deployer)
    deployer.admin.crash_at = None
    await deployer.admin.switch(FLAGS[flag], not deployer.admin.flags[FLAGS[flag]].enabled)
    flags = dict(deployer.admin.flags)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.paused, deployer.last.moved_by) == (HANDS[flag], "ann in Unleash")
    assert deployer.admin.flags == flags, "the canary came on once more before the hand was seen"


@pytest.mark.parametrize("flag", ["canary", "shadow"])
@pytest.mark.parametrize("how", ["share", "off", "off and on"])
async def test_a_hand_on_canary_or_shadow_while_a_resumption_is_not_made_pauses_again(flag: str, how: str) -> None:
    """It was overwritten when the resumption was made."""
    deployer = await paused_by_a_hand()
    await deployer.admin.switch(FLAGS["canary"], True)  # Whoever resumes has put it back before.
    await deployer.admin.set_strategy(FLAGS["shadow"], Strategy(percent=1))
    deployer.admin.crash_at = 0
    await resume_in_vain(deployer)
    deployer.admin.crash_at = None
    if how == "share":
        await deployer.admin.set_strategy(FLAGS[flag], Strategy(percent=3))
    else:
        await deployer.admin.switch(FLAGS[flag], False)
    if how == "off and on":
        await deployer.admin.switch(FLAGS[flag], True)
    flags = dict(deployer.admin.flags)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    assert deployer.last.paused.startswith(f"{flag} ") and deployer.last.paused.endswith(", by hand")
    assert deployer.last.moved_by == "ann in Unleash"
    assert deployer.admin.flags == flags, "the hand's share stays, and nobody is served again against it"
    await deployer.commands.resume(TASK, "ben", "it was a mistake")
    assert deployer.last.stage is Stage.PROMOTED


async def crash_once_written(deployer: Deployer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die between the last flag of a change and the record that all are set."""

    async def die(rollout: Rollout) -> None:
        raise DependencyUnavailable("it died")

    with monkeypatch.context() as patched:
        patched.setattr(deployer.rollouts, "set_written", die)
        with pytest.raises(DependencyUnavailable, match="it died"):
            await deployer.handlers.tick(TASK)


def restarted(deployer: Deployer) -> Deployer:
    return Deployer(deployer.rollouts, deployer.ledger, deployer.admin)


async def test_a_canary_that_was_turned_off_after_a_crash_that_followed_its_last_flag_stays_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The restart took the hand for a flag that was not set yet, and the canary came on again."""
    deployer = await in_shadow()
    deployer.adapters.is_away = True
    await deployer.compare_and_label(range(12), "delivery")
    deployer.adapters.is_away = False
    await crash_once_written(deployer, monkeypatch)
    assert deployer.admin.serves(TASK, in_canary=True) == "a1"
    await deployer.admin.switch(FLAGS["canary"], False)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused) == (Stage.SHADOW, "canary is off, by hand")
    assert again.last.moved_by == "ann in Unleash"
    assert again.admin.serves(TASK, in_canary=True) is None
    await again.commands.resume(TASK, "ben", "it was a mistake")
    assert (again.last.stage, again.admin.serves(TASK, in_canary=True)) == (Stage.CANARY, "a1")


@pytest.mark.parametrize("flag", ["canary", "shadow"])
async def test_a_flag_that_was_turned_off_after_a_crash_that_followed_a_resumption_stays_off(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployer = await paused_by_a_hand()
    deployer.admin.crash_at = 0
    await resume_in_vain(deployer)
    deployer.admin.crash_at = None
    await crash_once_written(deployer, monkeypatch)
    await deployer.admin.switch(FLAGS[flag], False)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.paused, again.last.moved_by) == (HANDS[flag], "ann in Unleash")
    assert not again.admin.flags[FLAGS[flag]].enabled


async def crash_once_entered(deployer: Deployer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process die between the last flag of a candidate's entry into shadow and the record that all are set."""

    async def die(rollout: Rollout) -> None:
        raise DependencyUnavailable("it died")

    with monkeypatch.context() as patched:
        patched.setattr(deployer.rollouts, "set_written", die)
        await deployer.handlers.on_evaluated(evaluated())
    assert deployer.admin.flags[FLAGS["shadow"]].enabled


@pytest.mark.parametrize("flag", ["primary", "rollback", "shadow"])
async def test_a_flag_that_was_turned_after_a_crash_that_followed_an_entry_stays_so(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The restart took the hand for a flag that was not set yet, and shadow came on again."""
    deployer = Deployer()
    await crash_once_entered(deployer, monkeypatch)
    await deployer.admin.switch(FLAGS[flag], not deployer.admin.flags[FLAGS[flag]].enabled)
    flags = dict(deployer.admin.flags)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused, again.last.moved_by) == (
        Stage.SHADOW, HANDS[flag], "ann in Unleash",
    )  # fmt: skip
    assert again.admin.flags == flags
    if flag == "shadow":
        await again.commands.resume(TASK, "ben", "it was a mistake")
        assert (again.last.paused, again.admin.flags[FLAGS["shadow"]].enabled) == ("", True)


async def test_a_canary_that_was_turned_on_while_a_candidate_enters_pauses_it_and_goes_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = Deployer()
    await crash_once_entered(deployer, monkeypatch)
    await deployer.admin.switch(FLAGS["canary"], True)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused) == (Stage.SHADOW, "canary is on, by hand")
    assert again.admin.serves(TASK, in_canary=True) is None


async def test_a_share_that_a_hand_gave_shadow_while_a_candidate_enters_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = Deployer()
    await crash_once_entered(deployer, monkeypatch)
    await deployer.admin.set_strategy(FLAGS["shadow"], Strategy(percent=1))
    again = restarted(deployer)
    for _ in range(2):
        await again.handlers.tick(TASK)
    assert again.last.paused.startswith("shadow has another share") and again.last.paused.endswith(", by hand")
    assert again.admin.flags[FLAGS["shadow"]].percent == 1


@pytest.mark.parametrize("is_deleted", [False, True])
async def test_a_flag_that_is_gone_after_a_crash_that_followed_an_entry_stays_so(
    is_deleted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tick waited for it; one that was deleted was made again."""
    deployer = Deployer()
    await crash_once_entered(deployer, monkeypatch)
    deployer.admin.archive(FLAGS["shadow"], is_deleted=is_deleted)
    flags = dict(deployer.admin.flags)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert again.last.paused == f"shadow {'was deleted' if is_deleted else 'is archived'}, by hand"
    assert again.admin.flags == flags


@pytest.mark.parametrize("writes", range(5))
async def test_an_entry_that_crashed_between_any_two_flags_is_no_hand_after_it(writes: int) -> None:
    deployer = Deployer()
    deployer.admin.crash_at = writes
    await deployer.handlers.on_evaluated(evaluated())
    deployer.admin.crash_at = None
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused) == (Stage.SHADOW, "")
    assert {name for name, flag in again.admin.flags.items() if flag.enabled} == {FLAGS["primary"], FLAGS["shadow"]}


@pytest.mark.parametrize("writes", range(4))
async def test_an_entry_after_a_rollback_that_crashed_between_any_two_flags_is_no_hand_after_it(writes: int) -> None:
    deployer = await earned()
    await deployer.handlers.tick(TASK)
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    deployer.admin.crash_at = writes
    await deployer.handlers.on_evaluated(evaluated("b1"))
    deployer.admin.crash_at = None
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.candidate_adapter, again.last.stage, again.last.paused) == ("b1", Stage.SHADOW, "")
    assert (again.admin.serves(TASK), again.admin.flags[FLAGS["rollback"]].enabled) == (None, False)


async def test_a_canary_that_was_turned_off_while_the_undoing_of_a_promotion_is_half_written_stays_off() -> None:
    deployer = await earned()
    canary = deployer.last
    deployer.admin.crash_at = 2  # Primary and canary are as the promotion wants them.
    await tick_in_vain(deployer)
    assert not deployer.admin.flags[FLAGS["canary"]].enabled
    await deployer.compare_and_label_in(canary, range(300, 320), "refund")
    deployer.admin.crash_at = 1  # The canary is on again, and primary not restored yet.
    await tick_in_vain(deployer)
    deployer.admin.crash_at = None
    assert deployer.admin.serves(TASK, in_canary=True) == "a1"
    await deployer.admin.switch(FLAGS["canary"], False)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused) == (Stage.CANARY, HANDS["canary"])
    assert not again.admin.flags[FLAGS["canary"]].enabled


@pytest.mark.parametrize("rollout", MOVES)
async def test_a_move_whose_flags_were_all_set_before_a_crash_is_no_hand_after_it(
    rollout: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    deployer = await earned(**rollout)
    await crash_once_written(deployer, monkeypatch)
    flags = dict(deployer.admin.flags)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.paused, again.admin.flags) == ("", flags)
    assert (again.last.stage, again.last.canary_percent) != (Stage.CANARY, 5)


@pytest.mark.parametrize("log", ["away", "empty, while Unleash's database is away", "by time"])
async def test_whatever_unleashs_log_says_is_newest_what_was_before_a_move_is_no_hand_on_it(
    log: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployer = await earned()

    async def newest(limit: int) -> list[tuple[int, str]]:
        if log == "away":
            raise DependencyUnavailable("the log is away")
        first, second, *others = deployer.admin.log
        return [] if log.startswith("empty") else [second, first, *others][:limit]  # The clock's order.

    monkeypatch.setattr(deployer.admin, "newest_changes", newest)
    await crash_once_written(deployer, monkeypatch)
    again = restarted(deployer)
    await again.handlers.tick(TASK)
    assert (again.last.stage, again.last.paused) == (Stage.PROMOTED, "")


async def test_a_resumption_that_a_crash_interrupts_is_finished_later() -> None:
    deployer = await paused_by_a_hand()
    deployer.admin.crash_at = 0
    await resume_in_vain(deployer)
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert "resumed: it was a mistake" in [move.reason for move in deployer.rollouts.moves]
