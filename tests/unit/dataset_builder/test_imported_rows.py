"""Rows that a team imported: trained on and held out as a reviewer's, and no word on what production answered."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Origin
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.questions import label_again
from services.dataset_builder.building.votes import resolve_votes, votes_of
from services.dataset_builder.checks.poisoning import hold_back_voters
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from tests.unit.dataset_builder.voting import correction

SPEC = TaskSpec(
    name="t",
    kind=TaskKind.CLASSIFICATION,
    system_prompt="",
    labels=("a", "b", "c"),
)
WRITING = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="", dataset=DatasetSettings(min_answer_chars=1))
TEXTS = [f"{chr(97 + n % 26) * 9} {n * 7919} of its own {chr(97 + n * 7 % 26) * 12} {n * 104_729}" for n in range(60)]


def asked(*texts: str) -> Call:
    """A conversation of the user and the assistant in turn."""
    roles = (Role.USER, Role.ASSISTANT)
    return Call(messages=tuple(Message(role=roles[n % 2], content=text) for n, text in enumerate(texts)))


def imported(number: int, label: str, reviewer: str = "import:tickets.csv", **fields: Any) -> CorrectionSubmitted:
    given: dict[str, Any] = {"purpose": Purpose.IMPORT, "answers": (), "call": asked(TEXTS[number]), **fields}
    return correction(number, label, reviewer, **given)


def build(*corrections: CorrectionSubmitted, spec: TaskSpec = SPEC) -> Build:
    return build_dataset(Inputs(votes_of(corrections), spec))


def test_imported_rows_are_trained_on_and_held_out_and_are_no_sample_of_production() -> None:
    dataset = build(*(imported(n, "abc"[n % 3]) for n in range(60))).dataset
    assert (len(dataset.train), len(dataset.eval), dataset.left_out) == (48, 12, ())
    assert {row.origin for row in (*dataset.train, *dataset.eval)} == {Origin.REVIEWER}
    assert {(row.seen, row.drawn_probability, row.purpose) for row in dataset.eval} == {(False, None, None)}


def test_the_weight_of_an_imported_row_is_that_of_its_training_row() -> None:
    dataset = build(*(imported(n, "abc"[n % 3], weight=0.5 if n % 2 else 3.0) for n in range(60))).dataset
    assert {(int(row.prediction_ids[0][1:]) % 2, row.weight) for row in dataset.train} == {(0, 3.0), (1, 0.5)}


def test_whoever_labelled_one_class_of_an_import_is_compared_with_nobody() -> None:
    """Teams divide work by class, and nobody knows what production would have answered."""
    rows = [imported(n, "a" if n < 30 else "b", "ana" if n < 30 else "ben") for n in range(60)]
    pairs = [
        correction(100 + n, "c", ("cleo", "dan", "eva")[n % 3], answers=(Answer(text="a"), Answer(text="c")))
        for n in range(60)
    ]
    guarded = hold_back_voters(resolve_votes(votes_of([*rows, *pairs]), SPEC, {})[0], SPEC)
    assert (len(guarded.rows), guarded.held_back, guarded.shifts) == (120, (), ())


def test_an_imported_text_makes_no_pair_of_production_s_answer_and_a_better_one() -> None:
    result = build(imported(0, "We send another one today."), imported(1, "It is on its way."), spec=WRITING)
    assert len(result.dataset.train) == 2
    assert result.edits == []


@pytest.mark.parametrize("first", [0, 1])
def test_turns_of_an_imported_conversation_are_on_one_side_without_the_name_of_their_session(first: int) -> None:
    """What the first turn was labelled with is what the second one's history goes on with."""
    turns = []
    for n in range(30):
        question, answer = TEXTS[n], f"answer {TEXTS[59 - n]}"
        turns += [
            imported(2 * n, answer, call=asked(question)),
            imported(2 * n + 1, f"and {answer}", call=asked(question, answer, f"and {TEXTS[n]}")),
        ]
    dataset = build(*sorted(turns, key=lambda turn: int(turn.prediction_id[1:]) % 2 == first), spec=WRITING).dataset
    sides = {
        int(row.prediction_ids[0][1:]): side
        for side, rows in (("train", dataset.train), ("eval", dataset.eval))
        for row in rows
    }
    assert set(sides.values()) == {"train", "eval"}
    assert [n for n in range(30) if len({sides.get(2 * n), sides.get(2 * n + 1)} - {None}) > 1] == []


def test_a_label_of_an_import_that_looks_wrong_is_asked_about_without_an_answer() -> None:
    (row,), _, _ = resolve_votes(votes_of([imported(0, "a")]), SPEC, {})
    question = label_again(row, row.label, SPEC, 1.0, row.corrected_at)
    assert (question.answers, question.labels) == ((), SPEC.labels)


def test_who_confirms_an_imported_label_leaves_its_weight_as_it_is() -> None:
    again = imported(0, "a", "ben", purpose=Purpose.SUSPICIOUS_LABEL, minute=5)
    (row,), _, _ = resolve_votes(votes_of([imported(0, "a", weight=4.0), again]), SPEC, {})
    assert (row.weight, row.answers, row.voters) == (4.0, (), ("import:tickets.csv", "ben"))
