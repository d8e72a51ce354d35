"""The extraction that the loop plays: its rows, how they are split and measured, and how people judge two objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.demo.clients import GatewayAnswer
from deploy.demo.data.rows import DataError, DataRow, LoopData, read_lines
from deploy.demo.data.split import split_unlabelled
from deploy.demo.data.task_file import DATA, answer_spec, apply_loop_task
from deploy.demo.report.measure import measure
from deploy.demo.reviewers import PAIR, REVIEWERS, Reviewers
from deploy.demo.settings import DataOptions, PlannedMistakes
from schemas.tasks import TaskKind
from shared.privacy.redaction import Redactor, Rules
from shared.privacy.redaction.json_texts import literals_of_answer
from tests.unit.shared.grading.orders import SCHEMA, orders

RIGHT = '{"customer": {"name": "Ann"}, "total": 5, "items": [{"sku": "A1", "count": 2}]}'
BETTER = '{"customer": {"name": "Ann"}, "total": 5, "items": []}'
WORSE = '{"customer": {"name": "Bo"}, "items": []}'
SHIPPED = DataOptions(kind=TaskKind.EXTRACTION)
NOTHING = LoopData((), (), {})


def test_the_shipped_orders_are_enough_rows_of_enough_fields_with_most_of_them_missing_somewhere() -> None:
    data = read_lines(DATA[TaskKind.EXTRACTION], answer_spec(SHIPPED))
    assert len(data.rows) >= 400
    assert not data.dropped
    answers = [json.loads(row.label) for row in data.rows]
    assert len(answers[0]) >= 8
    sometimes_missing = [name for name in answers[0] if any(answer[name] is None for answer in answers)]
    assert len(sometimes_missing) >= 6


def test_redaction_finds_nothing_in_the_shipped_orders_so_that_texts_and_objects_stay_in_step() -> None:
    rows = read_lines(DATA[TaskKind.EXTRACTION], answer_spec(SHIPPED)).rows
    values = {literal.text for row in rows for literal in literals_of_answer(row.label) or ()}
    redacted = Redactor(b"k" * 32).redact([*(row.text for row in rows), *sorted(values)], Rules())
    assert [found.text for found in redacted if found.count] == []


def test_parts_have_no_row_in_common_and_are_as_large_as_the_loop_needs() -> None:
    data = read_lines(DATA[TaskKind.EXTRACTION], answer_spec(SHIPPED))
    split = split_unlabelled(data, seed=20)
    parts = [{row.text for row in part} for part in (split.traffic, split.held_out, split.live)]
    assert [len(part) for part in parts] == [320, 100, 140]
    assert len(set.union(*parts)) == 560
    assert split_unlabelled(data, seed=20) == split
    assert len(split_unlabelled(data, 20, corrections=90).traffic) == 90
    assert len(split_unlabelled(data, 20, corrections=12).traffic) == 80, "fewer are no data set"


def test_the_shipped_task_is_applied_with_the_users_own_schema_or_as_it_is(tmp_path: Path) -> None:
    shipped = apply_loop_task(tmp_path, "orders", SHIPPED, NOTHING, 900)
    assert (shipped.kind, len(shipped.output_fields)) == (TaskKind.EXTRACTION, 11)
    assert shipped.failures.review_budget_per_day == 2_000
    write(tmp_path / "o.schema.json", SCHEMA)
    mine = DataOptions(tmp_path / "o.jsonl", kind=TaskKind.EXTRACTION)
    own = apply_loop_task(tmp_path, "mine", mine, NOTHING, 1_500)
    assert (own.output_schema, own.comparators) == (SCHEMA, {})
    assert own.failures.review_budget_per_day == 3_000


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


ROW = {"text": "two A1 for Ann", "answer": json.loads(RIGHT)}


def test_rows_are_read_in_one_spelling_and_repeated_ones_counted(tmp_path: Path) -> None:
    turned = {**ROW, "answer": dict(reversed(json.loads(RIGHT).items()))}
    other = {"text": "Other", "answer": json.loads(BETTER)}
    data = read_lines(write(tmp_path / "o.jsonl", ROW, "", turned, other), orders())
    assert data.rows == (DataRow("two A1 for Ann", RIGHT), DataRow("Other", BETTER))
    assert data.dropped == {"repeated text": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{oops", "o.jsonl:2: "),
        ({"text": "a"}, "o.jsonl:2: expected an `answer`"),
        ({"text": " ", "answer": {}}, "o.jsonl:2: expected an object with a `text` that is not empty"),
        ({**ROW, "answer": {"customer": {"name": 1}, "items": []}}, "customer.name: 1 is not of type"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_before_anything_is_started(
    tmp_path: Path, line: object, said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_lines(write(tmp_path / "o.jsonl", ROW, line), orders())
    assert said in caught.value.reason


def test_without_a_schema_the_error_says_where_to_write_it(tmp_path: Path) -> None:
    source = DataOptions(tmp_path / "o.jsonl", kind=TaskKind.EXTRACTION)
    with pytest.raises(DataError, match=r"no output_schema: .*o\.schema\.json") as caught:
        answer_spec(source)
    assert "--schema" in caught.value.way_out
    write(tmp_path / "o.schema.json", {"type": "array"})
    with pytest.raises(DataError, match="must be of an object with fields"):
        answer_spec(source)


def test_too_few_rows_say_how_many_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 different texts .*; 160 are needed"):
        split_unlabelled(read_lines(write(tmp_path / "o.jsonl", ROW), orders()), 20)


def answered(text: str, error: str = "") -> GatewayAnswer:
    return GatewayAnswer(DataRow("q", RIGHT), text, "p", "base", "", 0.5, 10.0, error)


def test_answers_are_measured_by_their_values_and_as_whole_objects() -> None:
    turned = json.dumps(dict(reversed(json.loads(RIGHT).items())), indent=1)
    assert answered(turned).correct
    measured = measure([answered(turned), answered(BETTER), answered("no idea"), answered("", "503")], orders())
    assert (measured.accuracy.value, measured.valid, measured.failed) == (0.25, 2, 1)
    assert measured.by_label == {
        "customer.name": (2, 4), "total": (2, 4), "items[].sku": (1, 4), "items[].count": (1, 4),
    }  # fmt: skip
    assert measured.field_f1 == pytest.approx(2 * 6 / (6 + 16))


class FakeQueue:
    def __init__(self, items: list[dict[str, Any]]) -> None:
        self.items, self.answers = items, dict[str, dict[str, Any]]()

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        wanted = [item for item in self.items if purpose in (None, item["purpose"])]
        return [item for item in wanted if item["request_id"] not in self.answers]

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        self.answers[request_id] = answer
        return True


def pair(name: str, *texts: str) -> dict[str, Any]:
    answers = [{"text": text} for text in texts]
    return {"request_id": name, "prediction_id": "p", "purpose": PAIR, "overlap": 1, "answers": answers}


@pytest.mark.parametrize(("wrong_share", "said"), [(0.0, ["b", "a", "both_wrong", "both_right"]), (1.0, ["a", "b"])])
async def test_of_two_objects_people_choose_the_one_with_more_right_in_it(wrong_share: float, said: list[str]) -> None:
    items = [
        pair("1", WORSE, BETTER),
        pair("2", RIGHT, BETTER),
        pair("3", "x", "y"),
        pair("4", RIGHT, RIGHT.replace(" ", "")),
    ]
    queue = FakeQueue(items[: len(said)])
    people = Reviewers(queue, [RIGHT, WORSE], PlannedMistakes(wrong_share=wrong_share), spec=orders())
    people.add_prediction("p", DataRow("q", RIGHT))
    for reviewer in REVIEWERS:
        await people.answer_queue(reviewer)
    assert [answer["preference"] for answer in queue.answers.values()] == said
    assert people.counts.by_purpose[PAIR] == len(said)
    assert people.counts.wrong == (len(said) if wrong_share else 0)
