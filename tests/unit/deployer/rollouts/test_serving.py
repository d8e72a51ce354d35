"""What the canary's failures and an engine, a store or a flag that is not as it should be do to a rollout."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from pydantic import ValidationError

from schemas.base import Variant, utc_now
from schemas.rollouts import Stage
from services.deployer.clients import ArtifactMissing, FlagState
from services.deployer.statistics.guards import Guard
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import Deployer, deliveries, evaluated, in_shadow, observed

TASK = "support-desk"


async def test_requests_from_before_the_canary_are_not_its_own() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(25), "delivery")
    before = {"occurred_at": deployer.last.occurred_at - timedelta(seconds=1)}
    early = [
        observed(deployer.last, n, Variant.CANARY, 200 if n < 9 else 502).model_copy(update=before) for n in range(40)
    ]
    await deployer.handlers.on_observed(deliveries(early))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    canary = (await deployer.ledger.load(deployer.last.rollout_id)).canary
    assert (canary.requests, canary.bad(Guard.ERRORS)) == (0, (0, 0))


@pytest.mark.parametrize(("behind", "is_told"), [(300, True), (5, False)])
async def test_a_gateway_whose_clock_is_behind_is_told_once_since_no_guard_counts_what_it_dates_before_the_canary(
    behind: int, is_told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    for _ in range(2):
        early = {"occurred_at": deployer.last.occurred_at - timedelta(seconds=behind)}
        failed = [observed(deployer.last, n, Variant.CANARY, 502).model_copy(update=early) for n in range(30)]
        await deployer.handlers.on_observed(deliveries(failed))
    told = [record.getMessage() for record in caplog.records if "clock" in record.getMessage()]
    assert len(told) == is_told
    if is_told:
        assert told[0].startswith(f"{TASK}: a1 answered 30 requests up to 300 s before it could: they count nowhere.")


async def test_what_the_primary_answered_before_the_canary_says_nothing_about_clocks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    early = {"occurred_at": deployer.last.occurred_at - timedelta(minutes=5)}
    seen = [observed(deployer.last, n, Variant.BASE).model_copy(update=early) for n in range(30)]
    await deployer.handlers.on_observed(deliveries(seen))
    assert "clock" not in caplog.text


async def test_refused_requests_and_failed_ones_are_no_answers_of_the_canary() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(25), "delivery")
    refused = [observed(deployer.last, number, Variant.CANARY, 400) for number in range(50)]
    failed = [observed(deployer.last, number, Variant.CANARY, 500) for number in range(50, 51)]
    await deployer.handlers.on_observed(deliveries([*refused, *failed]))
    await deployer.see_canary(4)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    served = [observed(deployer.last, 99, Variant.CANARY)]
    await deployer.handlers.on_observed(deliveries(served))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.PROMOTED
    assert (deployer.last.evidence.canary_requests, deployer.last.evidence.canary_errors) == (6, 1)


async def test_a_canary_that_fails_is_rejected_while_everyone_keeps_the_primary() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.last.stage is Stage.CANARY
    await deployer.see_canary(4, status=502)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED
    assert "the canary fails too often: 4 of the 4 users" in deployer.last.reason
    assert deployer.last.evidence.canary_errors == 4
    assert deployer.admin.serves(TASK, in_canary=True) is None


@pytest.mark.parametrize("control_days", [0, 7])
async def test_a_promotion_that_waits_for_a_replica_is_guarded_and_taken_back(control_days: int) -> None:
    """Thirty canary users with 502 counted as none meanwhile, and it was promoted when the replica returned."""
    deployer = await in_shadow(control_days=control_days)
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY, "the promotion is decided and waits"
    failed = [observed(deployer.last, number, Variant.CANARY, 502) for number in range(100, 130)]
    later = [event.model_copy(update={"occurred_at": utc_now() + timedelta(seconds=1)}) for event in failed]
    await deployer.handlers.on_observed(deliveries(later))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert "the canary fails too often: 30 of the 30 users" in deployer.last.reason
    assert "in it, which has 5 % of users" in deployer.last.reason
    assert deployer.admin.serves(TASK, in_canary=True) is None


@pytest.mark.parametrize("control_days", [0, 7])
async def test_failures_of_everyone_are_not_held_against_a_promotion_before_it_is_settled(control_days: int) -> None:
    """Its flags are set by then, so that the last step's share is too small, and nobody else could fail."""
    deployer = await in_shadow(control_days=control_days)
    await deployer.compare_and_label(range(25), "delivery")
    await deployer.see_canary(5)
    deployer.publisher.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    assert deployer.admin.serves(TASK) == "a1"
    failed = [observed(deployer.last, number, Variant.PRIMARY, 502) for number in range(100, 130)]
    later = {"adapter": "a1", "occurred_at": utc_now() + timedelta(seconds=1)}
    await deployer.handlers.on_observed(deliveries(event.model_copy(update=later) for event in failed))
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.PROMOTED, "a1")


