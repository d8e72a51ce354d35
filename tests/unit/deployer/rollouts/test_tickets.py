"""Which pairs become tickets, what people are asked about them, and what their answers are worth."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from schemas.conversation import Answer, ToolCall
from schemas.rollouts import Stage
from schemas.task_settings import RolloutSettings, Severity
from schemas.tasks import TaskKind
from services.deployer.domain import Ledger, Ticket, decide
from services.deployer.tickets import Pair, label_outcome, ticket_outcome
from tests.unit.deployer.fakes import Deployer, answer, deliveries, evaluated, in_shadow, pair, pair_with_tools, spec

TASK = "support-desk"


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
        await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[0], label="delivery")]))
    ledger = await deployer.ledger.load(deployer.last.rollout_id)
    assert ledger.outcomes == [1.0, None, None]


async def test_labels_of_one_batch_all_count_and_are_decided_about_once() -> None:
    """One after the other, each with a decision of its own, they came in more slowly than people gave them."""
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", "delivery")) for number in range(3)])
    first, second, third = deployer.publisher.questions
    unknown = answer(second, label="refund").model_copy(update={"ticket_id": "ticket-unknown"})
    loads, load = [0], deployer.ledger.load

    async def counted(rollout_id: str, *, fresh: bool = False) -> Ledger:
        loads[0] += 1
        return await load(rollout_id, fresh=fresh)

    deployer.ledger.load = counted  # type: ignore[method-assign]
    first_given = answer(first, label="delivery")
    given = [first_given, unknown, answer(second, label="refund"), answer(third, label="delivery")]
    await deployer.handlers.on_corrections(deliveries(given))
    assert loads == [1]
    assert (await load(deployer.last.rollout_id)).outcomes == [1.0, -1.0, 1.0]
    of_another = answer(first, label="refund").model_copy(update={"task": "another-desk"})
    later = {"occurred_at": first_given.occurred_at + timedelta(minutes=5)}
    await deployer.handlers.on_corrections(
        deliveries([of_another, answer(first, label="refund").model_copy(update=later)])
    )
    assert (await load(deployer.last.rollout_id)).outcomes == [-1.0, -1.0, 1.0], (
        "the second task of a batch counts, too"
    )


async def test_a_user_has_one_ticket_for_the_first_discordant_pair() -> None:
    deployer = await in_shadow()
    answers = ("refund", "delivery")
    await deployer.compare(*[pair(deployer.last, number, answers, user="heavy") for number in range(5)])
    await deployer.compare(*[pair(deployer.last, number, answers, user=None) for number in range(5, 8)])
    assert [asked.prediction_id[-1] for asked in deployer.publisher.questions] == ["0", "5", "6", "7"]


async def test_of_a_subjects_pairs_that_are_read_at_once_the_first_request_bets() -> None:
    """They may be in two partitions, and the later one read first, if the candidate was slow to answer the earlier."""
    deployer = await in_shadow()
    earlier, later = (pair(deployer.last, number, ("refund", "delivery"), user="ann") for number in (1, 2))
    later = later.model_copy(update={"logged_at": earlier.logged_at + timedelta(seconds=1)})
    await deployer.compare(later, earlier)
    assert [asked.prediction_id[-1] for asked in deployer.publisher.questions] == ["1"]


async def test_one_text_sent_again_and_again_by_nobody_known_bets_once_and_the_evidence_says_so() -> None:
    deployer = await in_shadow(canary_wealth=2)
    same = {"subject": "conversation-1", "user_hash": None, "identified": False}
    await deployer.compare(
        *[pair(deployer.last, number, ("refund", "delivery")).model_copy(update=same) for number in range(19)]
    )
    (asked,) = deployer.publisher.questions
    await deployer.handlers.on_corrections(deliveries([answer(asked, label="delivery")]))
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
        await deployer.handlers.on_corrections(
            deliveries([answer(deployer.publisher.questions[number], label="delivery")])
        )
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


async def test_a_persons_newest_answer_stands_until_the_rollout_ends() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    (asked,) = deployer.publisher.questions
    first = answer(asked, label="delivery")
    later = {"occurred_at": first.occurred_at + timedelta(minutes=5), "label": "refund"}
    for given in (first, first.model_copy(update=later), first):
        await deployer.handlers.on_corrections(deliveries([given]))
    rollout = deployer.last.rollout_id
    assert (await deployer.ledger.load(rollout)).outcomes == [-1.0], "edited, and the redelivered first one is older"
    await deployer.transitions.end(TASK, Stage.INCONCLUSIVE, "the task changed")
    last = {"occurred_at": first.occurred_at + timedelta(minutes=9), "label": "delivery"}
    await deployer.handlers.on_corrections(deliveries([first.model_copy(update=last)]))
    assert (await deployer.ledger.load(rollout)).outcomes == [-1.0]


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
        await deployer.handlers.on_corrections(deliveries([answer(first, preference="cannot_tell")]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [None], "redelivered, it is one answer"
    second = deployer.publisher.questions[-1]
    assert (second.ticket_id, second.request_id) == (first.ticket_id, f"{first.ticket_id}.2")
    await deployer.handlers.on_corrections(deliveries([answer(second, reviewer="bob", **second_answer)]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [outcome]
    assert len(deployer.publisher.questions) == 2


async def test_a_team_of_one_that_cannot_tell_twice_leaves_no_ticket_open() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    for _ in range(2):
        await deployer.handlers.on_corrections(
            deliveries([answer(deployer.publisher.questions[-1], preference="cannot_tell")])
        )
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [0.0]


async def test_an_ordinary_correction_is_not_evidence() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    ordinary = answer(deployer.publisher.questions[0], label="delivery").model_copy(
        update={"ticket_id": None, "purpose": "low_confidence"}
    )
    await deployer.handlers.on_corrections(deliveries([ordinary]))
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


def test_a_label_in_another_unicode_form_is_the_same_truth() -> None:
    decomposed = Pair(Answer(text="cafe\u0301"), Answer(text="bar"), True)
    assert label_outcome(TaskKind.CLASSIFICATION, "Caf\u00e9", None, decomposed) == -1.0


async def test_the_severity_of_a_task_decides_what_a_label_bets() -> None:
    deployer = await in_shadow(severity=[{"truth": "refund", "answer": "delivery", "weight": 0.25}])
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    await deployer.handlers.on_corrections(deliveries([answer(deployer.publisher.questions[0], label="refund")]))
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


async def test_of_two_sets_of_labels_people_say_which_is_better() -> None:
    deployer, verdict = Deployer(), evaluated()
    sets = verdict.spec.model_copy(update={"kind": TaskKind.MULTI_LABEL})
    await deployer.handlers.on_evaluated(verdict.model_copy(update={"spec": sets}))
    await deployer.compare(pair(deployer.last, 1, ('["refund"]', '["delivery", "refund"]')))
    (asked,) = deployer.publisher.questions
    assert asked.labels == ()  # Not one of them: two answers without labels are compared.
    candidate = "a" if asked.answers[0].text == '["delivery", "refund"]' else "b"
    await deployer.handlers.on_corrections(deliveries([answer(asked, preference=candidate)]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == [1.0]


async def test_a_conversation_that_was_cut_says_so_in_the_question() -> None:
    deployer = await in_shadow()
    event = pair(deployer.last, 1, ("refund", "delivery"))
    cut = event.model_copy(update={"call": event.call.model_copy(update={"truncated": True})})
    await deployer.compare(cut)
    (asked,) = deployer.publisher.questions
    assert asked.call.truncated


async def test_a_label_decides_for_its_own_rollout_only() -> None:
    deployer = await in_shadow()
    await deployer.compare(pair(deployer.last, 1, ("refund", "delivery")))
    late = deployer.publisher.questions[0]
    await deployer.transitions.end(TASK, Stage.INCONCLUSIVE, "the task changed")
    await deployer.handlers.on_evaluated(evaluated("a2"))
    await deployer.handlers.on_corrections(deliveries([answer(late, label="delivery")]))
    assert (await deployer.ledger.load(deployer.last.rollout_id)).outcomes == []
    assert deployer.last.stage is Stage.SHADOW


async def test_pairs_that_wait_for_a_ticket_count_as_won_in_harm_and_futility_in_the_order_of_the_pairs() -> None:
    """A candidate's failures are tickets at once: 45 of them after 300 pairs that nobody had judged yet ended it."""
    deployer = Deployer(max_open=40)
    await deployer.handlers.on_evaluated(evaluated())
    rollout = deployer.last
    await deployer.compare(*[pair(rollout, number, ("refund", "delivery")) for number in range(300)])
    await deployer.compare(*[pair(rollout, number, ("refund", None)) for number in range(1_000, 1_045)])
    assert deployer.last.stage is Stage.SHADOW
    ledger = await deployer.ledger.load(rollout.rollout_id)
    assert (len(ledger.tickets), ledger.in_turn) == (85, [None] * 300 + [-1.0] * 45)
    for asked in list(deployer.publisher.questions):
        await deployer.handlers.on_corrections(deliveries([answer(asked, label="refund")]))
    assert deployer.last.stage is Stage.REJECTED, "losses before the pairs that wait are no less than they are"
    assert deployer.last.evidence.losses < 45 + 40


def test_failures_that_are_tickets_at_once_end_no_candidate_while_older_pairs_wait_for_theirs() -> None:
    """So in harm, too, whose wealth would be that of 45 losses in a row."""
    failures, settings = [Ticket(-1.0, asked=False, number=100 + n) for n in range(45)], RolloutSettings()
    assert decide(Stage.SHADOW, Ledger(failures, waiting=range(100)), 0.001, settings) is None
    ended = decide(Stage.SHADOW, Ledger(failures), 0.001, settings)
    assert ended is not None and ended.stage is Stage.REJECTED


async def test_failures_alone_end_a_candidate_of_which_nothing_waits() -> None:
    deployer = await in_shadow()
    await deployer.compare(*[pair(deployer.last, number, ("refund", None)) for number in range(40)])
    assert deployer.last.stage is Stage.REJECTED
