"""A rollout from shadow to its end: what advances it, what rejects it, and what a crash or an operator changes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.base import Variant, utc_now
from schemas.conversation import Answer, ToolCall
from schemas.rollouts import Stage
from schemas.tasks import Severity, TaskChanged, TaskKind
from services.deployer.clients import FlagState
from services.deployer.domain import Pair, label_outcome, ticket_outcome
from services.deployer.statistics.guards import Guard
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


async def test_the_next_candidate_inherits_the_primary_and_the_alpha_of_a_promotion() -> None:
    deployer = await in_shadow(canary_wealth=2, min_canary_users=0)
    first = deployer.last.evidence.alpha
    await deployer.compare_and_label(range(20), "delivery")
    assert deployer.last.stage is Stage.PROMOTED
    await deployer.handlers.on_evaluated(evaluated("a2", against="a1"))
    assert deployer.last.primary_adapter == "a1"
    assert deployer.last.evidence.alpha == pytest.approx(first, rel=1e-4), "given back, and nothing has accrued since"
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
    assert deployer.last.stage is Stage.REJECTED
    assert deployer.last.reason == "nothing to promote: its answers are production's in all 1000 pairs"
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.compare(pair(deployer.last, 5_000, ("refund", "delivery")))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "refund")) for number in range(1_001)])
    assert deployer.last.stage is Stage.SHADOW, "one that differs is something to decide about"


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


async def test_one_text_sent_again_and_again_by_nobody_known_bets_once_and_the_evidence_says_so() -> None:
    deployer = await in_shadow(canary_wealth=2)
    same = {"subject": "conversation-1", "user_hash": None, "identified": False}
    await deployer.compare(
        *[pair(deployer.last, number, ("refund", "delivery")).model_copy(update=same) for number in range(19)]
    )
    (asked,) = deployer.publisher.questions
    await deployer.handlers.on_correction(answer(asked, label="delivery"))
    await deployer.compare_and_label(range(30, 34), "delivery")
    assert deployer.last.stage is Stage.CANARY
    assert deployer.last.evidence.unidentified == 1
    assert "(1 of unknown authors, who may be few)" in deployer.last.reason


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


async def test_a_persons_newest_answer_stands_until_the_rollout_ends() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    (asked,) = deployer.publisher.questions
    first = answer(asked, label="delivery")
    later = {"occurred_at": first.occurred_at + timedelta(minutes=5), "label": "refund"}
    for given in (first, first.model_copy(update=later), first):
        await deployer.handlers.on_correction(given)
    rollout = deployer.last.rollout_id
    assert (await deployer.ledger.load(rollout)).outcomes == [-1.0], "edited, and the redelivered first one is older"
    await deployer.transitions.end(TASK, Stage.INCONCLUSIVE, "the task changed")
    last = {"occurred_at": first.occurred_at + timedelta(minutes=9), "label": "delivery"}
    await deployer.handlers.on_correction(first.model_copy(update=last))
    assert (await deployer.ledger.load(rollout)).outcomes == [-1.0]


async def test_the_state_of_each_task_is_published_again_at_the_start_as_the_same_event() -> None:
    deployer = await in_shadow()
    await deployer.handlers.on_evaluated(evaluated("a2", passed=False))
    before = list(deployer.publisher.events)
    sent = deployer.publisher.sent
    deployer.publisher.events.clear()
    await deployer.handlers.publish_again()
    assert (deployer.publisher.sent, list(deployer.publisher.events)) == (sent + 1, before[-1:])
    assert (deployer.last.candidate_adapter, deployer.last.stage) == ("a1", Stage.SHADOW)


async def test_what_people_are_asked_is_blind_and_in_random_order() -> None:
    deployer = Deployer()
    await deployer.handlers.on_evaluated(evaluated("the-candidate"))
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(40)])
    orders = {tuple(side.text for side in asked.answers) for asked in deployer.publisher.questions}
    assert orders == {("refund", "delivery"), ("delivery", "refund")}
    assert all("the-candidate" not in asked.model_dump_json() for asked in deployer.publisher.questions)
    assert all(asked.labels == ("delivery", "refund", "login") for asked in deployer.publisher.questions)


@pytest.mark.parametrize(
    ("second_answer", "outcome"),
    [({"preference": "cannot_tell"}, 0.0), ({"label": "delivery"}, 1.0), ({"label": "refund"}, -1.0)],
)
async def test_cannot_tell_passes_the_ticket_to_a_second_person_whose_answer_settles_it(
    second_answer: dict[str, Any], outcome: float
) -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    (first,) = deployer.publisher.questions
    for _ in range(2):
        await deployer.handlers.on_correction(answer(first, preference="cannot_tell"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [None], "redelivered, it is one answer"
    second = deployer.publisher.questions[-1]
    assert (second.ticket_id, second.request_id) == (first.ticket_id, f"{first.ticket_id}.2")
    await deployer.handlers.on_correction(answer(second, reviewer="bob", **second_answer))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [outcome]
    assert len(deployer.publisher.questions) == 2


async def test_a_team_of_one_that_cannot_tell_twice_leaves_no_ticket_open() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    for _ in range(2):
        await deployer.handlers.on_correction(answer(deployer.publisher.questions[-1], preference="cannot_tell"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [0.0]


async def test_labels_publish_the_evidence_again_at_most_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    deployer = await in_shadow()
    start, moves = deployer.last, len(deployer.rollouts.moves)
    told = len(deployer.publisher.changes)

    async def tick(minutes: float) -> int:
        now = start.occurred_at + timedelta(minutes=minutes)
        monkeypatch.setattr("services.deployer.transitions.utc_now", lambda: now)
        await deployer.handlers.tick(TASK)
        return len(deployer.publisher.changes) - told

    await deployer.compare(*[pair(start, number, ("refund", "delivery")) for number in range(3)])
    await deployer.compare(pair(start, 9, ("refund", "refund")))
    assert await tick(1.1) == 0, "nothing new is known"
    asked = deployer.publisher.questions
    await deployer.handlers.on_correction(answer(asked[0], label="delivery"))
    assert await tick(1.9) == 0, "a minute has not passed"
    assert await tick(2.2) == 1
    assert await tick(4) == 1, "no label came in"
    await deployer.handlers.on_correction(answer(asked[1], label="refund"))
    await deployer.compare(pair(start, 8, ("refund", None)))  # Lost without a label: the candidate failed.
    assert await tick(5.5) == 2
    events = deployer.publisher.changes[told:]
    evidence = [event.evidence for event in events]
    assert [(e.labels, e.wins, e.losses, e.ties, e.pending) for e in evidence] == [
        (1, 1, 0, 1, 2), (2, 1, 2, 1, 1),
    ]  # fmt: skip
    for event in events:
        assert event.occurred_at > start.occurred_at
        assert event.model_copy(
            update={name: getattr(start, name) for name in ("event_id", "occurred_at", "evidence")}
        ) == start, "nothing else of the last change is new"  # fmt: skip
    assert len(deployer.rollouts.moves) == moves, "it is no move"
    deployer.transitions._published.clear()
    sent = deployer.publisher.sent
    assert (await tick(7), deployer.publisher.sent) == (2, sent + 1), "after a restart it is the same event"


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
    assert label_outcome(kind, None, "cannot_tell", better) is None
    for first, a, b in ((True, 1, -1), (False, -1, 1)):
        sides = Pair(Answer(text="p"), Answer(text="c"), candidate_first=first)
        outcomes = [label_outcome(TaskKind.GENERATION, None, p, sides) for p in ("a", "b", "both_right", "cannot_tell")]
        assert outcomes == [a, b, 0, None]
        assert [side.text for side in sides.sides] == (["c", "p"] if first else ["p", "c"])
    assert ticket_outcome([1.0, -1.0, 1.0]) == pytest.approx(1 / 3)
    assert ticket_outcome([None]) is None


def test_a_confusion_that_is_less_severe_bets_less() -> None:
    mild = (Severity(truth="refund", answer="delivery", weight=0.25),)
    kind = TaskKind.CLASSIFICATION

    def outcome(truth: str, production: str, candidate: str | None) -> float | None:
        answered = None if candidate is None else Answer(text=candidate)
        return label_outcome(kind, truth, None, Pair(Answer(text=production), answered, True), mild)

    assert outcome("refund", "Delivery", "refund") == 0.25
    assert outcome("refund", "refund", "delivery") == -0.25
    assert outcome("refund", "login", "delivery") == 0.75, "both are wrong, production worse"
    assert outcome("delivery", "refund", "delivery") == 1.0, "the other way round is another confusion"
    assert outcome("refund", "delivery", None) == -0.75, "no answer is as bad as any wrong one"


async def test_the_severity_of_a_task_decides_what_a_label_bets() -> None:
    deployer = await in_shadow(severity=[{"truth": "refund", "answer": "delivery", "weight": 0.25}])
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    await deployer.handlers.on_correction(answer(deployer.publisher.questions[0], label="refund"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [-0.25]


@pytest.mark.parametrize(
    "severity",
    [
        [{"truth": "refund", "answer": "unknown", "weight": 0.5}],
        [{"truth": "refund", "answer": "refund", "weight": 0.5}],
        [{"truth": "refund", "answer": "login", "weight": 0.5}] * 2,
        [{"truth": "refund", "answer": "login", "weight": 1.5}],
    ],
)
def test_a_severity_that_weighs_no_confusion_of_the_task_is_refused(severity: list[dict[str, object]]) -> None:
    with pytest.raises(ValidationError, match="severity"):
        spec(severity=severity)


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


async def test_a_promotion_that_waits_for_a_replica_is_guarded_and_taken_back() -> None:
    """Thirty canary users with 502 counted as none meanwhile, and it was promoted when the replica returned."""
    deployer = await in_shadow()
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
    assert deployer.admin.serves(TASK, in_canary=True) is None


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
    writes = deployer.admin.writes
    await deployer.handlers.on_evaluated(event)
    assert len(deployer.publisher.changes) == 2
    await deployer.handlers.tick(TASK)
    assert deployer.admin.writes == writes


@pytest.mark.parametrize("crash_at", range(10))
async def test_a_crash_between_any_two_writes_is_repaired_at_the_next_tick(crash_at: int) -> None:
    deployer = Deployer()
    deployer.admin.crash_at = crash_at
    event = evaluated(canary_wealth=2, min_canary_users=0)
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
    assert [change.stage for change in deployer.publisher.changes] == [
        Stage.QUEUED, Stage.SHADOW, Stage.CANARY, Stage.PROMOTED,
    ]  # fmt: skip
    assert deployer.admin.serves(TASK) == "a1"
    assert not deployer.admin.flags[f"ratchet.{TASK}.canary"].enabled


async def test_a_crash_before_the_event_publishes_the_same_event_later() -> None:
    deployer = Deployer()
    deployer.publisher.is_away = True
    await deployer.handlers.on_evaluated(evaluated())
    deployer.publisher.is_away = False
    await deployer.handlers.tick(TASK)
    await deployer.handlers.tick(TASK)
    assert [change.stage for change in deployer.publisher.changes] == [Stage.QUEUED, Stage.SHADOW]
    assert deployer.publisher.sent == 2


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
    await deployer.transitions.end(TASK, Stage.INCONCLUSIVE, "the task changed")
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.handlers.on_correction(answer(late, label="delivery"))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == []
    assert deployer.last.stage is Stage.SHADOW


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


async def test_pairs_and_labels_are_stored_while_unleash_is_away_and_decided_at_a_later_tick() -> None:
    deployer = await in_shadow()
    deployer.admin.crash_at = 0
    await deployer.compare_and_label(range(10), "delivery")
    assert deployer.handlers.trouble == {TASK: "Unleash is away"}
    deployer.admin.crash_at = None
    await deployer.handlers.tick(TASK)
    assert (deployer.last.stage, deployer.last.evidence.wins) == (Stage.CANARY, 10)
