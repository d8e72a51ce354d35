"""Harm is counted, and ends a candidate, while a change of it or its event cannot be made: guards wait for nothing."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from schemas.base import Variant, utc_now
from schemas.rollouts import Stage
from services.deployer.clients import FlagState
from services.deployer.flags import canary_strategy
from services.deployer.rollout import Rollout
from shared.errors import DependencyUnavailable
from shared.kafka.latest_by_key import LatestByKey
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, in_canary, in_shadow, observed, pair

TASK = "support-desk"
CANARY = f"ratchet.{TASK}.canary"
FAILS = "the canary fails too often: "


async def tick_in_vain(deployer: Deployer) -> None:
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)


async def fail(deployer: Deployer, users: int = 30, variant: Variant = Variant.CANARY) -> None:
    """Let so many users have a failed request that the candidate should have answered."""
    rollout = await deployer.rollouts.last_entered(TASK)
    later = {"occurred_at": utc_now() + timedelta(seconds=1), "adapter": rollout.candidate}
    failed = [observed(deployer.last, number, variant, 502) for number in range(100, 100 + users)]
    await deployer.handlers.on_observed(deliveries(event.model_copy(update=later) for event in failed))


async def last(deployer: Deployer) -> Rollout:
    found = await deployer.rollouts.last_entered(TASK)
    assert found is not None
    return found


async def test_a_canary_that_fails_is_ended_though_the_event_of_its_beginning_cannot_be_published() -> None:
    """It served its share of users for as long as the topic took no event, and no guard was looked at."""
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(12)])
    deployer.publisher.is_away = True
    await deployer.handlers.on_corrections(
        deliveries(answer(asked, label="delivery") for asked in deployer.publisher.questions)
    )
    assert deployer.admin.serves(TASK, in_canary=True) == "a1"
    await fail(deployer)
    await tick_in_vain(deployer)
    assert ((await last(deployer)).stage, deployer.admin.serves(TASK, in_canary=True)) == (Stage.REJECTED, None)
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.reason.startswith(FAILS)) == (Stage.REJECTED, True)


async def test_labels_that_speak_against_a_canary_end_it_though_the_event_of_a_newer_candidate_waits() -> None:
    deployer = await in_canary()
    asked = len(deployer.publisher.questions)
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(100, 140)])
    deployer.publisher.is_away = True
    await deployer.handlers.on_evaluated(evaluated("a2"))
    losses = [answer(question, label="refund") for question in deployer.publisher.questions[asked:]]
    await deployer.handlers.on_corrections(deliveries(losses))
    rollout = await last(deployer)
    assert (rollout.stage, deployer.admin.serves(TASK, in_canary=True)) == (Stage.REJECTED, None)
    assert rollout.reason.startswith("the candidate is worse: wealth against it ")


async def test_failures_count_at_the_share_that_a_hand_gave_the_canary_also_while_an_event_waits() -> None:
    deployer = await in_canary()
    deployer.publisher.is_away = True
    await deployer.handlers.on_evaluated(evaluated("a2"))
    share = canary_strategy(replace(await last(deployer), canary_percent=50))
    await deployer.admin.set_strategy(CANARY, share)
    await tick_in_vain(deployer)
    assert (await last(deployer)).counted_percent == 50
    await fail(deployer, 4)
    await tick_in_vain(deployer)
    assert (await last(deployer)).stage is Stage.CANARY, "at 5 % they would have ended it"
    await fail(deployer, 40)
    await tick_in_vain(deployer)
    assert (await last(deployer)).stage is Stage.REJECTED


async def with_half_made_canary(monkeypatch: pytest.MonkeyPatch) -> Deployer:
    """A deployer that died when it had set the flags of a canary, and not stored that they are."""
    deployer = await in_shadow()

    async def die(rollout: Rollout) -> None:
        raise DependencyUnavailable("it died")

    with monkeypatch.context() as patched:
        patched.setattr(deployer.rollouts, "set_written", die)
        await deployer.compare_and_label(range(12), "delivery")
    return deployer


async def test_a_canary_that_is_not_taken_back_yet_is_guarded_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its stage it was in shadow again, so its failures were no canary's, while its flag still served it."""
    deployer = await with_half_made_canary(monkeypatch)
    deployer.admin.crash_at = 0
    with pytest.raises(DependencyUnavailable, match="Unleash is away"):
        await deployer.commands.pause(TASK, "cleo", "wait")
    rollout = await last(deployer)
    assert (rollout.stage, rollout.paused, deployer.admin.flags[CANARY].enabled) == (Stage.SHADOW, "wait", True)
    await fail(deployer)
    await tick_in_vain(deployer)
    rollout = await last(deployer)
    assert (rollout.stage, rollout.reason.startswith(FAILS)) == (Stage.REJECTED, True)
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK, in_canary=True)) == (Stage.REJECTED, None)


async def test_a_canary_that_is_half_made_is_ended_also_while_the_tasks_are_not_read_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = await with_half_made_canary(monkeypatch)
    await fail(deployer)
    again = Deployer(deployer.rollouts, deployer.ledger, deployer.admin)
    again.handlers.tasks = LatestByKey("tasks.changed")
    await tick_in_vain(again)
    assert (again.last.stage, again.last.reason.startswith(FAILS)) == (Stage.REJECTED, True)
    assert again.admin.serves(TASK, in_canary=True) is None


@pytest.mark.parametrize("waits", ["its own event", "the event of a newer candidate"])
@pytest.mark.parametrize("are_tasks_read", [True, False])
async def test_a_promotion_that_fails_is_taken_back_though_an_event_cannot_be_published(
    waits: str, are_tasks_read: bool
) -> None:
    """The promoted adapter failed everyone until the topic took events again."""
    deployer = await in_canary(25, control_days=7)
    await deployer.see_canary(5)
    deployer.publisher.is_away = waits == "its own event"
    if deployer.publisher.is_away:
        await tick_in_vain(deployer)
    else:
        await deployer.handlers.tick(TASK)
        deployer.publisher.is_away = True
        await deployer.handlers.on_evaluated(evaluated("a2"))
    assert deployer.admin.serves(TASK) == "a1"
    await fail(deployer, 200, Variant.PRIMARY)
    if not are_tasks_read:
        deployer.handlers.tasks = LatestByKey("tasks.changed")
    await tick_in_vain(deployer)
    assert ((await last(deployer)).stage, deployer.admin.serves(TASK)) == (Stage.ROLLED_BACK, None)


async def test_people_are_asked_on_while_a_move_is_not_decided_since_no_flag_can_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = await in_shadow()

    async def read(flag: str) -> FlagState | None:
        raise DependencyUnavailable("Unleash is away")

    monkeypatch.setattr(deployer.admin, "read", read)
    await deployer.compare_and_label(range(10), "delivery")
    assert (await last(deployer)).stage is Stage.SHADOW
    asked = len(deployer.publisher.questions)
    await deployer.compare(pair(deployer.last, 50, ("refund", "delivery")))
    assert len(deployer.publisher.questions) == asked + 1
