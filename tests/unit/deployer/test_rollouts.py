"""A rollout from shadow to its end: what advances it, what rejects it, and what a crash or an operator changes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from schemas.base import Variant, utc_now
from schemas.conversation import Answer, ToolCall
from schemas.rollouts import Stage
from schemas.tasks import TaskChanged, TaskKind
from services.deployer.clients import FlagState
from services.deployer.domain import Pair, label_outcome, ticket_outcome
from shared.errors import DependencyUnavailable
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, observed, pair, pair_with_tools, spec

TASK = "support-desk"


async def in_shadow(**rollout: object) -> Deployer:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(**rollout))
    return deployer


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
    assert deployer.last.stage is Stage.CANARY, "the canary has not answered enough requests"
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
    assert [change.stage for change in deployer.publisher.changes] == [Stage.SHADOW, Stage.CANARY, Stage.PROMOTED]


async def test_the_next_candidate_inherits_the_primary_and_the_alpha_of_a_promotion() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_requests=0)
    first = deployer.last.evidence.alpha
    await deployer.compare_and_label(range(20), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    await deployer.handlers.on_evaluated(evaluated("a2"))
    assert deployer.last.primary_adapter == "a1"
    assert deployer.last.evidence.alpha == pytest.approx(2 * first)
    assert deployer.last.evidence.wealth == 1.0


async def test_a_candidate_that_fails_an_offline_gate_is_rejected_and_changes_no_flag() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated(passed=False))
    assert deployer.last.stage is Stage.REJECTED
    assert "min_gain (-0.1, required >= 0)" in deployer.last.reason
    assert "accuracy 0.200 against production's 0.300" in deployer.last.reason
    assert deployer.admin.flags == {}


async def test_a_worse_candidate_is_rejected_and_the_primary_stays() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(7), "refund")
    assert deployer.last.stage is Stage.REJECTED
    assert "0 wins, 7 losses" in deployer.last.reason
    assert deployer.admin.serves(TASK, in_canary=True) is None
    await deployer.compare(pair(deployer.publisher.changes[0], 99, ("refund", "delivery")))
    assert len(deployer.publisher.questions) == 7, "an ended rollout asks no questions"


async def test_a_candidate_is_rejected_when_its_labels_are_spent_without_proof() -> None:
    deployer = await in_shadow(max_labels=4)
    await deployer.compare_and_label(range(6), "login")
    assert len(deployer.publisher.questions) == 4
    assert deployer.last.stage is Stage.REJECTED
    assert "all 4 labels are spent" in deployer.last.reason


async def test_a_pair_that_agrees_asks_nobody_and_counts_as_a_tie() -> None:
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(30)])
    assert deployer.publisher.questions == []
    await deployer.compare_and_label(range(30, 40), "delivery")
    assert (deployer.last.stage, deployer.last.evidence.ties) == (Stage.CANARY, 30)


async def test_a_redelivered_pair_and_a_redelivered_label_bet_once() -> None:
    deployer = await in_shadow()
    events = [pair(deployer.last, number, ("refund", "delivery")) for number in range(3)]
    await deployer.compare(*events)
    await deployer.compare(*events)
    assert len(deployer.publisher.questions) == 3
    for _ in range(5):
        await deployer.handlers.on_correction(answer(deployer.publisher.questions[0], label="delivery"))
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert ledger.outcomes == [1.0, None, None]


async def test_a_user_has_one_ticket_for_the_first_discordant_pair() -> None:
    deployer = await in_shadow()
    answers = ("refund", "delivery")
    await deployer.compare(*[pair(deployer.last, number, answers, user="heavy") for number in range(5)])
    await deployer.compare(*[pair(deployer.last, number, answers, user=None) for number in range(5, 8)])
    assert [asked.prediction_id[-1] for asked in deployer.publisher.questions] == ["0", "5", "6", "7"]


async def test_only_a_few_tickets_are_open_at_once_and_the_next_pairs_wait_in_order() -> None:
    deployer = Deployer(max_open=3)
    await deployer.handlers.on_evaluated(evaluated())
    pairs = [pair(deployer.last, number, ("refund", "delivery")) for number in range(12)]
    await deployer.compare(*pairs)
    assert [asked.prediction_id[-1] for asked in deployer.publisher.questions] == ["0", "1", "2"]
    await deployer.compare(*pairs)
    for number in range(9):
        await deployer.handlers.on_correction(answer(deployer.publisher.questions[number], label="delivery"))
        assert len(deployer.publisher.questions) == number + 4
    assert len((await deployer.ledger.load(deployer.last.rollout_id)).tickets) == 12


async def test_a_user_whose_first_pair_waits_does_not_bet_by_a_later_one() -> None:
    deployer = Deployer(max_open=1)
    await deployer.handlers.on_evaluated(evaluated())
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    await deployer.compare(pair(deployer.last, 2, ("refund", "delivery"), user="ann"))
    await deployer.compare(pair(deployer.last, 3, ("refund", None), user="ann"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [None]


async def test_a_candidate_that_errs_has_lost_and_nobody_is_asked() -> None:
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", None)) for number in range(7)])
    assert deployer.publisher.questions == []
    assert deployer.last.stage is Stage.REJECTED
    assert deployer.last.evidence.losses == 7


async def test_what_people_are_asked_is_blind_and_in_random_order() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated("the-candidate"))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(40)])
    orders = {tuple(side.text for side in asked.answers) for asked in deployer.publisher.questions}
    assert orders == {("refund", "delivery"), ("delivery", "refund")}
    assert all("the-candidate" not in asked.model_dump_json() for asked in deployer.publisher.questions)
    assert all(asked.labels == ("delivery", "refund", "login") for asked in deployer.publisher.questions)


async def test_cannot_tell_passes_the_ticket_to_a_second_person() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    (first,) = deployer.publisher.questions
    await deployer.handlers.on_correction(answer(first, preference="cannot_tell"))
    second = deployer.publisher.questions[-1]
    assert (second.ticket_id, second.request_id != first.request_id) == (first.ticket_id, True)
    await deployer.handlers.on_correction(answer(second, preference="cannot_tell", reviewer="bob"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [0.0]


async def test_an_ordinary_correction_is_not_evidence() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    ordinary = answer(deployer.publisher.questions[0], label="delivery").model_copy(
        update={"ticket_id": None, "purpose": "low_confidence"}
    )
    await deployer.handlers.on_correction(ordinary)
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [None]


def test_a_label_is_the_truth_and_a_preference_is_mapped_through_the_hidden_sides() -> None:
    better = Pair(Answer(text="refund"), Answer(text="Delivery "), candidate_first=True)
    kind = TaskKind.CLASSIFICATION
    assert [label_outcome(kind, label, None, better) for label in ("delivery", "refund", "login")] == [1, -1, 0]
    for first, a, b in ((True, 1, -1), (False, -1, 1)):
        sides = Pair(Answer(text="p"), Answer(text="c"), candidate_first=first)
        outcomes = [label_outcome(TaskKind.GENERATION, None, p, sides) for p in ("a", "b", "both_right", "cannot_tell")]
        assert outcomes == [a, b, 0, None]
        assert [side.text for side in sides.sides] == (["c", "p"] if first else ["p", "c"])
    assert ticket_outcome([1.0, -1.0, 1.0]) == pytest.approx(1 / 3)
    assert ticket_outcome([None]) is None


def test_an_answer_that_is_a_tool_call_is_right_by_its_text_and_one_that_is_missing_never_is() -> None:
    called = Answer(tool_calls=(ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1"),))
    kind = TaskKind.CLASSIFICATION
    assert label_outcome(kind, called.plain, None, Pair(Answer(text="refund"), called, candidate_first=True)) == 1
    assert label_outcome(kind, called.plain, None, Pair(called, None, candidate_first=True)) == -1


async def test_a_conversation_with_tools_and_its_answers_are_asked_about_as_they_are() -> None:
    deployer = await in_shadow()
    compared = pair_with_tools(deployer.last)
    await deployer.compare(compared)
    (asked,) = deployer.publisher.questions
    assert asked.call == compared.call
    assert sorted(asked.answers, key=str) == sorted((compared.production_answer, compared.candidate_answer), key=str)


async def test_a_conversation_that_was_cut_says_so_in_the_question() -> None:
    deployer = await in_shadow()
    event = pair(deployer.last, 1, ("refund", "delivery"))
    cut = event.model_copy(update={"call": event.call.model_copy(update={"truncated": True})})
    await deployer.compare(cut)
    (asked,) = deployer.publisher.questions
    assert asked.call.truncated


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


async def test_failures_in_every_arm_do_not_count_against_the_canary() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(10), "delivery")
    events = [observed(deployer.last, n, Variant.CANARY if n == 0 else Variant.BASE, 503) for n in range(20)]
    await deployer.handlers.on_observed(deliveries(events))
    await deployer.handlers.on_observed(deliveries(events))
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY
    assert (await deployer.ledger.load(deployer.last.rollout_id)).canary.bad_users == 20


async def test_a_newer_candidate_supersedes_an_older_one() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(evaluated("a2"))
    stages = [(change.candidate_adapter, change.stage) for change in deployer.publisher.changes]
    assert stages == [("a1", Stage.SHADOW), ("a1", Stage.REJECTED), ("a2", Stage.SHADOW)]
    assert "superseded" in deployer.publisher.changes[1].reason
    assert deployer.admin.flags[f"ratchet.{TASK}.shadow"].enabled


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
    await deployer.handlers.on_evaluated(evaluated("a2"))
    writes = deployer.admin.writes
    await deployer.handlers.on_evaluated(event)
    assert deployer.last.candidate_adapter == "a2"
    assert len(deployer.publisher.changes) == 3
    await deployer.handlers.tick(TASK)
    assert deployer.admin.writes == writes


@pytest.mark.parametrize("crash_at", range(10))
async def test_a_crash_between_any_two_writes_is_repaired_at_the_next_tick(crash_at: int) -> None:
    deployer = Deployer()
    deployer.admin.crash_at = crash_at
    event = evaluated(canary_wealth=2, min_canary_requests=0)
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
    assert [change.stage for change in deployer.publisher.changes] == [Stage.SHADOW, Stage.CANARY, Stage.PROMOTED]
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.canary"].enabled


async def test_a_crash_before_the_event_publishes_the_same_event_later() -> None:
    deployer = Deployer()
    deployer.publisher.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.on_evaluated(evaluated())
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    await deployer.handlers.tick(TASK)
    assert [change.stage for change in deployer.publisher.changes] == [Stage.SHADOW]
    assert deployer.publisher.sent == 1


async def test_an_adapter_that_vllm_refuses_never_enters_shadow_and_the_older_one_stays() -> None:
    deployer = await in_shadow()
    deployer.adapters.refused.add("a2")
    event = evaluated("a2")
    for _ in range(2):
        await deployer.handlers.on_evaluated(event)
    refused, stays = deployer.publisher.changes[1:]
    assert (refused.candidate_adapter, refused.stage) == ("a2", Stage.REJECTED)
    assert refused.reason.startswith("vLLM does not serve a2: rank of a2 is too high. ")
    assert (stays.candidate_adapter, stays.stage) == ("a1", Stage.SHADOW)
    assert stays.reason == "stays in shadow: the newer a2 was rejected before shadow"


async def test_an_adapter_that_vllm_no_longer_serves_is_not_promoted() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(20), "delivery")
    await deployer.see_canary(5)
    deployer.adapters.refused.add("a1")
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert deployer.admin.serves(TASK, in_canary=True) is None


async def test_flags_that_an_operator_changed_are_never_written() -> None:
    deployer = await in_shadow()
    primary = f"ratchet.{TASK}.primary"
    await deployer.admin.switch(primary, False)
    writes = deployer.admin.writes
    await deployer.compare_and_label(range(12), "delivery")
    for _ in range(3):
        await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.SHADOW, "the candidate has earned the canary but waits for the operator"
    assert deployer.admin.writes == writes
    await deployer.admin.switch(primary, True)
    await deployer.handlers.tick(TASK)
    assert deployer.last.stage is Stage.CANARY


async def test_an_operators_rollback_is_published_and_the_next_candidate_starts_from_it() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_requests=0)
    await deployer.compare_and_label(range(20), "delivery")
    await deployer.handlers.on_evaluated(evaluated("a2", canary_wealth=2, min_canary_requests=0))
    await deployer.compare_and_label(range(30, 50), "delivery")
    assert deployer.admin.serves(TASK) == "a2"
    await deployer.admin.switch(f"ratchet.{TASK}.rollback", True)
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.ROLLED_BACK, "a1")
    assert deployer.admin.serves(TASK) == "a1"
    await deployer.handlers.on_evaluated(evaluated("a3"))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.SHADOW, "a1")
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.rollback"].enabled


async def test_the_end_of_a_rollback_is_published_too() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_requests=0)
    await deployer.compare_and_label(range(20), "delivery")
    for on, stage, primary in ((True, Stage.ROLLED_BACK, None), (False, Stage.PROMOTED, "a1")):
        await deployer.admin.switch(f"ratchet.{TASK}.rollback", on)
        await deployer.handlers.tick(TASK)
        assert (deployer.last.stage, deployer.last.primary_adapter) == (stage, primary)
        assert deployer.admin.serves(TASK) == primary


async def test_an_adapter_that_the_flag_served_before_any_rollout_is_the_first_primary() -> None:
    deployer = Deployer()
    strategy = {"variants": [{"name": "primary", "payload": {"value": '{"adapter": "old", "previous": null}'}}]}
    deployer.admin.flags[f"ratchet.{TASK}.primary"] = FlagState(True, (strategy,))
    await deployer.handlers.on_evaluated(evaluated())
    assert deployer.last.primary_adapter == "old"


async def test_a_changed_task_invalidates_the_comparison() -> None:
    deployer = await in_shadow()
    changed = spec().model_copy(update={"system_prompt": "Another prompt."})
    rollout = await deployer.rollouts.last_entered(TASK)
    assert rollout.is_invalidated_by(TaskChanged(task=TASK, task_revision=changed.revision, spec=changed))
    assert not rollout.is_invalidated_by(
        TaskChanged(task=TASK, task_revision=spec().revision, spec=spec(canary_percent=50))
    )
    await deployer.transitions.reject(TASK, "the task changed")
    assert (deployer.last.stage, deployer.last.reason) == (Stage.REJECTED, "the task changed")


async def test_the_same_adapter_evaluated_again_starts_a_new_rollout() -> None:
    deployer = await in_shadow()
    await deployer.compare_and_label(range(7), "refund")
    await deployer.handlers.on_evaluated(evaluated())
    assert (deployer.last.stage, deployer.last.evidence.wealth) == (Stage.SHADOW, 1.0)
    assert deployer.last.rollout_id != deployer.publisher.changes[0].rollout_id


async def test_a_label_decides_for_its_own_rollout_only() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    late = deployer.publisher.questions[0]
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.handlers.on_correction(answer(late, label="delivery"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == []
    assert deployer.last.stage is Stage.SHADOW


async def test_a_candidate_whose_artifact_was_deleted_is_rejected_when_its_verdict_is_old() -> None:
    deployer = Deployer()
    deployer.adapters.deleted.add("a1")
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.on_evaluated(evaluated().model_copy(update={"occurred_at": utc_now()}))
    long_ago = utc_now() - timedelta(hours=1)
    await deployer.handlers.on_evaluated(evaluated().model_copy(update={"occurred_at": long_ago}))
    assert (deployer.last.stage, deployer.last.primary_adapter) == (Stage.REJECTED, None)
    assert "a1 is not in the artifact store any more" in deployer.last.reason
    await deployer.handlers.on_evaluated(evaluated("a2"))
    assert (deployer.last.stage, deployer.last.candidate_adapter) == (Stage.SHADOW, "a2")


async def test_a_candidate_waits_for_an_unavailable_vllm_without_limit() -> None:
    deployer = Deployer()
    deployer.adapters.is_away = True
    with pytest.raises(DependencyUnavailable):
        await deployer.handlers.on_evaluated(
            evaluated().model_copy(update={"occurred_at": utc_now() - timedelta(days=1)})
        )
