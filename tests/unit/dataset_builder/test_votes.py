"""Whose word counts: recency, reliability, a third opinion, users; every vote ends in exactly one place."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate, LeftOutExample, Origin
from schemas.labels import CorrectionSubmitted, LabelRequested, Purpose
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.rows import Opinion, Row
from services.dataset_builder.building.votes import (
    UserCorrection,
    Withdrawals,
    decide,
    newest_of_each,
    opinion_of,
    resolve_votes,
    third_opinion,
    votes_of,
)
from services.dataset_builder.pipeline import Build, Inputs, build_dataset

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = TaskSpec(
    name="support-desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=("refund", "delivery", "cancel")
)
WRITING = TaskSpec(name="replies", kind=TaskKind.GENERATION, system_prompt="Reply.")


def asked(text: str = "late") -> Call:
    return Call(messages=(Message(role=Role.SYSTEM, content="Intent?"), Message(role=Role.USER, content=text)))


def vote(
    label: str, reviewer: str = "ana", days: float = 0.0, prediction: str = "p1", spec: TaskSpec = SPEC
) -> CorrectionSubmitted:
    return CorrectionSubmitted(
        occurred_at=NOON + timedelta(days=days), task=spec.name, task_revision=spec.revision,
        correction_id=f"c-{prediction}-{reviewer}-{days}", request_id=f"r-{prediction}", prediction_id=prediction,
        purpose=Purpose.LOW_CONFIDENCE, reviewer=reviewer, call=asked(prediction), answers=(Answer(text="cancel"),),
        label=label,
    )  # fmt: skip


def written(
    label: str, author: str | None = "u1", days: float = 0.0, prediction: str = "p1", spec: TaskSpec = SPEC
) -> UserCorrection:
    return UserCorrection(
        correction_id=f"feedback-{prediction}-{author}-{days}", task=spec.name, task_revision=spec.revision,
        prediction_id=prediction, occurred_at=NOON + timedelta(days=days), call=asked(prediction),
        answers=(Answer(text="cancel"),), label=label, author_hash=author, user_hash="u1", predicted_at=NOON,
    )  # fmt: skip


def resolved(
    *words: CorrectionSubmitted | UserCorrection, spec: TaskSpec = SPEC, reliability: dict[str, float] | None = None
) -> tuple[list[Row], list[LeftOutExample], list[LabelRequested]]:
    corrections = [word for word in words if isinstance(word, CorrectionSubmitted)]
    users = [word for word in words if isinstance(word, UserCorrection)]
    return resolve_votes(votes_of(corrections, users), spec, reliability or {})


def places(left_out: list[LeftOutExample]) -> list[tuple[Fate, str]]:
    return [(example.fate, example.reason) for example in left_out]


def test_reviewers_who_agree_make_one_row() -> None:
    (row,), left_out, questions = resolved(vote("delivery"), vote("delivery ", "ben", 1))
    assert (row.label, len(row.correction_ids), row.voters) == ("delivery", 2, ("ana", "ben"))
    assert not left_out and not questions


def test_two_reviewers_who_disagree_are_rejected_and_one_more_is_asked() -> None:
    two = [vote("delivery"), vote("refund", "ben", 1)]
    rows, (rejected,), (question,) = resolved(*two)
    assert not rows
    assert (rejected.fate, rejected.reason, len(rejected.correction_ids)) == (Fate.REJECTED, "reviewers_disagree", 2)
    assert "ana: delivery" in rejected.detail
    assert (question.purpose, question.labels) == (Purpose.TIE_BREAK, SPEC.labels)


def test_the_third_opinion_is_one_question_whoever_asks_it_and_however_often() -> None:
    two = votes_of([vote("delivery"), vote("refund", "ben", 1)])
    first, again = third_opinion(two, SPEC, {}), third_opinion(list(two), SPEC, {"ana": 0.93, "ben": 0.94})
    assert first is not None and again is not None
    assert (first.event_id, first.request_id) == (again.event_id, again.request_id)
    assert (
        build_dataset(Inputs(votes_of([vote("delivery"), vote("refund", "ben", 1)]), SPEC)).questions[0].request_id
        == first.request_id
    )


def test_a_third_opinion_on_a_pair_has_both_answers_since_neither_is_known_to_be_productions() -> None:
    pair = {"purpose": Purpose.DISCORDANT_PAIR, "ticket_id": "t1", "answers": (Answer(text="b"), Answer(text="a"))}
    two = [vote("delivery").model_copy(update=pair), vote("refund", "ben", 1)]
    (question,) = resolved(*two)[2]
    assert question.answers == pair["answers"]


def test_a_third_opinion_decides_and_the_minority_is_listed_as_outvoted() -> None:
    (row,), left_out, questions = resolved(vote("delivery"), vote("refund", "ben", 1), vote("delivery", "eva", 2))
    assert (row.label, row.voters) == ("delivery", ("ana", "eva"))
    assert places(left_out) == [(Fate.SUPERSEDED, "outvoted")]
    assert left_out[0].correction_ids == ("c-p1-ben-1",)
    assert "ben wrote 'refund'; what counts is 'delivery'" in left_out[0].detail
    assert not questions


def test_three_different_answers_ask_a_fourth_person() -> None:
    three = [vote("delivery"), vote("refund", "ben", 1), vote("cancel", "eva", 2)]
    _, _, (fourth,) = resolved(*three)
    assert fourth.request_id != resolved(*three[:2])[2][0].request_id


def test_a_reviewers_older_opinion_is_superseded() -> None:
    (row,), left_out, _ = resolved(vote("refund"), vote("delivery", days=5))
    assert (row.label, row.corrected_at) == ("delivery", NOON)
    assert places(left_out) == [(Fate.SUPERSEDED, "newer_opinion")]


@pytest.mark.parametrize(("reviewer", "days", "label"), [("ana", 1, None), ("ben", 1, "refund"), ("ana", -1, "refund")])
def test_who_labelled_a_pair_and_then_cannot_tell_takes_the_label_back(
    reviewer: str, days: int, label: str | None
) -> None:
    pair = {"purpose": Purpose.DISCORDANT_PAIR, "ticket_id": "t1"}
    given = vote("refund").model_copy(update=pair)
    unsure = vote("", reviewer, days).model_copy(update={**pair, "label": None, "preference": "cannot_tell"})
    withdrawn = Withdrawals()
    withdrawn.add([unsure])  # Of the parts that a build reads, the later one may hold it.
    withdrawn.add([given])
    left = withdrawn.left_of(votes_of([given, unsure]))
    assert [v.label for v in left] == ([] if label is None else [label])


def test_a_label_that_was_taken_back_and_given_again_stands() -> None:
    pair = {"purpose": Purpose.DISCORDANT_PAIR, "ticket_id": "t1"}
    unsure = {**pair, "label": None, "preference": "cannot_tell"}
    words = [vote("refund").model_copy(update=pair), vote("", days=1).model_copy(update=unsure),
             vote("delivery", days=2).model_copy(update=pair)]  # fmt: skip
    withdrawn = Withdrawals()
    withdrawn.add(words)
    assert [v.label for v in withdrawn.left_of(votes_of(words))] == ["delivery"]


def test_an_old_majority_does_not_win_for_ever() -> None:
    old = [vote("refund"), vote("refund", "ben")]
    assert resolved(*old, vote("delivery", "eva", 3))[0][0].label == "refund"
    assert places(resolved(*old, vote("delivery", "eva", 90))[1]) == [(Fate.REJECTED, "reviewers_disagree")]
    (row,), left_out, _ = resolved(*old, vote("delivery", "eva", 365))
    assert row.label == "delivery"
    assert places(left_out) == [(Fate.SUPERSEDED, "outvoted")] * 2


def test_a_reliable_reviewer_counts_for_more() -> None:
    two = [vote("delivery"), vote("refund", "ben", 1)]
    (row,), _, questions = resolved(*two, reliability={"ana": 0.98, "ben": 0.7})
    assert (row.label, questions) == ("delivery", [])


def test_two_careless_reviewers_do_not_outvote_a_careful_one() -> None:
    three = [vote("refund"), vote("refund", "ben"), vote("delivery", "eva")]
    (row,), _, _ = resolved(*three, reliability={"ana": 0.6, "ben": 0.6, "eva": 0.99})
    assert row.label == "delivery"


def test_of_free_texts_the_newest_counts_not_the_oldest() -> None:
    texts = [vote("We are sorry.", spec=WRITING), vote("Sorry!", "ben", 0.01, spec=WRITING)]
    (row,), left_out, questions = resolved(*texts, spec=WRITING)
    assert row.label == "Sorry!"
    assert places(left_out) == [(Fate.SUPERSEDED, "outvoted")]
    assert not questions


def test_a_free_text_that_two_wrote_outweighs_a_newer_one_for_a_while() -> None:
    def texts(days: float) -> list[CorrectionSubmitted]:
        two = [vote("Sorry!", spec=WRITING), vote("Sorry!", "ben", spec=WRITING)]
        return [*two, vote("Hello.", "eva", days, spec=WRITING)]

    assert resolved(*texts(1), spec=WRITING)[0][0].label == "Sorry!"
    assert resolved(*texts(200), spec=WRITING)[0][0].label == "Hello."


def test_a_users_word_alone_is_a_row_of_lower_weight_that_nobody_confirmed() -> None:
    (row,), left_out, questions = resolved(written("delivery"))
    assert (row.label, row.origin, row.weight) == ("delivery", Origin.USER, 0.5)
    assert (row.voters, row.is_confirmed) == (("user:u1",), False)
    assert not left_out and not questions
    half = SPEC.model_copy(update={"dataset": SPEC.dataset.model_copy(update={"user_weight": 0.25})})
    assert resolved(written("delivery"), spec=half)[0][0].weight == 0.25


@pytest.mark.parametrize("days", [-5.0, 5.0])
def test_a_reviewers_word_takes_the_place_of_a_users_whichever_is_newer(days: float) -> None:
    (row,), left_out, _ = resolved(written("delivery"), vote("refund", days=days))
    assert (row.label, row.origin, row.weight, row.is_confirmed) == ("refund", Origin.REVIEWER, 1.0, True)
    assert places(left_out) == [(Fate.SUPERSEDED, "reviewers_word")]


def test_a_user_whom_a_reviewer_confirms_stands_beside_them() -> None:
    (row,), left_out, _ = resolved(written("delivery"), vote("delivery", days=1))
    assert (row.origin, row.voters, row.weight) == (Origin.REVIEWER, ("user:u1", "ana"), 1.0)
    assert len(row.opinions) == 1, "a reviewer's word is not made surer by the user's"
    assert not left_out


def test_a_row_that_a_user_confirms_can_be_forgotten_with_them() -> None:
    (row,), _, _ = resolved(vote("delivery"), written("delivery", days=1))
    assert row.user_hash == "u1"


def test_a_user_does_not_decide_between_two_reviewers() -> None:
    rows, left_out, questions = resolved(vote("delivery"), vote("refund", "ben"), written("refund", days=1))
    assert not rows
    assert places(left_out) == [(Fate.REJECTED, "reviewers_disagree")]
    assert len(questions) == 1


def test_a_users_newer_text_takes_the_place_of_their_older_one() -> None:
    (row,), left_out, _ = resolved(
        written("Hello.", spec=WRITING), written("Sorry!", days=1, spec=WRITING), spec=WRITING
    )
    assert row.label == "Sorry!"
    assert places(left_out) == [(Fate.SUPERSEDED, "newer_opinion")]


def test_users_who_disagree_are_rejected_without_a_tie_break() -> None:
    rows, left_out, questions = resolved(written("refund", "u1"), written("delivery", "u2"))
    assert not rows and not questions
    assert places(left_out) == [(Fate.REJECTED, "users_disagree")]


def test_a_users_label_that_the_task_does_not_have_is_rejected_with_its_reason() -> None:
    dataset = build_dataset(Inputs(votes_of([], [written("lost parcel")]), SPEC)).dataset
    assert dataset.left_out_by_reason() == {"unknown_label": 1}


def test_a_users_word_weighs_half_of_a_reviewers_where_they_meet() -> None:
    user, reviewer = (opinion_of(v, SPEC, {}) for v in votes_of([vote("refund", days=1)], [written("delivery")]))
    assert user.weight == pytest.approx(0.5 * reviewer.weight)
    assert decide([user, reviewer], TaskKind.CLASSIFICATION) == "refund"


def test_nobody_outweighs_two_others_however_reliable() -> None:
    sure, usual = (opinion_of(v, SPEC, {"ana": 1.0}) for v in votes_of([vote("refund"), vote("delivery", "ben")]))
    assert usual.weight < sure.weight < 2 * usual.weight


def test_unreliable_reviewers_weigh_nothing_but_still_make_a_row_alone() -> None:
    assert resolved(vote("refund"), reliability={"ana": 0.2})[0][0].label == "refund"
    (row,), _, _ = resolved(vote("refund"), vote("delivery", "ben"), reliability={"ana": 0.2})
    assert row.label == "delivery"


def test_opinions_of_one_moment_and_weight_are_a_tie() -> None:
    tie = [Opinion("refund", NOON, 2.0), Opinion("delivery", NOON, 2.0)]
    assert decide(tie, TaskKind.CLASSIFICATION) is None
    assert decide(tie, TaskKind.GENERATION) == decide(tie[::-1], TaskKind.GENERATION)


LABELS = st.sampled_from((*SPEC.labels, "nonsense"))
REVIEWS = st.builds(
    vote, LABELS, st.sampled_from(("ana", "ben", "eva")), st.integers(0, 400), st.sampled_from(("p1", "p2", "p3"))
)
USERS = st.builds(
    written, LABELS, st.sampled_from(("u1", "u2", None)), st.integers(0, 400), st.sampled_from(("p1", "p2", "p4"))
)


def build(reviews: list[CorrectionSubmitted], users: list[UserCorrection], spec: TaskSpec) -> Build:
    return build_dataset(Inputs(votes_of(reviews, users), spec))


@settings(max_examples=50)
@given(
    st.lists(REVIEWS, max_size=12, unique_by=lambda c: c.correction_id),
    st.lists(USERS, max_size=8, unique_by=lambda c: c.correction_id),
    st.sampled_from((SPEC, WRITING)),
)
def test_every_vote_ends_in_exactly_one_place_in_any_order(
    reviews: list[CorrectionSubmitted], users: list[UserCorrection], spec: TaskSpec
) -> None:
    once, again = build(reviews, users, spec), build(reviews[::-1], users[::-1], spec)
    assert once == again
    dataset = once.dataset
    found = [
        c
        for part in (dataset.train, dataset.eval, dataset.left_out)
        for example in part
        for c in example.correction_ids
    ]
    assert sorted(found) == sorted(word.correction_id for word in (*reviews, *users))
    assert Origin.USER not in {example.origin for example in dataset.eval}, "a user's word alone measures nothing"


def test_newest_of_each_keeps_the_order() -> None:
    cast = votes_of([vote("refund"), vote("cancel", "ben", 1), vote("delivery", days=2)])
    newest, older = newest_of_each(cast)
    assert [v.label for v in newest] == ["cancel", "delivery"]
    assert [v.label for v in older] == ["refund"]


def test_a_row_says_by_which_sample_chance_drew_it_whoever_decides_its_answer() -> None:
    drawn = {"purpose": Purpose.AUDIT, "inclusion_probability": 0.1, "drawn_probability": 0.4}
    audit = vote("refund").model_copy(update=drawn)
    others = [vote("delivery", name, days) for name, days in (("ben", 1.0), ("eve", 2.0))]
    again = [word.model_copy(update={"purpose": Purpose.SUSPICIOUS_LABEL}) for word in others]
    chosen = vote("cancel", prediction="p2").model_copy(update={"purpose": Purpose.FEEDBACK})
    rows, _, _ = resolve_votes(votes_of([audit, *again, chosen]), SPEC, {})
    found = {row.prediction_id: row.example("g") for row in rows}
    assert (found["p1"].answer, found["p1"].purpose, found["p1"].drawn_probability) == ("delivery", Purpose.AUDIT, 0.4)
    assert (found["p2"].purpose, found["p2"].drawn_probability) == (None, None)
