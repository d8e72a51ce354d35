"""What ends a canary, through the deployer's handlers: slow answers, complaints, and wrong answers in the audit."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from schemas.base import Variant
from schemas.conversation import Answer
from schemas.labels import Purpose
from schemas.predictions import RequestObserved
from schemas.rollouts import Stage
from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskKind
from services.deployer.statistics.betting import canary_guard
from services.deployer.statistics.canary import (
    Arms,
    CanaryCounts,
    Confidences,
    Latencies,
    canary_failure,
    confidence_shift,
    guard_evidence,
    is_wrong,
    observation,
)
from services.deployer.statistics.guards import Guard
from tests.unit.deployer.canaries import audited, feedback, in_canary, leave, see
from tests.unit.deployer.fakes import Deployer, deliveries, evaluated, observed

TASK = "support-desk"


@pytest.fixture
async def deployer() -> Deployer:
    """A canary, before which the primary answered 200 users in 1 to 200 ms."""
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    await in_canary(deployer)
    assert deployer.last.stage is Stage.CANARY
    return deployer


async def counts(deployer: Deployer) -> CanaryCounts:
    return (await deployer.ledger.load(deployer.last.rollout_id)).canary


async def test_a_slow_canary_ends_by_the_primarys_percentile_before_it(deployer: Deployer) -> None:
    await see(deployer, range(40), Variant.CANARY, latency_ms=236.0)  # 1.2 times the 197th of 200 is 236.4 ms.
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, (await counts(deployer)).latencies) == (Stage.CANARY, Latencies(40, 0, 1.2 * 197))
    await see(deployer, range(40, 60), Variant.CANARY, latency_ms=237.0)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "the canary is too slow: 20 of 60 answers took longer than 236 ms, 1.2 times" in deployer.last.reason
    assert "and 20 of the 20 such users of both arms were in it" in deployer.last.reason
    assert "most of it of slow answers)" in deployer.last.reason


async def test_a_busy_hour_that_makes_both_arms_slow_ends_no_canary(deployer: Deployer) -> None:
    """By the past alone the guard ended each canary that met a stall of the gateway or the engine."""
    await see(deployer, range(60), Variant.CANARY, latency_ms=500.0)
    await see(deployer, range(2_000, 2_900), Variant.BASE, latency_ms=500.0)
    seen = await counts(deployer)
    assert (seen.latencies, seen.arms[Guard.LATENCY]) == (Latencies(60, 60, 1.2 * 197), [Arms(5, 60, 960)])
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY


async def test_a_canary_that_is_slower_than_the_primary_in_a_busy_hour_ends(deployer: Deployer) -> None:
    await see(deployer, range(2_000, 2_100), Variant.BASE, latency_ms=500.0)
    await see(deployer, range(2_100, 3_000), Variant.BASE)
    await see(deployer, range(60), Variant.CANARY, latency_ms=500.0)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "and 60 of the 160 such users of both arms were in it" in deployer.last.reason


async def test_slow_answers_are_not_too_slow_below_the_limit_of_before(deployer: Deployer) -> None:
    """Nobody minds an answer that is later than the primary's and as soon as ever."""
    await see(deployer, range(2_000, 2_900), Variant.BASE, latency_ms=10.0)
    await see(deployer, range(60), Variant.CANARY, latency_ms=230.0)
    assert Guard.LATENCY not in (await counts(deployer)).arms
    assert (await counts(deployer)).latencies.slow == 0
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY


async def test_a_canary_that_turns_slow_ends_though_everybody_waits_now_and_then(deployer: Deployer) -> None:
    """Of twenty answers a day hardly anybody has none that is slow: by any of them the arms would look alike."""
    users = [*((n, Variant.BASE) for n in range(2_000, 2_950)), *((n, Variant.CANARY) for n in range(50))]
    for day in (0, 1):
        for number, variant in users:
            for is_late in (number % 20 == day, True, True):
                await see(deployer, [number], variant, latency_ms=500.0 if is_late else 50.0, day=day)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    await see(deployer, range(50), Variant.CANARY, latency_ms=500.0, day=2)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "the canary is too slow" in deployer.last.reason


