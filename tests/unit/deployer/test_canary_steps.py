"""A canary's steps: what each rise needs, what holds it back, and guards whose null follows the share."""

from __future__ import annotations

from datetime import timedelta
from fractions import Fraction
from itertools import pairwise, product

import numpy as np
import pytest
from pydantic import ValidationError

from schemas.base import Variant, utc_now
from schemas.rollouts import Stage
from schemas.task_settings import RolloutSettings
from services.deployer.clients import Strategy
from services.deployer.statistics.betting import canary_guard
from services.deployer.statistics.canary import Arms, CanaryCounts, canary_failure
from services.deployer.statistics.guards import Guard
from shared.errors import DependencyUnavailable
from tests.unit.deployer import fakes
from tests.unit.deployer.canaries import feedback, see
from tests.unit.deployer.fakes import Deployer, deliveries, observed

TASK = "support-desk"
STEPS = {"canary_steps": (5, 25, 50)}


async def in_canary(wins: int = 25, **rollout: object) -> Deployer:
    return await fakes.in_canary(wins, **{**STEPS, **rollout})


async def serve(deployer: Deployer, users: int) -> None:
    """The canary serves so many users, later than its last move."""
    await see(deployer, range(users), Variant.CANARY)
    await deployer.handlers.tick(TASK)


def share(deployer: Deployer) -> tuple[Stage, int, str]:
    """The candidate's stage, its share, and that of the flag."""
    (strategy,) = deployer.admin.flags[f"ratchet.{TASK}.canary"].strategies
    return deployer.last.stage, deployer.last.canary_percent, strategy["parameters"]["rollout"]


async def test_a_canary_rises_step_by_step_once_each_has_served_its_users() -> None:
    deployer = await in_canary()
    assert share(deployer) == (Stage.CANARY, 5, "5")
    for following in (25, 50):
        await serve(deployer, 4)
        assert share(deployer)[1] < following, "four users are not five"
        await serve(deployer, 5)
        assert share(deployer) == (Stage.CANARY, following, str(following))
        assert f"5 users or more at {deployer.publisher.changes[-2].canary_percent} %: {following} % of users" in (
            deployer.last.reason
        )
    await serve(deployer, 5)
    assert deployer.last.stage is Stage.PROMOTED
    assert "5 users or more at 50 %: everyone" in deployer.last.reason
    moves = await deployer.rollouts.history(TASK, 10)
    shown = ["promoted", "canary of 50 %", "canary of 25 %", "canary of 5 %", "shadow", "queued"]
    assert [move.stage_shown for move in moves] == shown


async def test_each_canary_is_sticky_by_user_and_another_draw_of_users_than_the_one_before() -> None:
    deployer, draws = Deployer(), []
    for candidate in ("a1", "b1"):
        await deployer.handlers.on_evaluated(fakes.evaluated(candidate))
        (strategy,) = deployer.admin.flags[f"ratchet.{TASK}.canary"].strategies
        draws.append(strategy["parameters"])
        await deployer.commands.rollback(TASK, "ben", "the next one")
    assert [draw["stickiness"] for draw in draws] == ["userId", "userId"]
    assert draws[0]["groupId"] != draws[1]["groupId"], "else the same people are always the first to meet a candidate"


async def test_no_step_but_the_first_is_taken_before_the_proof() -> None:
    deployer = await in_canary(wins=12)
    assert 20 <= deployer.last.evidence.wealth < 1 / deployer.last.evidence.alpha
    await serve(deployer, 30)
    assert share(deployer) == (Stage.CANARY, 5, "5")
    await deployer.compare_and_label(range(12, 25), "delivery")
    assert share(deployer) == (Stage.CANARY, 25, "25")


async def test_users_of_an_earlier_step_and_one_user_again_and_again_do_not_raise_the_next() -> None:
    deployer = await in_canary()
    early = deliveries([observed(deployer.last, number, Variant.CANARY) for number in range(20, 40)])
    await serve(deployer, 5)
    assert share(deployer)[1] == 25
    await deployer.handlers.on_observed(early)  # Read late: it was served at 5 %.
    again = [observed(deployer.last, 3, Variant.CANARY) for _ in range(30)]
    await deployer.handlers.on_observed(deliveries(again))
    await deployer.handlers.tick(TASK)
    assert share(deployer)[1] == 25
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert ledger.canary.users == 1


async def test_labels_that_speak_against_it_hold_back_the_next_step() -> None:
    deployer = await in_canary()
    await deployer.compare_and_label(range(25, 39), "refund")
    await serve(deployer, 30)
    assert share(deployer) == (Stage.CANARY, 5, "5"), "proven once, and wealth as it stands is below 20"
    await deployer.compare_and_label(range(39, 52), "delivery")
    assert share(deployer)[1] == 25


