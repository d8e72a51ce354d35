"""Corrections of calls become calls of the functions that the task has today, in one spelling."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.conversation import Answer, Call, Message, Role, ToolCall
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskSpec
from services.dataset_builder.building.votes import votes_of
from services.dataset_builder.pipeline import Build, Inputs, build_dataset
from shared.conversation.task_tools import chat_fields
from tests.unit.shared.grading.home import STOPS, book, calls, home, light

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
HOME = home()
TEXTS = ("light in the kitchen please", "book a table for Ann on the first", "enough of all that noise", "hall, now")


def correction(label: str, number: int = 0, text: str | None = None, **fields: Any) -> CorrectionSubmitted:
    asked = Message(role=Role.USER, content=text or TEXTS[number])
    given = Answer(tool_calls=(ToolCall(name="stop", arguments="{}", id="call_1"),))
    return CorrectionSubmitted.model_validate({
        "occurred_at": NOON + timedelta(minutes=number), "task": "home", "task_revision": HOME.revision,
        "correction_id": f"c{number}{fields.get('reviewer', '')}", "request_id": f"r{number}",
        "prediction_id": f"p{number}", "purpose": Purpose.LOW_CONFIDENCE, "reviewer": "ana",
        "call": Call(messages=(asked,), tools=fields.pop("tools", ())), "answers": (given,), "label": label, **fields,
    })  # fmt: skip


def build(*corrections: CorrectionSubmitted, spec: TaskSpec = HOME) -> Build:
    return build_dataset(Inputs(votes_of(corrections), spec))


def rows(built: Build) -> list[Any]:
    return sorted((*built.dataset.train, *built.dataset.eval), key=lambda row: row.prediction_ids)


def test_a_row_has_the_functions_of_today_and_calls_with_arguments_in_the_order_of_the_schema() -> None:
    turned = json.dumps([{"name": "set_light", "arguments": '{"on":true,  "room":"kitchen"}'}])
    former = ({"type": "function", "function": {"name": "set_light", "parameters": {"type": "object"}}},)
    (row,) = rows(build(correction(turned, tools=former)))
    assert list(row.tools) == chat_fields(HOME)["tools"]
    (call,) = row.messages[-1].tool_calls
    assert (call.name, call.arguments, row.messages[-1].content) == ("set_light", json.dumps(light()[1]), None)
    assert row.answer == calls(light())


def test_two_reviewers_who_write_one_call_differently_agree() -> None:
    other = calls(light()).replace('": ', '":')
    (row,) = rows(build(correction(calls(light())), correction(other, reviewer="bob")))
    assert len(row.correction_ids) == 2


def test_calls_that_the_task_does_not_allow_are_listed_with_the_reason() -> None:
    built = build(
        correction(calls(light("attic"))), correction("Done!", 1), correction(calls(light(), STOPS), 2),
        correction(calls(STOPS), 3),
    )  # fmt: skip
    assert [row.answer for row in rows(built)] == [calls(STOPS)]
    left_out = {row.correction_ids[0]: (row.reason, row.detail) for row in built.dataset.left_out}
    assert {reason for reason, _ in left_out.values()} == {"breaks_tools"}
    assert "set_light: room" in left_out["c0"][1]


def test_where_no_call_is_right_the_text_is_trained_on() -> None:
    (row,) = rows(build(correction("I cannot do that."), spec=home(tool_choice="auto")))
    assert (row.messages[-1].content, row.messages[-1].tool_calls) == ("I cannot do that.", ())


def test_each_function_has_its_share_of_the_rows_that_are_held_out() -> None:
    words = ("oak", "elm", "fig", "ash", "yew", "fir", "bay", "box", "may", "sal")
    many = [
        correction(calls(made), number, text=f"{words[number % 10] * 3} {words[number // 10] * 4} {kind}")
        for number, (kind, made) in enumerate([("a", light())] * 40 + [("b", book())] * 10)
    ]
    held = Counter(row.messages[-1].tool_calls[0].name for row in build(*many).dataset.eval)
    assert held == {"set_light": 8, "book_table": 2}