async def test_one_answer_of_a_subject_and_day_is_measured(deployer: Deployer) -> None:
    """One user with a slow connection, or who asks long questions, must not end a canary."""
    for day in (0, 0, 1, 1, 1):
        await see(deployer, [1], Variant.CANARY, latency_ms=9_000.0, day=day)
    seen = await counts(deployer)
    assert (seen.latencies, seen.arms[Guard.LATENCY]) == (Latencies(1, 1, 1.2 * 197), [Arms(5, 1, 1)])


async def test_whoever_is_slow_each_day_is_slow_once(deployer: Deployer) -> None:
    """Four of a hundred users who always ask for long answers ended an equal canary within a month, in 13 of 100."""
    for day in range(28):
        await see(deployer, range(4), Variant.CANARY, latency_ms=9_000.0, day=day)
        await see(deployer, range(4, 100), Variant.CANARY, latency_ms=50.0, day=day)
    assert (await counts(deployer)).latencies == Latencies(4 + 96 * 28, 4, 1.2 * 197)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY


async def test_a_canary_whose_users_do_not_wait_for_its_answers_ends(deployer: Deployer) -> None:
    """An application that gives up after five seconds hid all answers that take longer, and the rest looked fast."""
    await see(deployer, range(2_000, 2_900), Variant.BASE, latency_ms=50.0)
    await leave(deployer, range(2_900, 2_910), Variant.BASE)
    await see(deployer, range(100), Variant.CANARY, latency_ms=50.0)
    await leave(deployer, range(100, 140), Variant.CANARY)
    seen = await counts(deployer)
    assert (seen.latencies, seen.arms[Guard.LATENCY]) == (Latencies(140, 40, 1.2 * 197), [Arms(5, 40, 50)])
    assert (seen.errors, seen.requests) == (0, 100), "it is no error, and has served nobody"
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "or their users left before" in deployer.last.reason


async def test_users_who_leave_both_arms_alike_end_no_canary(deployer: Deployer) -> None:
    """A user may stop an answer that is long enough for them."""
    await leave(deployer, range(2_000, 2_950), Variant.BASE)
    await leave(deployer, range(50), Variant.CANARY)
    assert (await counts(deployer)).arms[Guard.LATENCY] == [Arms(5, 50, 1_000)]
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY


async def test_who_leaves_at_once_hides_no_answer_that_is_waited_for(deployer: Deployer) -> None:
    """Requests that are cancelled while a user still types would be the first of most users' days, in both arms."""
    for numbers, variant in ((range(2_000, 2_950), Variant.BASE), (range(50), Variant.CANARY)):
        await leave(deployer, numbers, variant, after_ms=20.0)
        await see(deployer, numbers, variant, latency_ms=500.0 if variant is Variant.CANARY else 50.0)
    seen = await counts(deployer)
    assert (seen.latencies, seen.arms[Guard.LATENCY]) == (Latencies(50, 50, 1.2 * 197), [Arms(5, 50, 50)])
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED


async def test_what_the_gateways_stop_broke_off_is_nobodys_failure_and_no_answer(deployer: Deployer) -> None:
    failed = {"status": 503, "latency_ms": 5_000.0, "occurred_at": deployer.last.occurred_at + timedelta(minutes=1)}
    events = [observed(deployer.last, number, Variant.CANARY).model_copy(update=failed) for number in range(40)]
    stopped = [event.model_copy(update={"gateway_stopped": True}) for event in events[:39]]
    before = await counts(deployer)
    await deployer.handlers.on_observed(deliveries(stopped))
    assert await counts(deployer) == before
    await deployer.handlers.on_observed(deliveries(events[39:]))
    assert (await counts(deployer)).errors == before.errors + 1


async def test_who_leaves_before_the_canary_does_not_move_the_limit() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    await leave(deployer, range(1_500, 1_600), Variant.BASE)
    await in_canary(deployer)
    await see(deployer, [1], Variant.CANARY)
    assert (await counts(deployer)).latencies.limit_ms == 1.2 * 197


async def test_what_the_primary_does_during_the_canary_does_not_move_the_limit(deployer: Deployer) -> None:
    """If it did, a canary would be measured by what it does to the engine."""
    await see(deployer, range(2_000, 2_500), Variant.BASE, latency_ms=9_000.0)
    await see(deployer, [1], Variant.CANARY)
    assert (await counts(deployer)).latencies == Latencies(1, 0, 1.2 * 197)


