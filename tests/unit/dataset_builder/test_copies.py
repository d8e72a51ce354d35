"""Copies with different labels: they do not both stay, votes decide, and people are asked."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from schemas.conversation import Answer, Api, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from tests.unit.dataset_builder.histories import (
    NOON,
    Builds,
    correction,
    corrections,
    fates,
    held_out,
    sentence,
    task,
    trained,
)

TEXT = sentence(77, 10)
NEARLY = TEXT.replace(TEXT[5], "z", 1)


def reasons(build: Build) -> dict[str, int]:
    return build.dataset.left_out_by_reason()


def test_copies_with_the_same_label_all_go_on() -> None:
    copies = [correction(f"x{n}", TEXT, "refund", minute=n) for n in range(3)]
    build = Builds().build([*corrections(30), *copies])
    assert {"x0", "x1", "x2"} <= trained(build)


def test_copies_beyond_the_cap_are_left_out_of_training() -> None:
    copies = [correction(f"x{n}", TEXT, "refund", minute=n) for n in range(30)]
    build = Builds().build([*corrections(30), *copies])
    assert sum(name.startswith("x") for name in trained(build)) == 10
    assert reasons(build) == {"copies": 20}


def test_of_copies_with_two_labels_and_one_vote_each_none_stays_and_one_person_is_asked() -> None:
    rows = [*corrections(30), correction("x", TEXT, "refund"), correction("y", TEXT, "delivery", reviewer="ben")]
    build = Builds().build(rows)
    assert (fates(build)["x"], fates(build)["y"]) == (Fate.REJECTED, Fate.REJECTED)
    (question,) = build.questions
    assert (question.purpose, question.prediction_id) == (Purpose.TIE_BREAK, "x")
    assert question.event_id == Builds().build(rows).questions[0].event_id


def test_a_question_about_a_row_that_three_people_confirmed_has_its_answer_once() -> None:
    people = ("ana", "ben", "eva")
    rows = [
        *corrections(30),
        *(correction("x", TEXT, "refund", reviewer=name) for name in people),
        *(correction("y", TEXT, "delivery", reviewer=f"{name}2") for name in people),
    ]
    (question,) = Builds().build(rows).questions
    assert question.answers == (Answer(text="other"),)


def test_the_third_opinion_decides_between_copies() -> None:
    rows = [*corrections(30), correction("x", TEXT, "refund"), correction("y", TEXT, "delivery", reviewer="ben")]
    build = Builds().build([*rows, correction("x", TEXT, "refund", reviewer="eva", minute=50)])
    assert "x" in trained(build) | held_out(build)
    assert fates(build)["y"] is Fate.REJECTED


def test_near_copies_with_different_labels_both_stay_since_a_word_may_make_the_difference() -> None:
    rows = [*corrections(30), correction("x", TEXT, "refund"), correction("y", NEARLY, "delivery", reviewer="ben")]
    build = Builds().build(rows)
    assert {"x", "y"} <= trained(build)
    assert not build.questions


def test_of_answers_to_the_same_question_the_newest_is_trained_on() -> None:
    spec = task(TaskKind.GENERATION)
    old, new = correction("old", TEXT, "Wait.", minute=0), correction("new", TEXT, "It is on its way.", minute=9)
    build = Builds().build([*corrections(30), old, new], spec)
    assert fates(build)["old"] is Fate.SUPERSEDED
    assert "new" in trained(build) | held_out(build)


def test_a_text_that_is_asked_for_two_forms_is_two_questions() -> None:
    """One schema for the date of a contract, one for its fee: both answers are right, and neither is the other's."""

    def asked(name: str, label: str, minute: int) -> CorrectionSubmitted:
        schema = {"type": "object", "required": [name]}
        given = correction(name, TEXT, label, minute=minute)
        text = {"format": {"type": "json_schema", "name": name, "schema": schema}}
        return given.model_copy(
            update={"call": given.call.model_copy(update={"api": Api.RESPONSES, "response_format": text})}
        )

    rows = [*corrections(30), asked("date", '{"date": "2026-11-02"}', 0), asked("fee", '{"fee": 5}', 9)]
    build = Builds().build(rows, task(TaskKind.GENERATION))
    found = {
        name: example.response_format
        for example in (*build.dataset.train, *build.dataset.eval) for name in example.prediction_ids
    }  # fmt: skip
    assert {"date", "fee"} <= found.keys()
    schema = {"type": "object", "required": ["fee"]}
    assert found["fee"] == {"type": "json_schema", "json_schema": {"name": "fee", "schema": schema}}
    newer = asked("fee", '{"fee": 6}', 12).model_copy(update={"prediction_id": "newer", "correction_id": "c-newer"})
    assert fates(Builds().build([*rows, newer], task(TaskKind.GENERATION)))["fee"] is Fate.SUPERSEDED


def test_a_newer_answer_takes_the_place_of_no_held_out_one() -> None:
    spec, builds = task(TaskKind.GENERATION), Builds()
    rows = corrections(30)
    first = builds.build(rows, spec)
    held = next(row for row in rows if row.prediction_id in held_out(first))
    newer = correction("newer", held.call.messages[0].text, "another answer", minute=900)
    second = builds.build([*rows, newer], spec)
    assert held.prediction_id in held_out(second)
    assert fates(second)["newer"] is Fate.EXCLUDED