async def test_failures_of_people_whom_nobody_names_end_a_canary_once_for_each_conversation() -> None:
    """Only users were counted: a canary that failed traffic without users was never stopped."""
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    one = [observed(deployer.last, n, Variant.CANARY, 502).model_copy(update={"subject": "opening"}) for n in range(30)]
    await deployer.handlers.on_observed(deliveries(one))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    await deployer.handlers.on_observed(
        deliveries([event.model_copy(update={"subject": f"opening-{n}"}) for n, event in enumerate(one)])
    )
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.REJECTED


async def test_failures_in_every_arm_do_not_count_against_the_canary() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    events = [observed(deployer.last, n, Variant.CANARY if n == 0 else Variant.BASE, 503) for n in range(20)]
    await deployer.handlers.on_observed(deliveries(events))
    await deployer.handlers.on_observed(deliveries(events))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    assert (await deployer.ledger.load(deployer.last.rollout_id)).canary.bad(Guard.ERRORS) == (1, 20)


async def test_an_adapter_that_vllm_refuses_never_enters_shadow() -> None:
    deployer = await in_shadow()
    deployer.adapters.refused.add("a2")
    event = evaluated("a2")
    for _ in range(2):
        await deployer.handlers.on_evaluated(event)
    assert deployer.last.stage is Stage.SHADOW
    await deployer.compare_and_label(range(7), "refund")
    await deployer.handlers.tick(TASK)
    refused = deployer.last
    assert (refused.candidate_adapter, refused.stage) == ("a2", Stage.REJECTED)
    assert refused.reason.startswith("vLLM does not serve a2: rank of a2 is too high. ")
    assert deployer.admin.serves(TASK) is None


async def test_an_adapter_that_vllm_no_longer_serves_is_not_promoted() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(20), "delivery")
    await deployer.see_canary(5)
    deployer.adapters.refused.add("a1")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert deployer.admin.serves(TASK, in_canary=True) is None


@pytest.mark.parametrize("value", ["{", "[]", "7", '"text"', ""])
def test_a_payload_that_a_person_broke_is_none(value: str) -> None:
    strategy = {"variants": [{"name": "primary", "payload": {"value": value}}]}
    assert FlagState(True, (strategy,)).payload is None


async def test_an_adapter_that_the_flag_served_before_any_rollout_is_the_first_primary() -> None:
    deployer = Deployer()
    strategy = {"variants": [{"name": "primary", "payload": {"value": '{"adapter": "old", "previous": null}'}}]}
    deployer.admin.flags[f"ratchet.{TASK}.primary"] = FlagState(True, (strategy,))
    await deployer.handlers.on_evaluated(evaluated(against="old"))
    assert deployer.last.primary_adapter == "old"


@pytest.mark.parametrize("name", ["../../x", "org/adapter", "", ".hidden", "x" * 201, "a b", "a\n"])
def test_the_name_of_an_adapter_is_never_a_path(name: str) -> None:
    with pytest.raises(ValidationError, match="adapter"):
        evaluated(name)


async def test_a_candidate_whose_artifact_was_deleted_is_rejected_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = Deployer()
    deployer.adapters.deleted.add("a1")
    await deployer.handlers.on_evaluated(evaluated())
    assert deployer.last.stage is Stage.QUEUED
    assert deployer.handlers.trouble == {TASK: "no artifact at /artifacts/adapters/a1"}
    later = utc_now() + timedelta(hours=1)
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: later)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert "a1 is not in the artifact store any more" in deployer.last.reason
    await deployer.handlers.on_evaluated(evaluated("a2"))
    assert (deployer.last.stage, deployer.last.candidate_adapter) == (Stage.SHADOW, "a2")


async def test_a_candidate_that_waited_long_is_not_rejected_at_the_first_look_at_a_store_that_is_mounted_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated())
    found = await deployer.rollouts.get(deployer.last.rollout_id)
    long_due = replace(found, changed_at=utc_now() - timedelta(days=1))
    deployer.adapters.deleted.add("a1")
    with pytest.raises(ArtifactMissing):
        await deployer.transitions.refusal(long_due)
    deployer.adapters.deleted.clear()
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable, match="vLLM is away"):
        await deployer.transitions.refusal(long_due)
    later = utc_now() + timedelta(hours=1)
    monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: later)
    deployer.adapters.is_away = False
    deployer.adapters.deleted.add("a1")
    with pytest.raises(ArtifactMissing):  # It was there meanwhile.
        await deployer.transitions.refusal(long_due)
    deployer.adapters.deleted.clear()
    assert await deployer.transitions.refusal(long_due) == ""


async def test_a_candidate_waits_for_an_unavailable_vllm_and_holds_up_no_other_task() -> None:
    deployer = Deployer()
    deployer.adapters.is_away = True
    await deployer.handlers.on_evaluated(evaluated())
    assert (deployer.last.stage, deployer.handlers.trouble) == (Stage.QUEUED, {TASK: "vLLM is away"})
    deployer.adapters.is_away = False
    await deployer.handlers.on_evaluated(evaluated("b1", "billing"))
    assert (deployer.last.task, deployer.last.stage) == ("billing", Stage.SHADOW)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.SHADOW)