async def test_without_ninety_answers_of_the_primary_slowness_is_unknown() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    await see(deployer, range(1_000, 1_080), Variant.BASE)
    await see(deployer, range(1_080, 1_200), Variant.ROLLBACK)
    await deployer.compare_and_label(range(10), "delivery")
    await see(deployer, range(100), Variant.CANARY, latency_ms=9_000.0)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, (await counts(deployer)).latencies) == (Stage.CANARY, Latencies(100, 0, None))


async def test_complaints_about_the_canary_end_it_once_for_each_subject(deployer: Deployer) -> None:
    await see(deployer, range(20), Variant.CANARY)
    for _ in range(30):
        await deployer.handlers.on_feedback(feedback(deployer.last, 0))
    for number in range(20):
        await deployer.handlers.on_feedback(feedback(deployer.last, number, positive=True))
        await deployer.handlers.on_feedback(feedback(deployer.last, number, at=evaluated().occurred_at))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, (await counts(deployer)).bad(Guard.FEEDBACK)) == (Stage.CANARY, (1, 1))
    for number in range(5):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "the canary's users complain too often: 5 of the 5 with negative feedback were in it" in deployer.last.reason


async def test_a_complaint_about_the_answer_that_a_user_got_instead_is_the_primarys(deployer: Deployer) -> None:
    """A replica did not serve the candidate, so the primary answered, with the id that the request had already."""
    tried = [(n, variant, status) for n in range(3) for variant, status in ((Variant.CANARY, 404), (Variant.BASE, 200))]
    await deployer.handlers.on_observed(deliveries(observed(deployer.last, *request) for request in tried))
    for number in range(3):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    seen = await counts(deployer)
    assert (seen.bad(Guard.ERRORS), seen.bad(Guard.FEEDBACK)) == ((3, 3), (0, 3))


async def test_complaints_about_other_answers_are_not_the_canarys(deployer: Deployer) -> None:
    await see(deployer, [0], Variant.CANARY)
    for number in range(40):
        await deployer.handlers.on_feedback(feedback(deployer.last, number))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, (await counts(deployer)).bad(Guard.FEEDBACK)) == (Stage.CANARY, (1, 40))


async def test_an_audit_with_the_same_labels_in_another_order_found_the_answer_right(deployer: Deployer) -> None:
    audit = audited(deployer.last, 0, label='["delivery", "refund"]')
    same = audit.model_copy(update={"answers": (Answer(text='["refund", "delivery"]'),)})
    assert not is_wrong(same, TaskKind.MULTI_LABEL)
    assert is_wrong(audit, TaskKind.MULTI_LABEL)


async def test_wrong_answers_in_the_audit_end_a_canary_and_no_other_correction_does(deployer: Deployer) -> None:
    """Other questions are asked where a model doubts: a candidate that doubts more would be corrected more."""
    await see(deployer, range(20), Variant.CANARY)
    for number in range(20):
        await deployer.handlers.on_corrections(
            deliveries([audited(deployer.last, number, purpose=Purpose.LOW_CONFIDENCE)])
        )
        await deployer.handlers.on_corrections(deliveries([audited(deployer.last, number, label=" REFUND")]))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, (await counts(deployer)).bad(Guard.CORRECTIONS)) == (Stage.CANARY, (0, 0))
    for number in range(5):
        await deployer.handlers.on_corrections(deliveries([audited(deployer.last, number)]))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "5 of the 5 with a wrong answer in the audit were in it" in deployer.last.reason


def test_only_the_primarys_own_answers_measure_it() -> None:
    """The base model that stands in for an adapter that no replica serves is faster, and no measure."""
    example = Path("schemas/examples/requests.observed.v1/answered.json").read_bytes()
    served = {"variant": Variant.PRIMARY, "adapter": "a0"}
    seen = RequestObserved.model_validate_json(example).model_copy(update=served)
    assert observation(*deliveries([seen]), "a1", "a0").primary
    for other in ({"variant": Variant.BASE, "adapter": None}, {"adapter": "older"}, {"variant": Variant.CANARY}):
        assert not observation(*deliveries([seen.model_copy(update=other)]), "a1", "a0").primary


