"""The checks of a run of rollouts find every kind of fault: what cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.deployer.statistics import betting
from tests.chaos.rollouts.checks import scenario
from tests.chaos.rollouts.checks.checker import check
from tests.chaos.rollouts.checks.history import Answer, Change, EngineState, Flags, History, Move, Request, Sample
from tests.chaos.rollouts.checks.scenario import ENGINE, TASK, right_history
from tests.chaos.rollouts.checks.wealth import binomial_mixture, max_futility, max_wealth, wealth


def problems(history: History) -> list[str]:
    return [problem for found in check(history).values() for problem in found]


def test_a_history_in_which_everything_is_right_has_no_problem() -> None:
    assert problems(right_history()) == []


def _move(history: History, candidate: str, of: str, **changes: Any) -> None:
    """Change a move, and the event about it; keys of the evidence are given as `said_…`."""
    moves = list(history.moves)
    index = next(i for i, move in enumerate(moves) if (move.candidate, move.stage) == (candidate, of))
    said = {name.removeprefix("said_"): changes.pop(name) for name in list(changes) if name.startswith("said_")}
    moves[index] = replace(moves[index], **changes, evidence={**moves[index].evidence, **said})
    history.moves = moves


def _set_stage(history: History, candidate: str, stage: str, new: str, reason: str = "") -> None:
    _move(history, candidate, stage, stage=new, reason=reason)
    history.changes = [
        replace(change, stage=new) if (change.rollout_id, change.stage) == (f"rollout-{candidate}", stage) else change
        for change in history.changes
    ]  # fmt: skip


def _fewer_answers(history: History) -> None:
    """The canary began when ten tickets had an answer, and claims the wealth of thirty."""
    history.answers = [replace(answer, at=answer.at + 20) for answer in history.answers]


def _harm_now(history: History) -> None:
    """What was once a proof is followed by as many losses."""
    _move(history, "good", "promoted", said_losses=45)
    losses = range(45, 90)
    history.pairs = [*history.pairs, *(replace(history.pairs[0], pair_id=f"pair-l{n}") for n in losses)]
    extra = [
        replace(history.entries[0], pair_id=f"pair-l{n}", subject=f"l{n}", ticket_id=f"l{n}", order=n + 1, outcome=-1.0)
        for n in losses
    ]  # fmt: skip
    history.entries = [*history.entries, *extra]
    history.answers = [*history.answers, *(Answer(f"l{n}", f"l{n}", "ann", "refund", 150.0, (0, n)) for n in losses)]


def _no_canary_answers(history: History) -> None:
    history.requests = [request for request in history.requests if request.adapter != "good"]


def _refused_canary_answers(history: History) -> None:
    history.requests = [replace(r, status=400) if r.adapter == "good" else r for r in history.requests]


def _promoted_though_it_fails(history: History) -> None:
    """Sixteen more users of the canary have a failed request, which the deployer counts, and promotes it."""
    failed = [replace(r, subject=f"x{n}", status=502) for n, r in enumerate(_of_canary(history, "good"))]
    history.requests = [*history.requests, *failed]
    _move(history, "good", "promoted", said_canary_requests=26, said_canary_errors=16)


def _failures_not_counted(history: History) -> None:
    """Nine failures are as old as what arrives late may be, and the deployer says that there is none."""
    history.requests = [replace(r, status=502) if r.adapter == "good" else r for r in history.requests]


def _invented_requests(history: History) -> None:
    _move(history, "good", "promoted", said_canary_requests=17)


def _of_canary(history: History, candidate: str) -> list[Request]:
    return [request for request in history.requests if request.adapter == candidate]


def _no_failures(history: History) -> None:
    history.requests = [replace(request, status=200) for request in history.requests]


def _rejected_without_reason(history: History) -> None:
    _move(history, "bad", "rejected", reason="vLLM does not serve bad")


def _rejected_without_harm(history: History) -> None:
    history.entries = [replace(e, outcome=None) if e.rollout_id == "rollout-bad" else e for e in history.entries]
    history.answers = [a for a in history.answers if "bad" not in a.ticket_id]


def _rejected_as_alike(history: History) -> None:
    _move(history, "bad", "rejected", reason="nothing to promote: its answers are production's in all 1000 pairs")


def _inconclusive_with_labels_left(history: History) -> None:
    _set_stage(history, "bad", "rejected", "inconclusive", "all 80 labels are spent")


def _never_ended(history: History) -> None:
    history.expected = {**history.expected, "lost": TASK}


def _move_is_missing(history: History) -> None:
    history.moves = [m for m in history.moves if (m.candidate, m.stage) != ("good", "canary")]


def _two_at_once(history: History) -> None:
    _move(history, "bad", "shadow", at=150.0)


def _step_left_out(history: History) -> None:
    history.moves = [
        replace(move, percent=25) if (move.candidate, move.percent) == ("good", 50) else move for move in history.moves
    ]  # fmt: skip


def _step_before_proof(history: History) -> None:
    """The second step has the wealth of the first."""
    history.answers = [replace(a, at=a.at + 18) if "good" in a.ticket_id else a for a in history.answers]
    wealth_then = max_wealth([1.0] * 13)
    history.moves = [
        replace(move, evidence={**move.evidence, "wins": 13, "labels": 13, "wealth": wealth_then})
        if (move.candidate, move.stage) == ("good", "canary") else move for move in history.moves
    ]  # fmt: skip


def _paused(history: History) -> None:
    _move(history, "good", "promoted", paused="by hand")


def _drew_too_much(history: History) -> None:
    history.draws = [replace(d, drawn=d.drawn * 2, alpha=d.alpha * 2) for d in history.draws]


def _returned_by_one_that_lost(history: History) -> None:
    history.draws = [*history.draws[:2], replace(history.draws[2], alpha=history.draws[1].alpha)]


def _other_level(history: History) -> None:
    _move(history, "good", "promoted", said_alpha=0.05)


def _subject_twice(history: History) -> None:
    history.entries = [replace(e, subject="one") if e.rollout_id == "rollout-bad" else e for e in history.entries]


def _answer_is_lost(history: History) -> None:
    entries = list(history.entries)
    entries[0] = replace(entries[0], outcome=None)
    history.entries = entries


def _answer_is_invented(history: History) -> None:
    history.answers = list(history.answers)[1:]


def _answer_counts_otherwise(history: History) -> None:
    history.answers = [replace(history.answers[0], label="refund"), *list(history.answers)[1:]]


def _pair_is_lost(history: History) -> None:
    history.entries = [e for e in history.entries if e.ticket_id != "ticket-bad-0"]
    history.entries = [
        replace(e, order=e.order - 1) if e.order and e.rollout_id == "rollout-bad" else e for e in history.entries
    ]


def _pair_is_invented(history: History) -> None:
    history.pairs = list(history.pairs)[1:]


def _agreeing_pair_bets(history: History) -> None:
    history.entries = [replace(history.entries[0], agree=True), *list(history.entries)[1:]]


def _sample(history: History, number: int, flags: Flags | None = None, state: EngineState | None = None) -> None:
    samples = list(history.samples)
    old = samples[number]
    engines = {ENGINE: state} if state is not None else old.engines
    samples[number] = Sample(old.at, {TASK: flags or old.flags[TASK]}, engines)
    history.samples = samples


def _canary_not_loaded(history: History) -> None:
    _sample(history, 3, state=EngineState(-1_000.0, {}))


def _primary_not_proved(history: History) -> None:
    _sample(history, 5, state=EngineState(-1_000.0, {"good": 4}))


def _primary_lost_for_long(history: History) -> None:
    _sample(history, 6, state=EngineState(0.0, {"bad": 5}))


def _primary_before_promotion(history: History) -> None:
    _sample(history, 2, Flags("good", None, True))


def _canary_without_move(history: History) -> None:
    _sample(history, 6, Flags("good", "bad", True))


def _canary_stays_on(history: History) -> None:
    _sample(history, -2, Flags("good", "good", True))


def _wrong_flags_in_the_end(history: History) -> None:
    _sample(history, -1, Flags(None, None, False))


def _control_never_on(history: History) -> None:
    _sample(history, 6, Flags("good", None, False))


def _control_stays_on(history: History) -> None:
    _sample(history, -1, Flags("good", None, False, 5))


def _control_without_promotion(history: History) -> None:
    _sample(history, 2, Flags(None, None, True, 5))


def _control_of_too_many(history: History) -> None:
    _sample(history, 5, Flags("good", None, False, 50))


def _control_too_short(history: History) -> None:
    history.moves = [replace(m, at=170.0) if m.at == 180.0 else m for m in history.moves]


def _control_ended_by_nothing(history: History) -> None:
    history.moves = [
        replace(m, reason="its control has ended: a moon was full") if m.at == 180.0 else m for m in history.moves
    ]


def _control_ended_twice(history: History) -> None:
    over = next(move for move in history.moves if move.at == 180.0)
    history.moves = [*history.moves, replace(over, version=over.version + 1, at=190.0)]


def _next_one_in_its_control(history: History) -> None:
    _move(history, "bad", "shadow", at=175.0)


def _taken_back_without_failures(history: History) -> None:
    reason = "the canary fails too often: 90 of the 90 users with a failed request were in it, which has 95 % of users"
    history.moves = [
        replace(move, stage="rolled_back", reason=reason) if move.at == 180.0 else move for move in history.moves
    ]


def _taken_back_without_harm(history: History) -> None:
    reason = "it is worse by the pairs since its promotion: 12 losses and 0 wins in 12 tickets"
    history.moves = [
        replace(move, stage="rolled_back", reason=reason) if move.at == 180.0 else move for move in history.moves
    ]  # fmt: skip


def _too_many_fresh_tickets(history: History) -> None:
    for number in range(61):
        name = f"fresh-{number}"
        entry = replace(history.entries[0], pair_id=name, subject=name, ticket_id=name, order=46 + number, outcome=None)
        history.entries = [*history.entries, replace(entry, fresh=True)]
        history.pairs = [*history.pairs, replace(history.pairs[0], pair_id=name, fresh=True)]


def _fresh_pair_decides(history: History) -> None:
    """A pair from before the promotion is counted as one after it, so that its subject is not seen to bet twice."""
    history.entries = [replace(e, fresh=True) if e.ticket_id == "ticket-good-0" else e for e in history.entries]


def _never_published(history: History) -> None:
    history.changes = [change for change in history.changes if change.stage != "promoted"]


def _says_another_serves(history: History) -> None:
    history.changes = [replace(change, primary=None) for change in history.changes]


def _wrong_opponent(history: History) -> None:
    history.pairs = [replace(pair, primary=None) for pair in history.pairs]


FAULTS: dict[Callable[[History], None], str] = {
    _fewer_answers: "good, canary: it claims a wealth",
    _harm_now: "good, promoted: 45 wins and 45 losses, as they stood",
    _no_canary_answers: "good, canary: the canary of 25 % had served 0 users",
    _refused_canary_answers: "good, promoted: the canary of 50 % had served 0 users",
    _promoted_though_it_fails: "good, promoted: its guards were to end it: 16 of the 16 users with a failed request",
    _failures_not_counted: "good, promoted: it counts 10 requests, 0 of which failed, and 10 s before there were 10",
    _invented_requests: "good, promoted: it counts 17 requests, 0 of which failed, and of the canary's so far there",
    _step_left_out: "good, promoted: it went from 25 to 100 % of users",
    _step_before_proof: "good, canary: wealth",
    _no_failures: "fragile, rejected: 0 of its users had failed requests",
    _rejected_without_reason: "bad, rejected: no evidence is a reason for: vLLM does not serve bad",
    _rejected_without_harm: "bad, rejected: harm was 1",
    _rejected_as_alike: "bad, rejected: 1 pairs agree, and people were asked about 25: nothing to promote",
    _inconclusive_with_labels_left: "bad, inconclusive: 25 of 80 labels were there",
    _never_ended: "lost never ended: it is nowhere",
    _move_is_missing: "rollout-good: its history has the versions [0, 1, 4, 5]",
    _two_at_once: "rollout-bad entered shadow before rollout-good ended",
    _paused: "good, promoted: a paused candidate was moved to more users",
    _drew_too_much: "rollout-good drew 0.0002, and 0.0001 had accrued",
    _returned_by_one_that_lost: "rollout-fragile was tested at",
    _other_level: "rollout-good was decided at 0.05",
    _subject_twice: "rollout-bad: 1 subjects bet twice (one)",
    _answer_is_lost: "rollout-good: the answers to 1 tickets were lost (ticket-good-0)",
    _answer_is_invented: "rollout-good: ticket-good-0 counts 1, which no answer says",
    _answer_counts_otherwise: "rollout-good: ticket-good-0 counts 1, which no answer says",
    _pair_is_lost: "rollout-bad: 1 pairs were lost (pair-bad-0)",
    _pair_is_invented: "rollout-good: pair-good-0 is in the ledger, and nobody compared it",
    _agreeing_pair_bets: "rollout-good: ticket-good-0 was drawn for a pair that agrees",
    _canary_not_loaded: "canary came to name good, which is not loaded",
    _primary_not_proved: "primary came to name good, which is not proved",
    _primary_lost_for_long: "primary names good, which is not loaded",
    _primary_before_promotion: "task: primary names good, and None serves by its history",
    _canary_without_move: "task: canary names bad, which has no canary by its history",
    _canary_stays_on: "task: canary names good, which has no canary by its history",
    _wrong_flags_in_the_end: "task: in the end its flags are",
    _control_never_on: "task: control is off, and a promotion has one by its history",
    _control_stays_on: "task: control is on, and no promotion has one by its history",
    _control_without_promotion: "task: control is on, and no promotion has one by its history",
    _control_of_too_many: "task: control has 50 % of users, not 5",
    _control_too_short: "good, promoted: its control ended after 10 of 20 s",
    _control_ended_by_nothing: "good, promoted: its control ended after 20 of 20 s: its control has ended: a moon",
    _control_ended_twice: "good, promoted: it had no control any more",
    _next_one_in_its_control: "rollout-bad entered shadow before rollout-good ended",
    _taken_back_without_failures: "good, rolled_back: 0 of its users had failed requests",
    _taken_back_without_harm: "good, rolled_back: by its fresh pairs harm was 1",
    _too_many_fresh_tickets: "rollout-good: people were asked about 61 pairs after its promotion",
    _fresh_pair_decides: "rollout-good: pair-good-0 is in the ledger, and nobody compared it",
    _never_published: "good: that it is promoted was never published",
    _says_another_serves: "rollout-bad, shadow: it says that None serves, not good",
    _wrong_opponent: "rollout-bad was compared with another adapter than serves",
}


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__.strip("_"))
def test_a_planted_fault_is_found(plant: Callable[[History], None]) -> None:
    history = right_history()
    plant(history)
    found = problems(history)
    assert any(problem.startswith(FAULTS[plant]) for problem in found), found


@pytest.mark.parametrize(("pairs", "is_right"), [(1_000, True), (999, False)])
def test_a_candidate_that_answers_as_production_does_is_rejected_after_a_thousand_pairs(
    pairs: int, is_right: bool
) -> None:
    history, rollout_id = right_history(), "rollout-bad"
    (alike,) = (entry for entry in history.entries if entry.rollout_id == rollout_id and entry.agree)
    (pair,) = (pair for pair in history.pairs if pair.pair_id == alike.pair_id)
    history.entries = [e for e in history.entries if e.rollout_id != rollout_id]
    history.entries += [replace(alike, pair_id=f"pair-{n}", subject=f"s{n}") for n in range(pairs)]
    history.pairs = [p for p in history.pairs if p.rollout_id != rollout_id]
    history.pairs += [replace(pair, pair_id=f"pair-{n}", subject=f"s{n}") for n in range(pairs)]
    history.answers = [answer for answer in history.answers if "bad" not in answer.ticket_id]
    reason = f"nothing to promote: its answers are production's in all {pairs} pairs"
    _move(history, "bad", "rejected", reason=reason, said_losses=0, said_labels=0)
    wrong = f"bad, rejected: {pairs} pairs agree, and people were asked about 0: {reason}"
    assert problems(history) == ([] if is_right else [wrong])


def test_a_pair_that_was_published_twice_may_be_stored_from_its_first_record() -> None:
    """Its second one came after the end, as did a pair before that: neither was read."""
    history = right_history()
    pairs = [pair for pair in history.pairs if pair.rollout_id == "rollout-bad"]
    partition, offset = max(pair.place for pair in pairs)
    unread = replace(pairs[-1], pair_id="unread", subject="late", place=(partition, offset + 1_000))
    history.pairs = [*history.pairs, unread, replace(pairs[0], place=(partition, offset + 1_001))]
    assert problems(history) == []


def test_flags_that_were_last_looked_at_before_a_candidate_ended_are_no_fault() -> None:
    history = right_history()
    _sample(history, -1, Flags("good", None, True))
    assert any("in the end its flags are" in problem for problem in problems(history))
    history.samples = [*history.samples[:-1], replace(history.samples[-1], at=359.0)]
    assert not any("in the end its flags are" in problem for problem in problems(history))


def test_a_promotion_that_was_taken_back_before_it_was_settled_serves_nobody() -> None:
    history = right_history()
    history.moves = [move for move in history.moves if move.at != 180.0]
    good = [move for move in history.moves if move.candidate == "good"]
    reason = "the canary fails too often: 12 of the 12 users with a failed request were in it, which has 25 % of users"
    back = Move(good[-1].rollout_id, 5, 165.0, TASK, "good", "rejected", reason, good[-1].evidence)
    history.moves = [*history.moves, back]
    assert any(problem.startswith("task: primary names good, and None serves") for problem in problems(history))


def _with_a_rise_taken_back() -> History:
    """Return a right history in which a person turned a flag before the promotion of `good` was settled."""
    history = right_history()
    promoted = next(move for move in history.moves if move.stage == "promoted")
    tried = replace(promoted, at=155.0)
    paused = replace(promoted, at=156.0, version=5, stage="canary", percent=50, paused="canary is off, by hand")
    resumed = replace(paused, at=157.0, version=6, paused="", reason="resumed: a mistake")
    later = [
        replace(move, version=move.version + 3) if move.candidate == "good" and move.at >= promoted.at else move
        for move in history.moves
    ]
    history.moves = [tried, paused, resumed, *later]
    told = [Change(move.rollout_id, move.at, move.stage, None, move.reason) for move in (paused, resumed)]
    history.changes = [*history.changes, *told]
    return history


def test_a_rise_that_was_not_settled_may_be_taken_back() -> None:
    assert problems(_with_a_rise_taken_back()) == []


def test_a_rise_may_be_taken_back_by_labels_that_came_while_it_waited() -> None:
    history = _with_a_rise_taken_back()
    evidence = {"wins": 10, "losses": 10}
    history.moves = [
        replace(m, paused="", evidence=m.evidence | evidence) if m.at == 156.0 else m for m in history.moves
    ]
    assert not any("nobody paused it" in problem for problem in problems(history))


def test_a_rise_may_be_taken_back_where_the_task_wants_a_persons_approval_by_then() -> None:
    history = _with_a_rise_taken_back()
    reason = "stays in canary, its next move is not made: the task wants a person's approval by now"
    history.moves = [replace(m, paused="", reason=reason) if m.at == 156.0 else m for m in history.moves]
    assert not any("nobody paused it" in problem for problem in problems(history))


def _rise_was_told(history: History) -> None:
    tried = next(move for move in history.moves if move.at == 155.0)
    history.changes = [*history.changes, Change(tried.rollout_id, tried.at, tried.stage, "good", tried.reason)]


def _nobody_paused(history: History) -> None:
    history.moves = [replace(move, paused="") for move in history.moves]


def _back_elsewhere(history: History) -> None:
    history.moves = [replace(m, percent=25) if m.at in (156.0, 157.0) else m for m in history.moves]


def _next_one_after_the_rise(history: History) -> None:
    _move(history, "bad", "shadow", at=156.5)


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        (_rise_was_told, "good, canary: it went back from promoted of 95 % to canary of 50 %, and all had been told"),
        (_nobody_paused, "good, canary: it went back from promoted of 95 % to canary of 50 %, and nobody paused it"),
        (_back_elsewhere, "good, canary: it went back from promoted of 95 % to canary of 25 %, and was not there"),
        (_next_one_after_the_rise, "rollout-bad entered shadow before rollout-good ended"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)  # fmt: skip
def test_a_rise_that_was_taken_back_wrongly_is_found(plant: Callable[[History], None], says: str) -> None:
    history = _with_a_rise_taken_back()
    plant(history)
    found = problems(history)
    assert any(problem.startswith(says) for problem in found), found


@pytest.mark.parametrize("why", ["its flag was changed by hand", "primary is off: the base model serves, by hand"])
def test_a_hand_may_end_a_control_before_its_time(why: str) -> None:
    history = right_history()
    history.moves = [
        replace(m, at=170.0, reason=f"its control has ended: {why}") if m.at == 180.0 else m for m in history.moves
    ]
    assert not any("its control ended after" in problem for problem in problems(history))


def test_no_code_of_a_service_decides_what_is_right() -> None:
    for path in Path(scenario.__file__).parent.glob("*.py"):
        assert "services." not in path.read_text(), path


def test_the_second_formulas_agree_with_the_deployers() -> None:
    outcomes = [1.0, -1.0, 1.0, 0.0, 0.5, 1.0, 1.0, -1.0, 1.0, 1.0]
    assert wealth(outcomes) == pytest.approx(betting.wealth_now(outcomes))
    assert max_wealth(outcomes) == pytest.approx(betting.max_wealth(outcomes))
    assert max_futility([-1.0] * 8) == pytest.approx(betting.futility([-1.0] * 8))
    assert binomial_mixture(7, 9, 0.25, 1.5) == pytest.approx(betting.canary_guard(7, 9, 0.25, 1.5))
