"""From corrections to examples: agreement, every reason to reject, duplicates, and a stable split by group."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.base import Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import DatasetSettings, TaskKind, TaskSpec
from services.dataset_builder.domain import (
    build_dataset,
    format_error,
    resolve_answers,
    tie_break_question,
    votes_by_prediction,
)
from shared.model.near_duplicates import jaccard, shingles

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SYSTEM = Message(role=Role.SYSTEM, content="Answer with the intent.")


def spec(**dataset: object) -> TaskSpec:
    return TaskSpec(
        name="support-desk",
        kind=TaskKind.CLASSIFICATION,
        system_prompt=SYSTEM.content,
        labels=("refund", "delivery", "cancel"),
        dataset=DatasetSettings.model_validate({"max_answer_chars": 20, **dataset}),
    )


WRITING = TaskSpec(name="replies", kind=TaskKind.GENERATION, system_prompt="Reply.")


def correction(
    text: str, label: str | None, *, prediction: str = "", reviewer: str = "ana", minute: int = 0, **other: object
) -> CorrectionSubmitted:
    prediction = prediction or f"p-{text}"
    return CorrectionSubmitted.model_validate(
        {
            "occurred_at": NOON + timedelta(minutes=minute),
            "task": "support-desk",
            "task_revision": spec().revision,
            "correction_id": f"c-{prediction}-{reviewer}-{minute}",
            "request_id": f"r-{prediction}",
            "prediction_id": prediction,
            "purpose": Purpose.LOW_CONFIDENCE,
            "reviewer": reviewer,
            "messages": (SYSTEM, Message(role=Role.USER, content=text)),
            "answers": ("cancel",),
            "label": label,
            **other,
        }
    )


def user(content: str = "where is it") -> Message:
    return Message(role=Role.USER, content=content)


def assistant(content: str = "delivery") -> Message:
    return Message(role=Role.ASSISTANT, content=content)


@pytest.mark.parametrize(
    "messages",
    [
        (SYSTEM, user(), assistant()),
        (user(), assistant()),
        (SYSTEM, user(), assistant("Which order?"), user("the last"), assistant()),
    ],
)
def test_a_valid_conversation_passes(messages: tuple[Message, ...]) -> None:
    assert format_error(messages, spec()) is None


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((assistant(), user(), assistant()), "wrong_start"),
        ((SYSTEM, user()), "wrong_end"),
        ((user(), SYSTEM, assistant()), "misplaced_system"),
        ((SYSTEM, user(), user(), assistant()), "roles_do_not_alternate"),
        ((SYSTEM, assistant()), "roles_do_not_alternate"),
        ((SYSTEM, user("  \n"), assistant()), "empty_content"),
        ((SYSTEM, user(), assistant("")), "empty_content"),
        ((SYSTEM, user(), assistant("x" * 21)), "answer_too_long"),
        ((SYSTEM, user(), assistant("something")), "unknown_label"),
        ((user(), assistant()) * 33, "too_many_messages"),
    ],
)
def test_each_format_error_has_its_reason(messages: tuple[Message, ...], reason: str) -> None:
    error = format_error(messages, spec())
    assert error is not None
    assert error[0] == reason
    assert error[1]


def test_an_answer_below_the_minimum_is_too_short() -> None:
    assert format_error((user(), assistant("cancel")), spec(min_answer_chars=7)) is not None


def test_a_label_of_one_letter_is_valid() -> None:
    short = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=("A", "B"))
    assert format_error((user(), assistant("A")), short) is None


def test_reviewers_who_agree_make_one_example() -> None:
    drafts, rejected = resolve_answers(
        [correction("late", "delivery"), correction("late", "delivery ", reviewer="ben", minute=1)],
        TaskKind.CLASSIFICATION,
    )
    assert [len(draft.correction_ids) for draft in drafts] == [2]
    assert not rejected


def test_reviewers_who_disagree_are_rejected_and_one_more_is_asked() -> None:
    two = [correction("late", "delivery"), correction("late", "refund", reviewer="ben", minute=1)]
    dataset = build_dataset(two, spec())
    assert dataset.rejected_by_reason() == {"reviewers_disagree": 1}
    assert "ana: delivery" in dataset.rejected[0].detail

    question = tie_break_question(votes_by_prediction(two)["p-late"], spec())
    assert question is not None
    assert question.purpose is Purpose.TIE_BREAK
    assert question.event_id == tie_break_question(votes_by_prediction(two)["p-late"], spec()).event_id  # type: ignore[union-attr]

    three = [*two, correction("late", "delivery", reviewer="eva", minute=2)]
    assert tie_break_question(votes_by_prediction(three)["p-late"], spec()) is None
    accepted = build_dataset(three, spec())
    assert [e.answer for e in (*accepted.train, *accepted.eval)] == ["delivery"]


def test_only_the_last_label_of_a_reviewer_counts() -> None:
    votes = votes_by_prediction([correction("late", "refund"), correction("late", "delivery", minute=5)])["p-late"]
    assert [vote.label for vote in votes] == ["delivery"]


def test_a_preference_is_no_label() -> None:
    pair = correction("late", None, preference="a", answers=("x", "y"))
    dataset = build_dataset([pair], spec())
    assert not dataset.train
    assert not dataset.rejected


def test_the_label_of_a_discordant_pair_is_an_example() -> None:
    pair = correction(
        "late", "delivery", purpose=Purpose.DISCORDANT_PAIR, ticket_id="t1", answers=("refund", "delivery")
    )
    dataset = build_dataset([pair], spec())
    assert [e.correction_ids for e in (*dataset.train, *dataset.eval)] == [(pair.correction_id,)]


def test_the_same_text_twice_is_a_duplicate() -> None:
    dataset = build_dataset(
        [correction("Where is it?", "delivery"), correction("where is it", "delivery", minute=1)], spec()
    )
    assert dataset.rejected_by_reason() == {"duplicate": 1}
    assert dataset.rejected[0].prediction_ids == ("p-where is it",)
    assert dataset.rejected[0].detail == "same text as in p-Where is it?"


def test_a_text_with_two_labels_and_no_majority_is_rejected() -> None:
    dataset = build_dataset(
        [correction("It is late.", "delivery"), correction("it is late", "refund", minute=1)], spec()
    )
    assert dataset.rejected_by_reason() == {"conflicting_labels": 2}
    assert not dataset.train
    assert not dataset.eval


def test_the_majority_label_of_a_text_wins() -> None:
    texts = ("It is late.", "it is late", "It is late!")
    labels = ("delivery", "refund", "delivery")
    dataset = build_dataset(
        [correction(t, label, minute=i) for i, (t, label) in enumerate(zip(texts, labels, strict=True))], spec()
    )
    assert dataset.rejected_by_reason() == {"conflicting_labels": 1, "duplicate": 1}


def test_free_texts_that_differ_need_no_tie_break() -> None:
    replies = [correction("late", "We are sorry."), correction("late", "Sorry!", reviewer="ben", minute=1)]
    drafts, rejected = resolve_answers(replies, WRITING.kind)
    assert [draft.answer for draft in drafts] == ["Sorry!"]
    assert not rejected


def many(count: int = 40) -> list[CorrectionSubmitted]:
    topics = ("my parcel", "the invoice", "this subscription", "a refund", "the second order")
    return [
        correction(f"{topics[i % 5]} number {i * 7919} has a problem", ("refund", "delivery")[i % 2], minute=i)
        for i in range(count)
    ]


def test_the_split_is_the_same_on_every_build_and_in_any_order() -> None:
    once, again = build_dataset(many(), spec()), build_dataset(list(reversed(many())), spec())
    assert once == again
    assert once.eval


def test_another_seed_gives_another_split() -> None:
    assert build_dataset(many(), spec()).eval != build_dataset(many(), spec(seed=21)).eval


def test_a_held_out_example_stays_held_out_as_data_grows() -> None:
    before = {e.example_id for e in build_dataset(many(20), spec(near_copy_similarity=0.95)).eval}
    after = {e.example_id for e in build_dataset(many(40), spec(near_copy_similarity=0.95)).eval}
    assert before <= after


def test_a_small_set_still_has_something_held_out_and_something_to_train_on() -> None:
    for count in range(2, 8):
        dataset = build_dataset(many(count), spec(near_copy_similarity=1.0))
        assert dataset.eval
        assert dataset.train


WORDS = st.sampled_from(("parcel", "refund", "please", "where", "order", "late", "cancel", "now", "card"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(WORDS, min_size=2, max_size=9).map(" ".join), min_size=2, max_size=30), st.integers(0, 5))
def test_near_duplicates_are_never_in_both_parts(texts: list[str], seed: int) -> None:
    rows = [correction(text, "refund", prediction=f"p{i}", minute=i) for i, text in enumerate(texts)]
    dataset = build_dataset(rows, spec(seed=seed, eval_share=0.5))
    for trained in dataset.train:
        for held_out in dataset.eval:
            assert trained.group != held_out.group
            assert jaccard(shingles(trained.prompt[-1].content), shingles(held_out.prompt[-1].content)) < 0.8


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, st.sampled_from(("refund", "delivery", "nonsense"))), max_size=30))
def test_every_correction_ends_in_exactly_one_part(rows: list[tuple[str, str]]) -> None:
    corrections = [correction(text, label, prediction=f"p{i}", minute=i) for i, (text, label) in enumerate(rows)]
    dataset = build_dataset(corrections, spec())
    found = [c for example in (*dataset.train, *dataset.eval, *dataset.rejected) for c in example.correction_ids]
    assert sorted(found) == sorted(c.correction_id for c in corrections)