def test_each_guard_alone_needs_nearly_a_hundred_and_several_help_each_other() -> None:
    """Five guards of .05 each would end 23 % of healthy canaries."""
    settings = RolloutSettings()
    some = CanaryCounts(percent=5, arms={Guard.ERRORS: [Arms(5, 3, 5)]})
    (evidence,) = [value for guard, value in guard_evidence(some, settings).items() if guard is Guard.ERRORS]
    assert 20 < evidence < 96
    assert canary_failure(some, settings) == ""
    both = CanaryCounts(percent=5, arms={Guard.ERRORS: [Arms(5, 3, 5)], Guard.FEEDBACK: [Arms(5, 3, 5)]})
    assert canary_failure(both, settings).startswith("the canary fails too often: 3 of the 5 users")
    assert canary_failure(CanaryCounts(), settings) == ""


async def test_a_redelivery_counts_nothing_twice(deployer: Deployer) -> None:
    records = deliveries([observed(deployer.last, number, Variant.CANARY) for number in range(3)])
    for _ in range(2):
        await deployer.handlers.on_observed(records)
        await deployer.handlers.on_feedback(feedback(deployer.last, 1))
        await deployer.handlers.on_observed(deliveries([]))
    seen = await counts(deployer)
    assert (seen.requests, seen.latencies.measured, seen.bad(Guard.FEEDBACK)) == (3, 3, (1, 1))


@pytest.mark.parametrize(
    ("canary", "primary", "words"),
    [
        (Confidences(100, 0.70, 0.01), Confidences(2_000, 0.80, 0.01), "less sure of its answers than the primary was"),
        (Confidences(100, 0.90, 0.01), Confidences(2_000, 0.80, 0.01), "surer of its answers"),
        (Confidences(99, 0.70, 0.01), Confidences(2_000, 0.80, 0.01), ""),
        (Confidences(100, 0.70, 0.01), Confidences(99, 0.80, 0.01), ""),
        (Confidences(100, 0.70, 0.09), Confidences(2_000, 0.80, 0.09), ""),  # 3.3 standard errors.
        (Confidences(9_000, 0.76, 0.01), Confidences(2_000, 0.80, 0.01), ""),  # Sure, but not worth a word.
        (Confidences(), Confidences(), ""),
    ],
)
def test_a_canarys_confidence_is_warned_about_where_it_is_not_the_primarys(
    canary: Confidences, primary: Confidences, words: str
) -> None:
    warning = confidence_shift(CanaryCounts(confidences=canary, primary_confidences=primary))
    assert words in warning and bool(words) == bool(warning)


async def test_a_shift_of_confidence_warns_in_the_evidence_once_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    await see(deployer, range(2_000, 2_150), Variant.BASE, confidence=0.9)
    await in_canary(deployer)
    start, told = deployer.last, len(deployer.publisher.changes)
    await see(deployer, range(40), Variant.CANARY, confidence=0.4)
    await see(deployer, range(40), Variant.CANARY, confidence=0.4, day=1)
    for minutes, numbers in ((2, range(40, 60)), (4, range(60, 90)), (6, range(90, 95))):
        now = start.occurred_at + timedelta(minutes=minutes)
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda now=now: now)
        assert len(deployer.publisher.changes) == told, "before there are a hundred"
        await see(deployer, numbers, Variant.CANARY, confidence=0.5)
        await deployer.handlers.tick(TASK)
        if minutes == 2:
            told += 1
    assert deployer.last.stage is Stage.CANARY
    assert "0.42 against 0.90 on average" in deployer.publisher.changes[-1].evidence.warning


@pytest.mark.parametrize("guard", [Guard.ERRORS, Guard.FEEDBACK, Guard.CORRECTIONS, Guard.LATENCY])
def test_each_guard_tolerates_what_its_own_setting_says(guard: Guard) -> None:
    """Ten of a hundred users with such an event are of a canary with five of a hundred users: twice as often."""

    def evidence(error: float, complaint: float) -> float:
        settings = RolloutSettings(max_error_ratio=error, max_complaint_ratio=complaint)
        counts = CanaryCounts(arms={guard: [Arms(5, 50, 500)]}, latencies=Latencies(100, 100, 200.0))
        return guard_evidence(counts, settings)[guard]

    def exact(ratio: float) -> float:
        return canary_guard([50], [500], [0.05], ratio)

    by_errors = guard in (Guard.ERRORS, Guard.LATENCY)
    assert evidence(1.1, 3.0) == pytest.approx(exact(1.1 if by_errors else 3.0))
    assert evidence(3.0, 1.1) == pytest.approx(exact(3.0 if by_errors else 1.1))
    assert exact(1.1) > 20 > 1 > exact(3.0)
