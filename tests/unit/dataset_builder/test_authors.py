"""Whoever wrote something in a version is named on its line, so that an erasure finds it."""

from __future__ import annotations

import json
import re

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Example, LeftOutExample
from services.dataset_builder.building.votes import UserCorrection, votes_of
from services.dataset_builder.pipeline import Dataset, Inputs, build_dataset
from tests.unit.dataset_builder.histories import LABELS, NOON, corrections, sentence, task

Line = Example | LeftOutExample


def word(number: int, label: str, author: str | None, whose: str | None = "alice") -> UserCorrection:
    """What a user wrote about the prediction of this number; those up to 60 have a reviewer's label, too."""
    return UserCorrection(
        correction_id=f"feedback-{number}-{author}", task="desk", task_revision=task().revision,
        prediction_id=f"p{number}", occurred_at=NOON,
        call=Call(messages=(Message(role=Role.USER, content=sentence(number)),)), answers=(Answer(text="other"),),
        label=label, author_hash=author, user_hash=whose, predicted_at=NOON,
    )  # fmt: skip


def built(*words: UserCorrection) -> Dataset:
    return build_dataset(Inputs(votes_of(corrections(60), words), task())).dataset


def lines_of(dataset: Dataset, prediction_id: str) -> list[Line]:
    lines: list[Line] = [*dataset.train, *dataset.eval, *dataset.left_out]
    return [line for line in lines if line.prediction_ids == (prediction_id,)]


def people_of(line: Line) -> set[str | None]:
    return {line.user_hash, *line.author_hashes}


def test_a_row_made_of_anothers_words_names_them_beside_the_one_who_was_answered() -> None:
    (row,) = lines_of(built(word(900, "refund", "bob"), word(900, "refund", "cy")), "p900")
    assert (row.user_hash, row.author_hashes) == ("alice", ("bob", "cy"))
    (own,) = lines_of(built(word(900, "refund", "alice")), "p900")
    assert (own.user_hash, own.author_hashes) == ("alice", ())
    (unknown,) = lines_of(built(word(900, "refund", None)), "p900")
    assert (unknown.user_hash, unknown.author_hashes) == ("alice", ())


def test_a_row_that_does_not_follow_the_words_names_them_only_where_they_are_left_out() -> None:
    label, other = LABELS[0], LABELS[1]
    dataset = built(word(3, other, "bob", None))
    (row,) = (line for line in lines_of(dataset, "p3") if isinstance(line, Example))
    (overruled,) = (line for line in lines_of(dataset, "p3") if isinstance(line, LeftOutExample))
    assert (row.answer, row.author_hashes) == (label, ())
    assert (overruled.reason, people_of(overruled)) == ("reviewers_word", {None, "bob"})


def test_whoever_a_line_quotes_is_named_on_it() -> None:
    """Users who disagree, who are overruled, who answered again and whose words are no label."""
    dataset = built(
        word(900, "refund", "bob"), word(900, "cancel", "cy"), word(4, "refund", "bob"),
        word(5, LABELS[2], "cy"), word(901, "what?", "dan"),
    )  # fmt: skip
    quoting = [(line, re.findall(r"user:(\w+)", line.detail)) for line in dataset.left_out]
    assert {name for _, names in quoting for name in names} == {"bob", "cy"}
    assert all(people_of(line) >= set(names) for line, names in quoting)
    assert {"dan"} <= set().union(*(people_of(line) for line in dataset.left_out if line.reason == "unknown_label"))


def test_lines_without_words_of_another_are_the_same_as_without_any_feedback() -> None:
    without, with_feedback = built(), built(word(900, "refund", "bob"))
    before = {line.example_id: line.model_dump_json() for line in (*without.train, *without.eval)}
    after = {line.example_id: line.model_dump_json() for line in (*with_feedback.train, *with_feedback.eval)}
    assert before.items() <= after.items()
    assert not [line for line in before.values() if "author_hashes" in line]
    (added,) = after.keys() - before.keys()
    assert json.loads(after[added])["author_hashes"] == ["bob"]
    assert Example.model_validate_json(after[added]).author_hashes == ("bob",)
