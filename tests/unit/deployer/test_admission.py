"""Which candidate is compared next: the queue of one, another opponent than today's, and the level that is drawn."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from schemas.adapters import AdapterEvaluated, EvaluationRequested
from schemas.base import Gate, utc_now
from schemas.cycles import StepFailed
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged
from services.deployer.clients import Strategy
from services.deployer.rollout import Rollout, ServingState
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import CUTOFF, Deployer, evaluated, spec

TASK = "support-desk"


async def in_shadow(**rollout: object) -> Deployer:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(**rollout))
    return deployer


async def promoted(**rollout: object) -> Deployer:
    deployer = await in_shadow(canary_wealth=2, min_canary_users=0, **rollout)
    await deployer.compare_and_label(range(25), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    return deployer


def trained_on(days: int, event: AdapterEvaluated) -> AdapterEvaluated:
    """The verdict on a candidate whose data ends so many days later."""
    return event.model_copy(update={"data_cutoff": CUTOFF + timedelta(days=days)})


def requests(deployer: Deployer) -> list[EvaluationRequested]:
    return [event for event in deployer.publisher.events.values() if isinstance(event, EvaluationRequested)]


def stages(deployer: Deployer, adapter: str) -> list[Stage]:
    return [change.stage for change in deployer.publisher.changes if change.candidate_adapter == adapter]


@pytest.mark.parametrize("passed", [True, False])
async def test_a_model_of_its_own_enters_no_rollout(passed: bool, caplog: pytest.LogCaptureFixture) -> None:
    deployer = Deployer()
    with caplog.at_level("INFO"):
        await deployer.handlers.on_evaluated(evaluated("m1", passed=passed).model_copy(update={"kind": "model"}))
    assert deployer.publisher.changes == []
    assert await deployer.rollouts.waiting(TASK) is None
    assert "no rollout follows" in caplog.text and "m1" in caplog.text


async def test_a_newer_candidate_waits_and_the_one_that_is_close_to_its_proof_goes_on() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(9), "delivery")
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    assert stages(deployer, "a2") == [Stage.QUEUED]
    history = await deployer.rollouts.history(TASK, 50)
    assert [move.version for move in history if move.candidate == "a2"] == [0], "its history has its beginning"
    queued, stays = deployer.publisher.changes[-2:]
    assert queued.reason.startswith("until a1 ends; passed all 1 offline gates")
    assert (stays.candidate_adapter, stays.stage) == ("a1", Stage.SHADOW), "the table's last value is the compared one"
    assert (stays.reason, stays.evidence.wins) == ("stays in shadow: the newer a2 is queued", 9)
    await deployer.compare_and_label(range(9, 10), "delivery")
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.CANARY)


async def test_a_process_that_lost_the_lock_adds_nothing_to_what_the_next_one_has_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The entry itself was never published: "stays in shadow" had taken its place."""
    deployer = Deployer()
    refusal, calls = deployer.transitions.refusal, 0

    async def while_another_goes_on(rollout: Rollout) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:  # The database is back, and the lock with it.
            async with deployer.rollouts.locked(TASK):
                waiting = await deployer.rollouts.waiting(TASK)
                entering = waiting.into_shadow(ServingState(None, None), 0.001, 0.001, utc_now())
                await deployer.rollouts.save(entering)
        return await refusal(rollout)

    monkeypatch.setattr(deployer.transitions, "refusal", while_another_goes_on)
    await deployer.handlers.on_evaluated(evaluated())
    assert calls and stages(deployer, "a1") == [Stage.QUEUED, Stage.SHADOW]
    assert deployer.last.reason.startswith("passed all 1 offline gates")
    assert deployer.admin.flags[f"ratchet.{TASK}.shadow"].enabled