async def test_a_pause_holds_back_every_step_and_an_approval_the_last_alone() -> None:
    deployer = await in_canary(approval=True)
    await deployer.commands.pause(TASK, "ann", "a release")
    await serve(deployer, 30)
    assert share(deployer)[1] == 5
    await deployer.commands.resume(TASK, "ann", "done")
    assert share(deployer)[1] == 25
    for _ in range(3):
        await serve(deployer, 30)
    assert share(deployer) == (Stage.CANARY, 50, "50")
    await deployer.commands.promote(TASK, "ann", "looks good")
    assert deployer.last.stage is Stage.PROMOTED


async def test_a_share_that_a_hand_changed_after_a_rise_pauses_it() -> None:
    deployer = await in_canary()
    await serve(deployer, 5)
    assert deployer.last.paused == ""
    flag = f"ratchet.{TASK}.canary"
    (strategy,) = deployer.admin.flags[flag].strategies
    changed = {**strategy, "parameters": {**strategy["parameters"], "rollout": "5"}}
    deployer.admin._write(flag, strategies=(changed,))
    await deployer.handlers.tick(TASK)
    assert deployer.last.paused == "canary has another share than 25 %: 5 %, by hand"


def by_hand(deployer: Deployer, percent: int, stickiness: str = "userId") -> None:
    """Give the canary's flag another share."""
    flag = f"ratchet.{TASK}.canary"
    (strategy,) = deployer.admin.flags[flag].strategies
    parameters = {**strategy["parameters"], "rollout": str(percent), "stickiness": stickiness}
    deployer.admin._write(flag, strategies=({**strategy, "parameters": parameters},))


async def fail(deployer: Deployer, canary: range, others: range = range(0), minutes: float = 1.0) -> None:
    """One failed request of each user, some minutes later."""
    later = {"occurred_at": utc_now() + timedelta(minutes=minutes)}
    events = [observed(deployer.last, number, Variant.CANARY, 502) for number in canary]
    events += [observed(deployer.last, number, Variant.BASE, 502) for number in others]
    await deployer.handlers.on_observed(deliveries(event.model_copy(update=later) for event in events))
    await deployer.handlers.tick(TASK)


async def errors(deployer: Deployer) -> list[Arms]:
    return list((await deployer.ledger.load(deployer.last.rollout_id)).canary.arms.get(Guard.ERRORS, ()))


@pytest.mark.parametrize("paused_before", [True, False])
async def test_failures_count_at_the_share_that_a_hand_gave_the_canary(paused_before: bool) -> None:
    """Counted at 5 %, six of twelve failures in one half of all users ended a healthy canary."""
    deployer = await in_canary(wins=12)
    if paused_before:
        await deployer.commands.pause(TASK, "ann", "a release")
    await fail(deployer, range(100, 101), range(200, 201))
    by_hand(deployer, 50)
    await deployer.handlers.tick(TASK)
    await fail(deployer, range(6), range(50, 56))
    assert deployer.last.stage is Stage.CANARY
    assert deployer.last.paused
    assert await errors(deployer) == [Arms(5, 1, 2), Arms(50, 6, 12)]
    await fail(deployer, range(300, 340))
    assert deployer.last.stage is Stage.REJECTED, "one that fails is ended at that share as well"
    assert "47 of the 54 users with a failed request were in it, which has 50 % of users" in deployer.last.reason


async def test_after_a_resumption_failures_count_at_the_steps_share_again_and_late_ones_not_at_all() -> None:
    deployer = await in_canary(wins=12)
    by_hand(deployer, 50)
    await deployer.handlers.tick(TASK)
    await deployer.commands.resume(TASK, "ann", "a mistake")
    assert share(deployer) == (Stage.CANARY, 5, "5")
    await fail(deployer, range(6), range(50, 56), minutes=0)
    assert await errors(deployer) == [], "it is not known at which share they were served"
    await fail(deployer, range(2), range(50, 52))
    assert await errors(deployer) == [Arms(5, 2, 4)]


@pytest.mark.parametrize("hand", ["off", "by session", "rollback", "none"])
async def test_while_the_canarys_share_is_not_known_no_failure_counts_in_either_arm(hand: str) -> None:
    deployer = await in_canary(wins=12)
    if hand == "off":
        await deployer.admin.switch(f"ratchet.{TASK}.canary", False)
    elif hand == "rollback":
        await deployer.admin.switch(f"ratchet.{TASK}.rollback", True)
    else:
        by_hand(deployer, 0 if hand == "none" else 50, "sessionId" if hand == "by session" else "userId")
    await deployer.handlers.tick(TASK)
    await fail(deployer, range(20), range(50, 70))
    assert (deployer.last.stage, await errors(deployer)) == (Stage.CANARY, [])
    await deployer.admin.switch(f"ratchet.{TASK}.rollback", False)
    await deployer.commands.resume(TASK, "ann", "a mistake")
    await fail(deployer, range(70, 90))
    assert deployer.last.stage is Stage.REJECTED, "afterwards it is guarded as before"


