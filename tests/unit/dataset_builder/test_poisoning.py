"""Voters whose labels move a class too far are held back; honest ones are not, nor who has nobody to compare with."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate, Origin
from schemas.labels import Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.questions import tie_break
from services.dataset_builder.building.rows import Row
from services.dataset_builder.checks.poisoning import (
    FILLS_CLASS,
    MOVES_CLASS,
    Guarded,
    Voter,
    VoterShift,
    hold_back_voters,
)
from tests.unit.dataset_builder.voting import NOON

LABELS = tuple("abcdefghij")
SPEC = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=LABELS)
Labeller = Callable[[random.Random, str], str]


def right(chance: random.Random, truth: str) -> str:
    return truth if chance.random() < 0.95 else chance.choice(LABELS)


def always_a(chance: random.Random, truth: str) -> str:
    return "a"


def any_wrong(chance: random.Random, truth: str) -> str:
    return chance.choice([label for label in LABELS if label != truth])


def swaps_two(chance: random.Random, truth: str) -> str:
    return {"a": "b", "b": "a"}.get(truth, truth)


def row(number: int, label: str, answer: str, *voters: str, app: str | None = None, mode: str | None = None) -> Row:
    by_user = bool(voters) and voters[0].startswith("user:")
    return Row(
        call=Call(messages=(Message(role=Role.USER, content=f"question {number}"),)),
        answers=(Answer(text=answer),),
        label=label,
        prediction_id=f"p{number:05}",
        correction_ids=(f"c{number}",),
        corrected_at=NOON,
        voters=voters,
        origin=Origin.USER if by_user else Origin.REVIEWER,
        app=app,
        mode_id=mode,
    )


def rows_of(voter: str, count: int, labeller: Labeller, seed: int, app: str | None = None) -> list[Row]:
    """Production is right in seven of ten answers."""
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        truth = chance.choice(LABELS)
        answer = truth if chance.random() < 0.7 else chance.choice(LABELS)
        rows.append(row(seed * 10_000 + number, labeller(chance, truth), answer, voter, app=app))
    return rows


def held(rows: list[Row]) -> tuple[set[str], tuple[VoterShift, ...]]:
    guarded = hold_back_voters(rows, SPEC)
    assert len(guarded.rows) + len(guarded.held_back) == len(rows)
    assert {(r.fate, r.reason) for r in guarded.held_back} <= {
        (Fate.HELD_BACK, MOVES_CLASS),
        (Fate.HELD_BACK, FILLS_CLASS),
    }
    return {r.prediction_ids[0] for r in guarded.held_back}, guarded.shifts


HONEST = [r for seed, who in enumerate(("ana", "ben"), 1) for r in rows_of(who, 400, right, seed)]


@pytest.mark.parametrize("wrong", [always_a, any_wrong])
@pytest.mark.parametrize("who", ["user:eve", "eve"])
def test_200_wrong_labels_of_one_among_1_000_are_held_back_and_nobody_else_s(who: str, wrong: Labeller) -> None:
    theirs = rows_of(who, 200, wrong, seed=9)
    ids, shifts = held([*HONEST, *theirs])
    assert ids <= {r.prediction_id for r in theirs}
    assert len(ids) >= 165, "a wrong label may be what production's answer makes likely"
    assert {shift.voter for shift in shifts} <= {Voter("user" if ":" in who else "reviewer", "eve")}
    assert all(("eve" in str(shift)) is (shift.voter.kind == "reviewer") for shift in shifts), (
        "reports outlive an erasure"
    )


def test_honest_voters_are_never_held_back() -> None:
    for seed in range(10):
        people = [("ana", 400), ("ben", 150), ("cid", 60), ("user:u1", 40), ("user:u2", 20)]
        rows = [r for n, (who, count) in enumerate(people) for r in rows_of(who, count, right, seed * 10 + n + 1)]
        ids, shifts = held(rows)
        assert (shifts, [r for r in rows if r.is_confirmed and r.prediction_id in ids]) == ((), [])


def test_wrong_labels_accuse_nobody_else_however_many_they_are() -> None:
    small = [r for n in range(8) for r in rows_of(f"ana{n}", 50, right, n + 1)]
    ids, shifts = held([*small, *rows_of("eve", 400, always_a, seed=20)])
    assert [shift.voter.name for shift in shifts] == ["eve"]
    assert len(ids) > 300


def test_a_liar_who_gives_half_of_all_labels_is_found_before_those_who_differ_from_the_lies() -> None:
    people = [*rows_of("ana", 300, right, 1), *rows_of("ben", 300, right, 2)]
    _, shifts = held([*people, *rows_of("eve", 600, always_a, seed=20)])
    assert [shift.voter.name for shift in shifts] == ["eve"]


def test_a_voter_who_is_wrong_about_one_class_keeps_the_other_rows() -> None:
    wrong = [row(50_000 + n, "b", "a", "eve") for n in range(60)]
    rest = [row(51_000 + n, LABELS[n % 10], LABELS[n % 10], "eve") for n in range(100)]
    ids, (shift,) = held([*HONEST, *wrong, *rest])
    assert ids == {r.prediction_id for r in wrong}
    assert shift.moves == (("a", "b", 60),)


@pytest.mark.parametrize("labeller", [right, always_a, swaps_two])
def test_a_single_reviewer_has_nobody_to_be_compared_with(labeller: Labeller) -> None:
    assert held(rows_of("ana", 500, labeller, seed=1)) == (set(), ())


def test_of_two_reviewers_who_contradict_each_other_neither_is_known_to_be_wrong() -> None:
    assert held([*rows_of("ana", 300, right, 1), *rows_of("ben", 300, always_a, 2)]) == (set(), ())


def test_many_users_who_lie_together_make_no_reviewer_look_wrong() -> None:
    reviewed = [*rows_of("ana", 100, right, 1), *rows_of("ben", 100, right, 2)]
    swarm = [r for n in range(20) for r in rows_of(f"user:u{n}", 60, always_a, n + 10)]
    ids, _ = held([*reviewed, *swarm])
    assert ids.isdisjoint(r.prediction_id for r in reviewed)


def test_an_application_is_held_back_whose_users_are_wrong_together() -> None:
    swarm = [
        r for n in range(40) for r in rows_of(f"user:u{n}", 8, always_a, n + 10, app="bad")
    ]  # Each gives fewer than anybody is held back for.
    ids, shifts = held([*HONEST, *swarm])
    assert [str(shift.voter) for shift in shifts] == ["app bad"]
    assert len(ids) > 250


def test_what_a_second_reviewer_confirmed_is_never_held_back() -> None:
    confirmed = [row(60_000 + n, "b", "a", "eve", "ben") for n in range(30)]
    theirs = rows_of("eve", 200, always_a, seed=9)
    ids, _ = held([*HONEST, *theirs, *confirmed])
    assert ids
    assert ids.isdisjoint(r.prediction_id for r in confirmed)


def test_what_a_reviewer_confirmed_of_a_user_s_goes_on_and_nobody_is_asked_twice() -> None:
    """The failure miner asks a reviewer about every edit."""
    theirs = rows_of("user:eve", 200, always_a, seed=9)
    guarded = hold_back_voters([*HONEST, *theirs], SPEC)
    assert guarded.questions == ()
    asked = {row.prediction_ids[0] for row in guarded.held_back[:30]}
    answered = [
        replace(r, voters=("user:eve", "ana"), origin=Origin.REVIEWER) if r.prediction_id in asked else r
        for r in theirs
    ]
    assert asked <= {r.prediction_id for r in hold_back_voters([*HONEST, *answered], SPEC).rows}


def test_who_is_held_back_is_not_heard_by_confirming_the_same_labels() -> None:
    theirs = rows_of("eve", 200, always_a, seed=9)
    waiting, _ = held([*HONEST, *theirs])
    confirmed = [replace(r, rechecked=True) for r in theirs]
    assert waiting
    assert held([*HONEST, *confirmed])[0] == waiting


def test_a_reviewer_s_labels_that_wait_are_asked_of_somebody_else() -> None:
    """A tie-break is never asked of who has answered about the prediction; a suspicious label may be."""
    theirs = rows_of("eve", 200, always_a, seed=9)
    questions = hold_back_voters([*HONEST, *theirs], SPEC).questions
    assert (len(questions), {question.purpose for question in questions}) == (30, {Purpose.TIE_BREAK})
    confirmed = [replace(r, rechecked=True) for r in theirs]
    assert hold_back_voters([*HONEST, *confirmed], SPEC).questions == questions
    third = tie_break(theirs[0], {"eve", "ana"}, SPEC, NOON)
    assert third.request_id not in {question.request_id for question in questions}


def test_similar_answers_are_those_of_one_failure_mode() -> None:
    """Everybody corrects a to b in mode m1; only eve, in mode m2, where others say that a is right."""
    everybody = [row(n, "b", "a", who, mode="m1") for n, who in enumerate(("ana", "ben") * 50)]
    elsewhere = [row(1_000 + n, "a", "a", who, mode="m2") for n, who in enumerate(("ana", "ben") * 50)]
    eve = [row(2_000 + n, "b", "a", "eve", mode="m2") for n in range(40)]
    assert held([*everybody, *elsewhere, *eve])[0] == {r.prediction_id for r in eve}
    at_home = [row(3_000 + n, "b", "a", "eve", mode="m1") for n in range(40)]
    assert held([*everybody, *elsewhere, *at_home]) == (set(), ())


def test_honest_edits_are_trained_on_beside_reviewers_who_mostly_find_answers_right() -> None:
    """Users edit wrong answers only: among all labels of such answers theirs looked like lies, and waited."""
    chance = random.Random(4)
    reviewed = []
    for number in range(800):
        truth = chance.choice(LABELS)
        answer = truth if chance.random() < 0.9 else chance.choice(LABELS)
        reviewed.append(row(number, truth, answer, ("ana", "ben")[number % 2], app="shop"))
    edits = []
    for number in range(200):
        truth = chance.choice(LABELS)
        answer = chance.choice([label for label in LABELS if label != truth])
        edits.append(row(1_000 + number, truth, answer, f"user:u{number}", app="shop"))
    assert held([*reviewed, *edits]) == (set(), ())


@pytest.mark.parametrize("author", ["user:eve", "user:shop"])
def test_what_one_author_gives_of_a_class_waits_beyond_a_twentieth(author: str) -> None:
    reviewed = [row(n, "ab"[n % 2], f"answer {n}", "ana") for n in range(400)]
    loud = [row(1_000 + n, "b", f"other {n}", author) for n in range(200)]
    ids, shifts = held([*reviewed, *loud])
    assert (len(ids), shifts) == (200 - 8, ()), "8 beside the 160 that are not held out"
    assert held([*reversed(loud), *reviewed])[0] == ids
    assert held([*loud, *reviewed[:9]]) == (set(), ()), "an application without reviewers learns from its users"


def test_an_author_may_give_three_rows_of_any_class() -> None:
    reviewed = [row(n, "ab"[n % 2], f"answer {n}", "ana") for n in range(20)]
    loud = [row(1_000 + n, "abc"[n % 3], f"other {n}", "user:eve") for n in range(60)]
    assert len(held([*reviewed, *loud])[0]) == 60 - 9
    several = [row(2_000 + n, "c", f"more {n}", "user:eve", "user:ada") for n in range(60)]
    assert held([*reviewed, *several]) == (set(), ()), "two users stand for them"


def test_of_a_task_without_labels_the_share_is_of_all_rows() -> None:
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
    reviewed = [row(n, f"text {n}", "x", "ana") for n in range(400)]
    loud = [row(1_000 + n, f"spam {n}", "x", "user:eve") for n in range(200)]
    assert len(hold_back_voters([*reviewed, *loud], writing).held_back) == 200 - 16


def test_free_texts_are_not_compared() -> None:
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
    rows = [*HONEST, *rows_of("eve", 200, always_a, 9)]
    assert hold_back_voters(rows, writing) == Guarded(tuple(rows))