async def test_at_its_turn_it_enters_shadow_if_the_model_that_serves_is_the_one_it_was_compared_with() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    await deployer.compare_and_label(range(7), "refund")
    assert stages(deployer, "a1")[-1] is Stage.REJECTED
    await deployer.handlers.tick(TASK)
    assert stages(deployer, "a2") == [Stage.QUEUED, Stage.SHADOW]
    assert deployer.last.reason.startswith("passed all 1 offline gates"), "it waits for nobody any more"
    assert requests(deployer) == []
    assert deployer.admin.flags[f"ratchet.{TASK}.shadow"].enabled
    await deployer.compare_and_label_in(deployer.last, range(20, 30), "delivery")
    assert deployer.last.candidate_adapter == "a2"


async def test_at_its_turn_it_is_evaluated_again_against_the_model_that_serves_by_then() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_users=0)
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", canary_wealth=2, min_canary_users=0)))
    await deployer.compare_and_label_in(deployer.publisher.changes[0], range(25), "delivery")
    assert deployer.admin.serves(TASK) == "a1"
    for _ in range(3):
        await deployer.handlers.tick(TASK)
    (asked,) = requests(deployer)
    assert (asked.adapter, asked.against, asked.dataset_id) == ("a2", "a1", "d1")
    assert asked.cycle_id == "cycle-1"
    assert "evaluated again, against a1, which serves now" in deployer.last.reason
    again = trained_on(7, evaluated("a2", against="a1")).model_copy(update={"event_id": asked.event_id})
    for _ in range(2):
        await deployer.handlers.on_evaluated(again)
    assert stages(deployer, "a2") == [Stage.QUEUED, Stage.QUEUED, Stage.QUEUED, Stage.SHADOW]
    assert deployer.last.primary_adapter == "a1"
    assert len({change.rollout_id for change in deployer.publisher.changes if change.candidate_adapter == "a2"}) == 1


async def test_what_is_said_of_a_candidate_that_waited_names_who_serves_by_now() -> None:
    """The table of rollouts has one value a task: with a former primary the next evaluation asked the wrong model."""
    deployer = await in_shadow(canary_wealth=2, min_canary_users=0)
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    await deployer.compare_and_label_in(deployer.publisher.changes[0], range(25), "delivery")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.QUEUED)
    assert deployer.last.primary_adapter == "a1"
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", passed=False, against="a1")))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, "a1")


async def test_a_candidate_that_so_few_rows_could_not_judge_enters_shadow_and_says_so() -> None:
    deployer = await promoted()
    unknown = Gate(name="parts_not_worse", passed=True, required="p >= 0.02", labels_needed=30)
    event = evaluated("a2", against="a1")
    undecided = event.model_copy(update={"verdict": "inconclusive", "gates": (*event.gates, unknown)})
    await deployer.handlers.on_evaluated(undecided)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
    assert "stopped by none of 2 offline gates, parts_not_worse unknown on so few rows" in deployer.last.reason


async def test_a_second_evaluation_that_fails_a_gate_ends_it() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    assert (deployer.last.stage, deployer.last.candidate_adapter) == (Stage.QUEUED, "a2")
    assert [request.against for request in requests(deployer)] == ["a1"]
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.handlers.on_evaluated(evaluated("a2", passed=False, against="a1"))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, "a1")
    assert "min_gain" in deployer.last.reason
    await deployer.handlers.on_evaluated(evaluated("a3", against="a1"))
    assert deployer.last.stage is Stage.SHADOW


async def test_if_another_model_serves_by_the_time_of_the_verdict_it_is_asked_for_once_more() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert [request.against for request in requests(deployer)] == ["a1", None]
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.SHADOW, None)