@pytest.mark.parametrize("reviewers", [("ana",), ("ana", "ben")])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_user_who_writes_on_many_copies_does_not_outvote_a_reviewer(copies: int, reviewers: Sequence[str]) -> None:
    looked_at = [correction("x", TEXT, "refund", reviewer=reviewer) for reviewer in reviewers]
    words = [_word(f"u{n}", TEXT, "cancel", minute=100 + n) for n in range(copies)]
    build = build_dataset(Inputs(votes_of([*corrections(60), *looked_at], words), task()))
    assert fates(build)["x"] in (Fate.TRAIN, Fate.EVAL)
    assert {fates(build)[word.prediction_id] for word in words} == {Fate.REJECTED}
    assert not build.questions


def test_users_who_agree_on_copies_do_not_outvote_the_only_reviewer() -> None:
    words = [_word(f"u{n}", TEXT, "cancel", minute=100 + n, author=f"user{n}") for n in range(4)]
    build = build_dataset(Inputs(votes_of([*corrections(60), correction("x", TEXT, "refund")], words), task()))
    assert fates(build)["x"] in (Fate.TRAIN, Fate.EVAL)
    assert {fates(build)[word.prediction_id] for word in words} == {Fate.REJECTED}
    assert not build.questions


def test_users_words_on_copies_of_held_out_rows_take_none_out_of_the_evaluation() -> None:
    rows, builds = corrections(60), Builds()
    names = sorted(held_out(builds.build(rows)))
    texts = {row.prediction_id: row.call.messages[0].text for row in rows}
    words = [_word(f"u-{name}-{n}", texts[name], "cancel", minute=200 + n) for name in names[:3] for n in range(3)]
    build = build_dataset(Inputs(votes_of(rows, words), task(), builds.places))
    assert sorted(held_out(build)) == names


def test_who_labels_many_copies_counts_once_as_on_one_question() -> None:
    two = [correction("x", TEXT, "refund", minute=100), correction("x", TEXT, "refund", reviewer="ben", minute=101)]
    often = [correction(f"y{n}", TEXT, "cancel", reviewer="zoe", minute=102 + n) for n in range(3)]
    build = Builds().build([*corrections(60), *two, *often])
    assert fates(build)["x"] in (Fate.TRAIN, Fate.EVAL)
    assert {fates(build)[f"y{n}"] for n in range(3)} == {Fate.REJECTED}


def test_of_copies_that_one_person_labelled_differently_the_newest_word_counts() -> None:
    rows = [correction("x", TEXT, "refund", minute=100), correction("y", TEXT, "cancel", minute=101)]
    build = Builds().build([*corrections(60), *rows])
    assert fates(build)["x"] is Fate.REJECTED
    assert fates(build)["y"] in (Fate.TRAIN, Fate.EVAL)
    assert not build.questions


def _word(name: str, text: str, label: str, minute: int, author: str = "mallory") -> UserCorrection:
    return UserCorrection(
        correction_id=f"c-{name}", task="desk", task_revision=task().revision, prediction_id=name,
        occurred_at=NOON + timedelta(minutes=minute), call=Call(messages=(Message(role=Role.USER, content=text),)),
        answers=(Answer(text="other"),), label=label, author_hash=author, user_hash=author, predicted_at=NOON,
    )  # fmt: skip


def test_a_conflict_of_copies_is_asked_anew_where_a_dispute_about_one_of_them_was_answered() -> None:
    """A question with the id of an answered one reaches nobody."""
    disputed = [*corrections(30), correction("x", TEXT, "refund"), correction("x", TEXT, "cancel", reviewer="cat")]
    (dispute,) = Builds().build(disputed).questions
    answered = [*disputed, correction("x", TEXT, "refund", reviewer="ben", minute=2)]
    copies = [correction("y", TEXT, "delivery", reviewer=reviewer, minute=9) for reviewer in ("dan", "eva")]
    (conflict,) = Builds().build([*answered, *copies]).questions
    assert conflict.request_id != dispute.request_id


def test_a_dispute_is_asked_anew_where_a_conflict_of_copies_was_answered() -> None:
    rows = [*corrections(30), correction("x", TEXT, "refund"), correction("y", TEXT, "delivery", reviewer="dan")]
    words = [_word("x", TEXT, "refund", minute=2), _word("y", TEXT, "delivery", minute=2)]
    (conflict,) = build_dataset(Inputs(votes_of(rows, words), task())).questions
    rows.append(correction("x", TEXT, "cancel", reviewer="ben", minute=4))
    (dispute,) = build_dataset(Inputs(votes_of(rows, words), task())).questions
    assert (conflict.prediction_id, dispute.prediction_id) == ("x", "x")
    assert conflict.request_id != dispute.request_id


def test_who_is_outvoted_on_one_copy_counts_beside_the_others() -> None:
    two = [correction("x", TEXT, "refund"), correction("x", TEXT, "refund", reviewer="ben", minute=1)]
    one_each = [correction("x", TEXT, "cancel", reviewer="cat"), correction("y", TEXT, "cancel", reviewer="dan")]
    build = Builds().build([*corrections(30), *two, *one_each])
    assert reasons(build) == {"conflicting_labels": 2, "outvoted": 1}
    assert [question.purpose for question in build.questions] == [Purpose.TIE_BREAK]