async def test_a_hand_that_lowers_the_share_holds_no_earlier_failure_against_it() -> None:
    deployer = await in_canary(wins=12)
    by_hand(deployer, 2)
    await deployer.handlers.tick(TASK)
    await fail(deployer, range(2), range(50, 52), minutes=0)
    await fail(deployer, range(2, 3), range(52, 60))
    assert await errors(deployer) == [Arms(2, 1, 9)]


async def test_failures_of_everyone_count_nowhere_where_a_hand_serves_the_candidate_to_all() -> None:
    deployer = await in_canary(wins=12)
    flag = f"ratchet.{TASK}.primary"
    strategy = Strategy(variant="primary", payload={"adapter": "a1", "previous": None})
    await deployer.admin.set_strategy(flag, strategy)
    await deployer.handlers.tick(TASK)
    everyone = [observed(deployer.last, number, Variant.PRIMARY, 502) for number in range(30)]
    await deployer.handlers.on_observed(deliveries(e.model_copy(update={"adapter": "a1"}) for e in everyone))
    await fail(deployer, range(30, 40))
    assert (deployer.last.stage, await errors(deployer)) == (Stage.CANARY, [])


async def test_a_complaint_is_held_against_the_share_of_its_answer_where_that_was_greater() -> None:
    deployer = await in_canary(wins=12)
    await see(deployer, range(1), Variant.CANARY)
    by_hand(deployer, 50)
    await deployer.handlers.tick(TASK)
    await see(deployer, range(1, 3), Variant.CANARY)
    by_hand(deployer, 50, "sessionId")
    await deployer.handlers.tick(TASK)
    await see(deployer, range(3, 5), Variant.CANARY)
    await deployer.commands.resume(TASK, "ann", "a mistake")
    await see(deployer, range(5, 6), Variant.CANARY)
    for number in (0, 1, 2, 3, 4, 5, 900):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    arms = (await deployer.ledger.load(deployer.last.rollout_id)).canary.arms[Guard.FEEDBACK]
    assert arms == [Arms(5, 2, 3), Arms(50, 2, 2)], "3 and 4 were answered at no known share"


async def test_a_rise_that_waits_for_a_replica_is_guarded() -> None:
    deployer = await in_canary()
    await see(deployer, range(5), Variant.CANARY)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    assert share(deployer) == (Stage.CANARY, 5, "5"), "25 % is decided and waits"
    failed = [observed(deployer.last, number, Variant.CANARY, 502) for number in range(100, 130)]
    await deployer.handlers.on_observed(deliveries(failed))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED, "no replica is needed to end it"
    assert "the canary fails too often: 30 of the 30 users" in deployer.last.reason


async def test_whoever_failed_while_the_first_canary_waited_counts_when_it_fails_them() -> None:
    """They were the primary's, and not counted again: a canary that failed everybody went on."""
    deployer = await fakes.in_shadow(canary_steps=(5,))
    before = [observed(deployer.last, number, Variant.BASE, 502) for number in range(100)]
    deployer.adapters.is_away = True
    await deployer.compare_and_label(range(10), "delivery")
    waiting = {"occurred_at": utc_now()}
    while_it_waits = deliveries(event.model_copy(update=waiting) for event in before)
    await deployer.handlers.on_observed(while_it_waits[:50])
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert share(deployer) == (Stage.CANARY, 5, "5")
    await deployer.handlers.on_observed(while_it_waits[50:])  # Read late.
    assert await errors(deployer) == []
    await deployer.see_canary(4, status=502)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "the canary fails too often: 4 of the 4 users" in deployer.last.reason


async def test_while_a_step_waits_failures_count_at_the_share_before_until_its_first_flag_may_be_set() -> None:
    deployer = await in_canary()
    await see(deployer, range(5), Variant.CANARY)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    failed = [observed(deployer.last, number, Variant.BASE, 502) for number in range(100, 104)]
    await deployer.handlers.on_observed(deliveries(failed[:2]))
    assert await errors(deployer) == [Arms(5, 0, 2)]
    deployer.adapters.is_away, deployer.admin.crash_at = False, 0
    with pytest.raises(DependencyUnavailable, match="Unleash is away"):
        await deployer.handlers.tick(TASK)
    await deployer.handlers.on_observed(deliveries(failed[2:]))
    assert await errors(deployer) == [Arms(5, 0, 2), Arms(25, 0, 2)]