async def test_of_two_that_wait_the_newer_stays_whichever_comes_first() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    await deployer.handlers.on_evaluated(trained_on(14, evaluated("a3")))
    await deployer.handlers.on_evaluated(trained_on(9, evaluated("a4")))
    await deployer.handlers.on_evaluated(trained_on(-7, evaluated("a0")))
    reasons = {change.candidate_adapter: change.reason for change in deployer.publisher.changes[:-1]}
    assert reasons["a2"] == "replaced in the queue by the newer a3"
    assert reasons["a4"] == "a3, which waits for its turn, was trained on newer data"
    assert reasons["a0"] == "a1, which is compared now, was trained on newer data"
    assert [stages(deployer, adapter)[-1] for adapter in ("a0", "a2", "a3", "a4")] == [
        Stage.REJECTED, Stage.REJECTED, Stage.QUEUED, Stage.REJECTED,
    ]  # fmt: skip
    assert deployer.last.candidate_adapter == "a1"
    await deployer.compare_and_label(range(7), "refund")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a3", Stage.SHADOW)


async def test_a_newer_candidate_takes_the_turn_of_one_that_is_being_evaluated_again() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", against=None)))
    await deployer.handlers.on_evaluated(trained_on(14, evaluated("a3", against="a1")))
    assert stages(deployer, "a2")[-1] is Stage.REJECTED
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a3", Stage.SHADOW)
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", against="a1")))
    assert "a3, which is compared now, was trained on newer data" in deployer.publisher.changes[-2].reason


async def test_a_redelivered_verdict_of_one_that_waits_changes_nothing() -> None:
    deployer = await in_shadow()
    event = trained_on(7, evaluated("a2"))
    for _ in range(3):
        await deployer.handlers.on_evaluated(event)
    assert len(deployer.publisher.changes) == 4
    await deployer.handlers.on_evaluated(trained_on(14, evaluated("a3")))
    changes = len(deployer.publisher.changes)
    await deployer.handlers.on_evaluated(event)
    assert len(deployer.publisher.changes) == changes


def failure(failed_event: UUID | None) -> StepFailed:
    return StepFailed(
        task=TASK, task_revision=spec().revision, cycle_id="cycle-1", service="evaluator", step="evaluation",
        reason="the data set was deleted", way_out="Start a cycle.", failed_event=failed_event,
    )  # fmt: skip


async def test_a_candidate_whose_second_evaluation_fails_ends_at_once_and_not_when_it_expires() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    (asked,) = requests(deployer)
    for _ in range(2):
        await deployer.handlers.on_step_failed(failure(asked.event_id))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.INCONCLUSIVE)
    assert deployer.last.reason == (
        "it could not be evaluated again, against a1: the data set was deleted. Start a cycle."
    )
    assert deployer.last.primary_adapter == "a1"
    assert await deployer.rollouts.waiting(TASK) is None


async def test_a_failure_of_another_step_or_of_an_earlier_request_ends_nobody_who_waits() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    (asked,) = requests(deployer)
    waiting = await deployer.rollouts.waiting(TASK)
    for failed_event in (None, uuid4()):
        await deployer.handlers.on_step_failed(failure(failed_event))
    assert await deployer.rollouts.waiting(TASK) == waiting
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
    await deployer.handlers.on_step_failed(failure(asked.event_id))
    assert deployer.last.stage is Stage.SHADOW


async def judged_while_vllm_is_away(**rollout: object) -> Deployer:
    """a2 has the verdict that it was asked for, against a1, which serves, and cannot enter shadow yet."""
    deployer = await promoted(**rollout)
    await deployer.handlers.on_evaluated(evaluated("a2", against=None, **rollout))
    assert [request.against for request in requests(deployer)] == ["a1"]
    deployer.adapters.is_away = True
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1", **rollout))
    return deployer


async def test_what_ends_a_candidate_that_has_its_verdict_is_not_that_no_verdict_came(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deployer = await judged_while_vllm_is_away(max_days=10)
    later = utc_now() + timedelta(days=10.1)
    monkeypatch.setattr("services.deployer.admission.utc_now", lambda: later)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.INCONCLUSIVE
    assert deployer.last.reason == "10 days since its turn in which it could not enter shadow: vLLM is away"


async def test_a_verdict_that_nobody_asked_for_against_a_model_that_serves_no_more_has_it_asked_for_again() -> None:
    """As asked for and answered once, it was not asked for any more: the candidate waited until it expired."""
    deployer = await judged_while_vllm_is_away()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert [request.against for request in requests(deployer)] == ["a1", "a1"]
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)


