"""Pairs made after a promotion: the adapter before it is replayed, people are asked, and what they say is acted on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from schemas.rollouts import ShadowCompared, Stage
from services.deployer.rollout import CONTROL_TICKETS
from services.deployer.statistics.bounds import interval
from services.deployer.statistics.guards import Guard
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, pair

TASK = "support-desk"
SHADOW = f"ratchet.{TASK}.shadow"


async def promoted(days: float = 7) -> Deployer:
    """A candidate promoted by twenty labels, with a control for so many days."""
    deployer = Deployer(max_open=10)
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, min_canary_users=0, control_days=days))
    await deployer.compare_and_label(range(20), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    return deployer


def fresh(deployer: Deployer, number: int, user: str | None = "") -> ShadowCompared:
    """A pair where the adapter before says refund and the promoted one delivery."""
    after = {"after_promotion": True, "production_adapter": deployer.last.previous_adapter}
    return pair(deployer.last, number, ("refund", "delivery"), user).model_copy(update=after)


async def see(deployer: Deployer, numbers: range, truth: str) -> None:
    for number in numbers:
        earlier = len(deployer.publisher.questions)
        await deployer.compare(fresh(deployer, number))
        for asked in deployer.publisher.questions[earlier:]:
            await deployer.handlers.on_corrections(deliveries([answer(asked, label=truth)]))


async def after(deployer: Deployer, days: float, monkeypatch: pytest.MonkeyPatch) -> None:
    since = (await deployer.rollouts.last_entered(TASK)).stage_since
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: since + timedelta(days=days))
    await deployer.handlers.tick(TASK)


async def test_the_gain_is_told_from_fresh_pairs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await promoted()
    before = deployer.last.evidence
    await see(deployer, range(100, 104), "delivery")
    await deployer.compare(*[
        fresh(deployer, n).model_copy(update={"candidate_answer": fresh(deployer, n).production_answer, "agree": True})
        for n in range(200, 204)
    ])  # fmt: skip
    await after(deployer, 0.1, monkeypatch)
    told = deployer.last.evidence
    assert told.control_labels == 4
    assert (told.control_gain_low, told.control_gain_high) == interval([1.0] * 4, 4)
    assert (told.labels, told.wealth, told.gain_low) == (before.labels, before.wealth, before.gain_low)
    await after(deployer, 7.1, monkeypatch)
    assert deployer.last.reason == "its control has ended: 7 days without harm that guards or labels see"
    assert deployer.last.evidence.control_gain_low == told.control_gain_low


async def test_harm_by_fresh_labels_takes_the_promotion_back_at_once() -> None:
    deployer = await promoted()
    await see(deployer, range(100, 109), "refund")
    assert deployer.last.stage is Stage.PROMOTED, "all guards together may end 5 %, and this is one of five"
    await see(deployer, range(109, 115), "refund")
    assert (deployer.last.stage, deployer.last.moved_by) == (Stage.ROLLED_BACK, "ratchet")
    assert deployer.last.reason.startswith("it is worse by the pairs since its promotion: ")
    assert "0 wins" in deployer.last.reason and "most of it of labels since the promotion" in deployer.last.reason
    assert deployer.admin.serves(TASK) is None
    assert not deployer.admin.flags[SHADOW].enabled


async def test_labels_that_are_pending_take_nothing_back() -> None:
    deployer = await promoted()
    await deployer.compare(*[fresh(deployer, number) for number in range(100, 115)])
    for asked in deployer.publisher.questions[-10:-5]:
        await deployer.handlers.on_corrections(deliveries([answer(asked, label="refund")]))
    ledger = await deployer.ledger.load(deployer.last.rollout_id, fresh=True)
    assert ledger.outcomes.count(None) == 10, "five more are asked as soon as five have an answer"
    assert Guard.LABELS.value not in deployer.last.reason
    assert deployer.last.stage is Stage.PROMOTED


async def test_people_are_asked_about_sixty_fresh_pairs_and_then_the_replays_end_once() -> None:
    deployer = await promoted()
    earlier = len(deployer.publisher.questions)
    assert deployer.admin.flags[SHADOW].enabled, "the adapter before is replayed"
    assert not deployer.admin.flags[f"ratchet.{TASK}.canary"].enabled
    for half in (range(100, 130), range(130, 200)):
        for number in half:
            await see(deployer, range(number, number + 1), "delivery" if number % 2 else "refund")
        asked = len(deployer.publisher.questions) - earlier
        assert asked == min(CONTROL_TICKETS, half.stop - 100)
        await deployer.handlers.tick(TASK)
        assert deployer.admin.flags[SHADOW].enabled is (asked < CONTROL_TICKETS)
    await deployer.admin.switch(SHADOW, True)
    await deployer.handlers.tick(TASK)
    assert deployer.admin.flags[SHADOW].enabled, "a hand on it stays"
    again = Deployer(deployer.rollouts, deployer.ledger, deployer.admin, max_open=10)
    await again.handlers.tick(TASK)
    assert deployer.admin.flags[SHADOW].enabled, "also after a restart, which knew nothing of the first time"


async def test_the_end_of_the_control_ends_the_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await promoted()
    await after(deployer, 7.1, monkeypatch)
    assert not deployer.admin.flags[SHADOW].enabled
    await deployer.compare(fresh(deployer, 100))
    assert (await deployer.ledger.load(deployer.last.rollout_id, fresh=True)).tickets == []


async def test_without_a_control_nothing_is_replayed_after_a_promotion() -> None:
    deployer = await promoted(days=0)
    assert not deployer.admin.flags[SHADOW].enabled
    assert not deployer.last.control


async def test_pairs_of_the_other_time_and_late_answers_to_tickets_that_decided_are_left_out() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(canary_wealth=2, min_canary_users=0, control_days=7))
    await deployer.compare(fresh(deployer, 90))
    await deployer.compare(pair(deployer.last, 91, ("refund", "delivery")))
    (late,) = deployer.publisher.questions
    await deployer.compare_and_label(range(30), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    rollout = deployer.last.rollout_id
    decided = (await deployer.ledger.load(rollout)).outcomes
    await deployer.handlers.on_corrections(deliveries([answer(late, label="refund")]))
    await deployer.compare(pair(deployer.last, 92, ("refund", "delivery")))
    assert (await deployer.ledger.load(rollout)).outcomes == decided
    assert (await deployer.ledger.load(rollout, fresh=True)).tickets == []


async def test_a_user_who_bet_before_the_promotion_bets_once_more_after_it() -> None:
    deployer = await promoted()
    await deployer.compare(*[fresh(deployer, 100 + n, user="user-1") for n in range(3)])
    assert len((await deployer.ledger.load(deployer.last.rollout_id, fresh=True)).tickets) == 1