@pytest.mark.parametrize("is_read_late", [False, True])
async def test_users_served_while_a_rise_waits_are_of_the_step_before(is_read_late: bool) -> None:
    deployer = await in_canary()
    canary = deployer.last
    deployer.adapters.is_away = True
    await see(deployer, range(5), Variant.CANARY)
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    meanwhile = {"occurred_at": utc_now()}
    waited = [observed(canary, n, Variant.CANARY).model_copy(update=meanwhile) for n in range(10, 20)]
    if not is_read_late:
        await deployer.handlers.on_observed(deliveries(waited))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    if is_read_late:
        await deployer.handlers.on_observed(deliveries(waited))
        await deployer.handlers.tick(TASK)
    assert share(deployer) == (Stage.CANARY, 25, "25"), "nobody was served at 25 % yet"
    await serve(deployer, 5)
    assert share(deployer)[1] == 50


async def test_a_bad_event_is_held_against_the_share_of_its_time() -> None:
    deployer = await in_canary()
    await see(deployer, range(1), Variant.CANARY)
    await deployer.handlers.on_feedback(feedback(deployer.last, 0))
    await see(deployer, range(5), Variant.CANARY)
    await deployer.handlers.tick(TASK)
    await see(deployer, range(5, 8), Variant.CANARY)
    for number in (5, 6, 900):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    counts = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert (counts.percent, counts.arms[Guard.FEEDBACK]) == (25, [Arms(5, 1, 1), Arms(25, 2, 3)])


def exact(steps: list[tuple[int, int, Fraction]], ratio: Fraction) -> Fraction:
    """The mixture's likelihood ratio over several shares in rational numbers."""
    total = Fraction()
    for step in range(20):
        product_of_steps = Fraction(1)
        for canary, bad, p in steps:
            null = p * ratio / (p * ratio + 1 - p)
            q = null + (1 - null) * Fraction(2 * step + 1, 40)
            product_of_steps *= (q / null) ** canary * ((1 - q) / (1 - null)) ** (bad - canary)
        total += product_of_steps
    return total / 20


SHARES = (Fraction(1, 20), Fraction(1, 4), Fraction(1, 2))


def test_the_guard_over_several_shares_is_the_mixtures_likelihood_ratio() -> None:
    for counts in ([(3, 5), (0, 0), (0, 0)], [(1, 3), (4, 9), (8, 12)], [(0, 2), (2, 8), (30, 50)]):
        steps = [(canary, bad, p) for (canary, bad), p in zip(counts, SHARES, strict=True)]
        found = canary_guard(*zip(*counts, strict=True), [float(p) for p in SHARES], 1.5)
        assert found == pytest.approx(float(exact(steps, Fraction(3, 2))), rel=1e-9)
    assert canary_guard(3, 5, 0.05, 1.5) == pytest.approx(float(exact([(3, 5, SHARES[0])], Fraction(3, 2))))


def test_its_expectation_is_one_whatever_the_shares_were_and_when_they_rose() -> None:
    """At the tolerated ratio, over every history of eight users, with the share of each known before their arm."""
    ratio = Fraction(3, 2)
    shares = [SHARES[0]] * 3 + [SHARES[1]] * 3 + [SHARES[2]] * 2
    nulls = [p * ratio / (p * ratio + 1 - p) for p in shares]
    mean = Fraction()
    for arms in product((0, 1), repeat=8):
        chance = Fraction(1)
        for arm, null in zip(arms, nulls, strict=True):
            chance *= null if arm else 1 - null
        mean += chance * exact([(arm, 1, p) for arm, p in zip(arms, shares, strict=True)], ratio)
    assert mean == 1


def test_a_share_taken_too_great_spares_the_canary() -> None:
    """What is read late, after a rise, is held against the new share."""
    for canary in range(6):
        found = [canary_guard(canary, 6, float(p), 1.5) for p in SHARES]
        assert all(later <= earlier for earlier, later in pairwise(found)), found


def test_a_healthy_canary_is_rarely_ended_over_its_steps_and_the_first_share_for_all_would_end_it() -> None:
    random, settings = np.random.default_rng(20), RolloutSettings()
    ended, naive = 0, 0
    for _ in range(300):
        shares = np.repeat([5, 25, 50], 20)
        canary = random.random(60) < shares / 100
        bad = [canary[shares == percent] for percent in (5, 25, 50)]
        arms = [Arms(percent, int(of.sum()), len(of)) for percent, of in zip((5, 25, 50), bad, strict=True)]
        ended += bool(canary_failure(CanaryCounts(percent=50, arms={Guard.ERRORS: arms}), settings))
        wrong = [Arms(5, step.canary, step.bad) for step in arms]
        naive += bool(canary_failure(CanaryCounts(percent=5, arms={Guard.ERRORS: wrong}), settings))
    assert ended <= 3
    assert naive > 200


@pytest.mark.parametrize("steps", [(), (25, 5), (5, 5), (0, 50), (50, 101)])
def test_steps_that_do_not_rise_are_refused(steps: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="canary_steps"):
        RolloutSettings(canary_steps=steps)