async def asked_twice() -> Deployer:
    """a2 was asked to be compared with a1, then, since a rollback, with the model before it."""
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against="a0"))
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    await deployer.handlers.tick(TASK)
    assert [request.against for request in requests(deployer)] == ["a1", None]
    return deployer


async def test_a_late_verdict_of_an_earlier_request_leaves_the_last_one_awaited_and_its_failure_known() -> None:
    deployer = await asked_twice()
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    await deployer.handlers.tick(TASK)
    asked = requests(deployer)
    assert len(asked) == 2, "it is not evaluated twice for the same"
    await deployer.handlers.on_step_failed(failure(asked[1].event_id))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.INCONCLUSIVE)
    assert deployer.last.reason.startswith("it could not be evaluated again, against the base model: ")


async def test_a_verdict_that_a_candidate_did_not_need_any_more_queues_it_for_no_second_comparison() -> None:
    """It had entered, since the model of its first verdict served again, and drew another level once it had ended."""
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a2", against=None))
    await deployer.commands.rollback(TASK, "ben", "bad tone")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
    late = evaluated("a2", against="a1")
    await deployer.handlers.on_evaluated(late)
    assert await deployer.rollouts.waiting(TASK) is None
    await deployer.commands.rollback(TASK, "ben", "no more")
    await deployer.handlers.on_evaluated(late)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.REJECTED)


async def judged_three_times() -> tuple[Deployer, AdapterEvaluated]:
    """a3 waits, judged against the base model, a1, and the base model again. Returns the second verdict as well."""
    deployer = await promoted()
    verdict = evaluated("a3", against=None)
    deployer.adapters.is_away = True
    await deployer.handlers.on_evaluated(verdict)
    second = evaluated("a3", against="a1")
    await deployer.handlers.on_evaluated(second)
    deployer.adapters.is_away = False
    await deployer.admin.switch(f"ratchet.{TASK}.rollback", True)
    deployer.adapters.is_away = True
    await deployer.handlers.tick(TASK)  # The base model serves again.
    await deployer.handlers.on_evaluated(evaluated("a3", against=None))
    return deployer, second


async def test_a_verdict_that_comes_again_after_a_newer_one_changes_nothing_of_what_waits() -> None:
    """It took the newer one's place, with its opponent of before, and nobody was asked again: a3 waited to its end."""
    deployer, second = await judged_three_times()
    waiting = await deployer.rollouts.waiting(TASK)
    assert (waiting.candidate, waiting.opponent) == ("a3", None)
    await deployer.handlers.on_evaluated(second)
    assert await deployer.rollouts.waiting(TASK) == waiting


async def test_a_verdict_that_comes_again_after_a_newer_one_queues_nobody_who_is_compared() -> None:
    deployer, second = await judged_three_times()
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a3", Stage.SHADOW)
    await deployer.handlers.on_evaluated(second)
    assert await deployer.rollouts.waiting(TASK) is None
    assert len({move.rollout_id for move in await deployer.rollouts.history(TASK, 50) if move.candidate == "a3"}) == 1


async def test_the_first_verdict_is_known_also_of_a_candidate_that_was_judged_again_before_verdicts_were_kept() -> None:
    deployer = await promoted()
    first = evaluated("a3", against=None)
    await deployer.handlers.on_evaluated(first)
    deployer.adapters.is_away = True
    await deployer.handlers.on_evaluated(evaluated("a3", against="a1"))
    waiting = await deployer.rollouts.waiting(TASK)
    assert waiting.former_verdicts == (str(first.event_id),)
    migrated = replace(waiting, former_verdicts=())
    deployer.rollouts.rollouts[waiting.rollout_id] = migrated
    await deployer.handlers.on_evaluated(first)
    assert await deployer.rollouts.waiting(TASK) == migrated


