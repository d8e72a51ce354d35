"""The tools task that the loop plays: its rows, how answers are read and measured, and how people judge two of them."""

from __future__ import annotations

import json
from collections import Counter
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
from schemas.conversation import Answer, ToolCall
from schemas.tasks import TaskKind, TaskSpec
from schemas.tools import CallsPerAnswer, FunctionTool, ToolChoice
from shared.grading.tool_calls import loose_calls
from shared.privacy.redaction import Redactor, Rules
from tests.unit.shared.grading.home import BOOK, LIGHT, STOP, STOPS, calls, home, light

SHIPPED = DataOptions(kind=TaskKind.TOOLS)
TOOLS = tuple(FunctionTool.model_validate(tool) for tool in (LIGHT, BOOK, STOP))


def shipped() -> tuple[DataRow, ...]:
    data = read_lines(DATA[TaskKind.TOOLS], answer_spec(SHIPPED))
    assert not data.dropped
    return data.rows


def test_the_shipped_rows_are_enough_of_each_of_enough_functions() -> None:
    functions = Counter(loose_calls(row.label)[0].name for row in shipped())
    assert functions.keys() == answer_spec(SHIPPED).functions.keys()
    assert len(functions) >= 6
    assert min(functions.values()) >= 50
    assert functions.total() >= 400


def test_no_two_shipped_rows_are_nearly_the_same_so_that_none_is_left_out_as_a_copy() -> None:
    data = read_lines(DATA[TaskKind.TOOLS], answer_spec(SHIPPED))
    split = split_unlabelled(data, seed=20)
    assert [len(part) for part in (split.traffic, split.held_out, split.live)] == [320, 100, 140]


def test_redaction_finds_nothing_in_the_shipped_rows_so_that_texts_and_calls_stay_in_step() -> None:
    values = {
        str(value) for row in shipped() for call in loose_calls(row.label) for value in call.arguments.values() if value
    }
    redacted = Redactor(b"k" * 32).redact([*(row.text for row in shipped()), *sorted(values)], Rules())
    assert [found.text for found in redacted if found.count] == []


def write(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


LINE = {"text": "light!", "calls": [{"name": "set_light", "arguments": {"on": True, "room": "kitchen"}}]}


def test_calls_are_read_in_one_spelling_and_a_text_where_none_is_right(tmp_path: Path) -> None:
    lines = (LINE, {"text": "hi", "answer": " Hello. "}, {"text": "enough", "calls": [{"name": "stop"}]})
    data = read_lines(write(tmp_path / "h.jsonl", *lines), home(tool_choice="auto"))
    assert [row.label for row in data.rows] == [calls(light()), "Hello.", calls(STOPS)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"text": "a"}, "h.jsonl:2: expected an `answer`, or `calls`"),
        ({**LINE, "answer": "b"}, "expected either `calls` or `answer`"),
        ({"text": " ", "calls": []}, "a `text` that is not empty"),
        ({"text": "a", "calls": [{"name": "dance"}]}, "'dance' is no function of the task"),
        ({"text": "a", "calls": [{"name": "set_light", "arguments": {"room": "attic"}}]}, "set_light: "),
        ({"text": "a", "calls": ["stop"]}, "`calls` must be a list of objects"),
    ],
)
def test_a_line_that_cannot_be_used_is_named_before_anything_is_started(
    tmp_path: Path, line: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError) as caught:
        read_lines(write(tmp_path / "h.jsonl", LINE, line), home())
    assert said in caught.value.reason


def own(folder: Path, tools: object) -> DataOptions:
    """The user's own rows, with these functions beside them."""
    (folder / "h.tools.json").write_text(json.dumps(tools))
    return DataOptions(folder / "h.jsonl", kind=TaskKind.TOOLS)


def test_the_users_own_functions_stand_beside_the_data(tmp_path: Path) -> None:
    assert answer_spec(own(tmp_path, [LIGHT, BOOK, STOP])).tools == TOOLS
    with pytest.raises(DataError, match="should match pattern"):
        answer_spec(own(tmp_path, [{"name": "two words"}]))
    (tmp_path / "h.tools.json").unlink()
    with pytest.raises(DataError, match=r"no tools: .*h\.tools\.json"):
        answer_spec(DataOptions(tmp_path / "h.jsonl", kind=TaskKind.TOOLS))


def test_the_shipped_task_is_applied_as_it_is_or_with_the_users_functions_and_what_their_rows_show(
    tmp_path: Path,
) -> None:
    shipped_task = apply_loop_task(tmp_path, "home", SHIPPED, LoopData((), (), {}), 900)
    assert (len(shipped_task.functions), shipped_task.tool_choice) == (8, ToolChoice.REQUIRED)

    def applied(name: str, *labels: str) -> TaskSpec:
        data = LoopData(tuple(DataRow("q", label) for label in labels), (), {})
        return apply_loop_task(tmp_path, name, own(tmp_path, [LIGHT, BOOK, STOP]), data)

    plain, wide = applied("mine", calls(STOPS)), applied("wide", calls(STOPS, STOPS), "Hello.")
    assert (plain.tools, plain.tool_choice, plain.calls_per_answer) == (TOOLS, ToolChoice.REQUIRED, CallsPerAnswer.ONE)
    assert (wide.tool_choice, wide.calls_per_answer) == (ToolChoice.AUTO, CallsPerAnswer.ANY_ORDER)


def answered(text: str) -> GatewayAnswer:
    return GatewayAnswer(DataRow("q", calls(light())), text, "p", "base", "", 0.5, 10.0)


def test_answers_are_measured_by_functions_and_arguments_and_as_a_whole() -> None:
    given = [answered(calls(light())), answered(calls(light("hall"))), answered("Sure!")]
    assert [answer.correct for answer in given] == [True, False, False]
    measured = measure(given, home())
    assert (measured.accuracy.value, measured.valid) == (1 / 3, 2)
    assert measured.field_f1 == pytest.approx(2 * 5 / (6 + 9))
    assert measured.by_label["set_light"] == (2, 3)
    assert measured.by_label["set_light.room"] == (1, 3)


class Console:
    def __init__(self, *answers: Answer) -> None:
        self.item = {
            "request_id": "r", "prediction_id": "p", "purpose": PAIR, "overlap": 1,
            "answers": [answer.model_dump(mode="json") for answer in answers],
        }  # fmt: skip
        self.given: list[dict[str, Any]] = []

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]:
        return [self.item] if purpose == PAIR else []

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool:
        self.given.append(answer)
        return True


async def test_of_two_calls_people_choose_the_one_with_more_right_in_it() -> None:
    def call(made: tuple[str, dict[str, Any]]) -> Answer:
        return Answer(tool_calls=(ToolCall(name=made[0], arguments=json.dumps(made[1])),))

    console = Console(call(STOPS), call(light("hall")))
    people = Reviewers(console, [], PlannedMistakes(0.0, 0.0), spec=home())
    people.add_prediction("p", DataRow("q", calls(light())))
    await people.answer_queue(REVIEWERS[0])
    assert [answer["preference"] for answer in console.given] == ["b"]
