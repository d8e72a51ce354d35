"""Corrections of an extraction are JSON by the task's schema, in one spelling; what breaks it is listed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.conversation import Answer, Call, Message, Role
from schemas.datasets import Fate
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.carry_over import Revision
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from tests.unit.shared.grading.orders import orders

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
SPEC = orders()
RIGHT = '{"customer": {"name": "Ann"}, "items": [{"sku": "A1", "count": 2}]}'
TEXTS = (
    "two A1 for Ann please",
    "please send the customer Bo a ladder",
    "we need 30 tiles by Monday",
    "one B7, thanks",
)


def correction(label: str, number: int = 0, **fields: Any) -> CorrectionSubmitted:
    messages = (Message(role=Role.SYSTEM, content="Extract."), Message(role=Role.USER, content=TEXTS[number]))
    return CorrectionSubmitted.model_validate({
        "occurred_at": NOON + timedelta(minutes=number), "task": "orders", "task_revision": SPEC.revision,
        "correction_id": f"c{number}{fields.get('reviewer', '')}", "request_id": f"r{number}",
        "prediction_id": f"p{number}", "purpose": Purpose.LOW_CONFIDENCE, "reviewer": "ana",
        "call": Call(messages=messages), "answers": (Answer(text="{}"),), "label": label, **fields,
    })  # fmt: skip


def build(*corrections: CorrectionSubmitted, spec: TaskSpec = SPEC, former: TaskSpec | None = None) -> Build:
    known = {s.revision: Revision(s.kind, s.system_prompt, s.answer_form) for s in (former,) if s is not None}
    return build_dataset(Inputs(votes_of(corrections), spec, revisions=known))


def answers(built: Build) -> list[str]:
    return sorted(example.answer for example in (*built.dataset.train, *built.dataset.eval))


def test_answers_are_trained_on_in_one_spelling_however_people_lay_them_out() -> None:
    turned = json.dumps({"items": [{"count": 2, "sku": "A1"}], "customer": {"name": "Ann"}}, indent=4)
    assert answers(build(correction(turned), correction(RIGHT, 1))) == [RIGHT, RIGHT]


def test_two_reviewers_who_lay_out_one_answer_differently_agree() -> None:
    built = build(correction(RIGHT), correction(RIGHT.replace(" ", ""), reviewer="bob"))
    assert answers(built) == [RIGHT]
    (row,) = (*built.dataset.train, *built.dataset.eval)
    assert len(row.correction_ids) == 2
    assert not built.questions


def test_half_of_an_escaped_character_is_no_json_and_ends_no_build() -> None:
    built = build(correction(RIGHT), correction(RIGHT.replace("Ann", "\\ud83d"), 1))
    assert answers(built) == [RIGHT]
    (row,) = built.dataset.left_out
    assert (row.prediction_ids, row.reason) == (("p1",), "invalid_json")


def test_what_a_new_schema_does_not_allow_is_of_the_old_one_and_no_defect() -> None:
    """Where a field became required, all earlier corrections stopped each cycle, until newer ones outnumbered them."""
    before = SPEC.revision
    schema = {**(SPEC.output_schema or {}), "required": ["customer", "items", "city"]}
    schema["properties"] = {**schema["properties"], "city": {"type": "string"}}
    now = SPEC.model_copy(update={"output_schema": schema})
    assert now.revision != before
    fits = RIGHT[:-1] + ', "city": "Lima"}'
    built = build(
        correction(RIGHT), correction(RIGHT[:-1], 1), correction(fits, 2),
        correction(RIGHT, 3, task_revision=now.revision), spec=now, former=SPEC,
    )  # fmt: skip
    assert len(answers(built)) == 1
    found = {row.prediction_ids[0]: (row.fate, row.reason) for row in built.dataset.left_out}
    assert found == {
        "p0": (Fate.SUPERSEDED, "schema_changed"), "p1": (Fate.REJECTED, "invalid_json"),
        "p3": (Fate.REJECTED, "breaks_schema"),
    }  # fmt: skip


def test_what_broke_the_same_schema_before_the_prompt_changed_is_still_a_defect() -> None:
    now = SPEC.model_copy(update={"system_prompt": "Extract, please."})
    built = build(correction(RIGHT), correction(RIGHT.replace("2}", "0}"), 1), spec=now, former=SPEC)
    (row,) = built.dataset.left_out
    assert (row.fate, row.reason) == (Fate.REJECTED, "breaks_schema")


def test_what_breaks_the_schema_or_is_no_json_is_listed_with_the_place() -> None:
    built = build(
        correction(RIGHT),
        correction(RIGHT.replace("2}", "0}"), 1),
        correction(RIGHT[:-1], 2),
        correction(RIGHT[:-1] + ', "note": "x"}', 3),
    )
    assert answers(built) == [RIGHT]
    rejected = {row.prediction_ids[0]: (row.reason, row.detail) for row in built.dataset.left_out}
    assert {name: reason for name, (reason, _) in rejected.items()} == {
        "p1": "breaks_schema", "p2": "invalid_json", "p3": "breaks_schema",
    }  # fmt: skip
    assert rejected["p1"][1].startswith("items[0].count: 0 is less than")


def test_a_corrections_schema_is_the_tasks_of_today_not_that_of_its_call() -> None:
    narrow = {"type": "object", "properties": {"total": {"type": "number"}}, "additionalProperties": False}
    asked = {"type": "json_schema", "json_schema": {"name": "answer", "schema": narrow}}
    call = correction(RIGHT).call.model_copy(update={"response_format": asked})
    assert answers(build(correction(RIGHT, call=call))) == [RIGHT]
    (row,) = build(correction('{"total": 5}', call=call)).dataset.left_out
    assert row.reason == "breaks_schema"