async def test_what_waits_ends_when_the_task_changes_or_no_verdict_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    changed = spec().model_copy(update={"system_prompt": "Another prompt."})
    event = TaskChanged(
        occurred_at=CUTOFF + timedelta(days=30), task=TASK, task_revision=changed.revision, spec=changed
    )
    await deployer.handlers.tasks.put(TASK, event)
    await deployer.handlers.tick(TASK)
    assert [stages(deployer, adapter)[-1] for adapter in ("a1", "a2")] == [Stage.INCONCLUSIVE, Stage.INCONCLUSIVE]

    deployer = await promoted(max_days=10)
    await deployer.handlers.on_evaluated(evaluated("a2", against=None, max_days=10))
    for days, stage in ((9.9, Stage.QUEUED), (10.1, Stage.INCONCLUSIVE)):
        later = utc_now() + timedelta(days=days)
        monkeypatch.setattr("services.deployer.admission.utc_now", lambda later=later: later)
        await deployer.handlers.tick(TASK)
        assert deployer.last.stage is stage


async def test_it_waits_for_as_long_as_the_other_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow(max_days=10)
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", max_days=10)))
    later = utc_now() + timedelta(days=18)
    monkeypatch.setattr("services.deployer.admission.utc_now", lambda: later)
    await deployer.compare_and_label(range(7), "refund")
    await deployer.handlers.tick(TASK)
    assert stages(deployer, "a2") == [Stage.QUEUED, Stage.SHADOW], "eighteen days in the queue"


async def test_a_turn_waits_for_a_vllm_that_is_away_and_comes_at_a_later_tick() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    await deployer.compare_and_label(range(7), "refund")
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    assert stages(deployer, "a2")[-1] is Stage.QUEUED
    deployer.adapters.is_away = False
    await deployer.handlers.tick(TASK)
    assert stages(deployer, "a2")[-1] is Stage.SHADOW


async def test_one_that_cannot_enter_expires_by_the_time_since_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow(max_days=10)
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2", max_days=10)))
    begun = utc_now()

    async def tick(days: float) -> None:
        for module in ("transitions", "admission"):
            monkeypatch.setattr(f"services.deployer.{module}.utc_now", lambda: begun + timedelta(days=days))
        await deployer.handlers.tick(TASK)

    await tick(9)
    deployer.adapters.is_away = True
    await deployer.compare_and_label(range(7), "refund")
    assert deployer.last.stage is Stage.REJECTED
    with pytest.raises(DependencyUnavailable):
        await tick(18.9)
    assert stages(deployer, "a2") == [Stage.QUEUED]
    await tick(19.1)
    assert stages(deployer, "a2") == [Stage.QUEUED, Stage.INCONCLUSIVE]
    assert deployer.last.reason == "10 days since its turn in which it could not enter shadow: vLLM is away"


async def test_alpha_is_drawn_at_the_turn_and_what_has_accrued_is_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow()
    first = deployer.last.evidence.alpha
    assert first == pytest.approx(0.05 / 52)
    begun = utc_now()
    await deployer.handlers.on_evaluated(trained_on(7, evaluated("a2")))
    await deployer.compare_and_label(range(7), "refund")
    monkeypatch.setattr("services.deployer.admission.utc_now", lambda: begun + timedelta(days=2))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
    assert deployer.last.evidence.alpha == pytest.approx(2 * 0.05 / 365, rel=1e-3)


async def test_only_the_direct_predecessors_promotion_gives_alpha_back(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await promoted()
    first = deployer.publisher.changes[0].evidence.alpha
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert deployer.last.evidence.alpha == pytest.approx(first / 2, rel=1e-3)
    await deployer.compare_and_label(range(40, 47), "refund")
    monkeypatch.setattr("services.deployer.admission.utc_now", lambda: utc_now() + timedelta(days=7))
    await deployer.handlers.on_evaluated(evaluated("a3", against="a1"))
    assert deployer.last.evidence.alpha == pytest.approx(0.05 * 7 / 365, rel=1e-3)


def of_another_base(adapter: str) -> AdapterEvaluated:
    event = evaluated(adapter)
    moved = event.spec.model_copy(update={"base_model": "base-2"})
    return event.model_copy(update={"spec": moved, "base_model": "base-2", "task_revision": moved.revision})


async def test_a_candidate_of_another_base_model_resets_a_primary_that_no_engine_serves_any_more() -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(of_another_base("n1"))
    await deployer.handlers.tick(TASK)
    entered = deployer.last
    assert (entered.candidate_adapter, entered.stage, entered.paused) == ("n1", Stage.SHADOW, "")
    assert entered.reason.endswith("primary is reset: it named a1, an adapter of the base model base")
    assert deployer.admin.flags[f"ratchet.{TASK}.primary"].payload == {"adapter": None, "previous": None}
    await deployer.compare_and_label(range(100, 110), "refund")
    await deployer.handlers.on_evaluated(of_another_base("n2"))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("n2", Stage.SHADOW)
    assert "reset" not in deployer.last.reason


async def test_a_primary_of_another_base_model_stays_while_no_engine_serves_the_candidate() -> None:
    deployer = await promoted()
    deployer.adapters.is_away = True
    await deployer.handlers.on_evaluated(of_another_base("n1"))
    assert deployer.admin.serves(TASK) == "a1"
    deployer.adapters.is_away = False
    deployer.admin.crash_at = 0
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.tick(TASK)
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("n1", Stage.SHADOW)
    assert (deployer.last.paused, deployer.admin.serves(TASK)) == ("", None)


async def test_a_primary_is_reset_by_the_next_candidate_where_one_ended_before_its_flags_were_set() -> None:
    """The record said that the base model serves and the flag an adapter: each later candidate was paused."""
    deployer = await promoted()
    deployer.admin.crash_at = 0
    await deployer.handlers.on_evaluated(of_another_base("n1"))
    deployer.admin.crash_at = None
    deployer.adapters.refused.add("n1")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("n1", Stage.REJECTED)
    assert deployer.admin.serves(TASK) == "a1", "engines may serve the former base model still"
    await deployer.handlers.on_evaluated(of_another_base("n2"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.candidate_adapter, deployer.last.stage, deployer.last.paused) == ("n2", Stage.SHADOW, "")
    assert deployer.admin.serves(TASK) is None


async def test_a_primary_that_a_hand_set_is_not_reset_with_the_base_model() -> None:
    deployer = await promoted()
    own = Strategy(variant="primary", payload={"adapter": "by-hand", "previous": None})
    await deployer.admin.set_strategy(f"ratchet.{TASK}.primary", own)
    await deployer.handlers.on_evaluated(of_another_base("n1"))
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.admin.serves(TASK)) == (Stage.SHADOW, "by-hand")
    assert deployer.last.paused == "primary's payload is {'adapter': 'by-hand', 'previous': None}, by hand"


@pytest.mark.parametrize("against", ["a1", None])
async def test_a_candidate_that_serves_already_ends_at_once_and_draws_no_level(against: str | None) -> None:
    deployer = await promoted()
    await deployer.handlers.on_evaluated(evaluated("a1", against=against))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.REJECTED)
    assert deployer.last.reason == "nothing to promote: it serves already"
    assert (deployer.last.primary_adapter, deployer.admin.serves(TASK)) == ("a1", "a1")
    assert (requests(deployer), len(await deployer.rollouts.draws(TASK))) == ([], 1)
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a2", Stage.SHADOW)
