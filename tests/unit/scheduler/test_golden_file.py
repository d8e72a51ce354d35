"""A golden file has questions in two forms; a line that cannot be asked is reported with its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.conversation import Message, Role, ToolCall
from schemas.golden import GoldenPart
from schemas.tasks import TaskSpec
from services.scheduler.golden import file as golden_file
from services.scheduler.golden.file import golden_lines, read_golden_file
from shared.errors import ConfigurationError
from tests.unit.shared.grading.tickets import tickets, topics

DESK = TaskSpec.model_validate(
    {"name": "desk", "kind": "classification", "system_prompt": "Classify.", "labels": ["delivery", "refund"]}
)
REPLY = TaskSpec.model_validate({"name": "reply", "kind": "generation", "system_prompt": "Reply."})
WHERE: dict[str, Any] = {"text": "where is it?", "label": "delivery"}
TALK: dict[str, Any] = {
    "messages": [
        {"role": "user", "content": "Where is order 7?"},
        {"role": "assistant", "tool_calls": [{"name": "find", "arguments": '{"order": 7}', "id": "c1"}]},
        {"role": "tool", "content": "in Lima", "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is in Lima."},
    ],
    "tools": [{"type": "function", "function": {"name": "find"}}],
    "part": "kept",
    "must_pass": True,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "desk.golden.jsonl"


def lines(*rows: object) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def test_a_line_is_a_text_with_its_label_or_a_conversation_with_its_tools(file: Path) -> None:
    file.write_bytes(lines(TALK, {"text": "Hello", "label": "Hi!"}))
    talk, hello = read_golden_file(file, REPLY)
    assert [message.role for message in talk.prompt] == ["user", "assistant", "tool"]
    assert talk.prompt[1].tool_calls == (ToolCall(name="find", arguments='{"order": 7}', id="c1"),)
    assert (talk.answer, talk.part, talk.must_pass, len(talk.tools)) == ("It is in Lima.", GoldenPart.KEPT, True, 1)
    assert hello.messages == (
        Message(role=Role.USER, content="Hello"),
        Message(role=Role.ASSISTANT, content="Hi!"),
    )
    assert (hello.part, hello.must_pass) == (GoldenPart.SAMPLE, False)


def test_rows_are_written_as_they_are_read(file: Path) -> None:
    from_prediction = {**WHERE, "prediction_id": "p1", "user_hash": "u1", "predicted_at": "2026-11-02T12:00:00Z"}
    file.write_bytes(lines(from_prediction))
    rows = read_golden_file(file, DESK)
    assert json.loads(golden_lines(rows)) == from_prediction
    file.write_bytes(lines(TALK))
    talk = read_golden_file(file, REPLY)
    file.write_bytes(golden_lines(talk))
    assert read_golden_file(file, REPLY) == talk


def test_a_text_too_long_for_a_line_of_text_is_written_as_a_conversation(file: Path) -> None:
    question = {"role": "user", "content": "x" * 40_000}
    file.write_bytes(lines({"messages": [question, {"role": "assistant", "content": "refund"}]}))
    rows = read_golden_file(file, DESK)
    file.write_bytes(golden_lines(rows))
    assert read_golden_file(file, DESK) == rows


def test_the_tasks_own_prompt_is_no_part_of_a_row(file: Path) -> None:
    question = {"role": "user", "content": "where is it?"}
    answer = {"role": "assistant", "content": "delivery"}
    file.write_bytes(lines({"messages": [{"role": "system", "content": "Classify."}, question, answer]}))
    (with_prompt,) = read_golden_file(file, DESK)
    file.write_bytes(lines(WHERE))
    assert read_golden_file(file, DESK) == (with_prompt,)
    file.write_bytes(lines({"messages": [{"role": "system", "content": "Be rude."}, question, answer]}))
    (other,) = read_golden_file(file, DESK)
    assert other.messages[0].text == "Be rude."


def test_a_renamed_label_keeps_its_rows(file: Path) -> None:
    renamed = {"labels": ("shipping", "refund"), "renamed_labels": {"delivery": "shipping"}}
    file.write_bytes(lines(WHERE))
    (before,) = read_golden_file(file, DESK)
    (after,) = read_golden_file(file, TaskSpec.model_validate({**DESK.model_dump(), **renamed}))
    assert (after.row_id, before.answer, after.answer) == (before.row_id, "delivery", "shipping")


def test_line_separators_inside_a_text_end_no_line(file: Path) -> None:
    text = "one\u2028two\x85three\x0bfour"
    file.write_bytes("\ufeff".encode() + lines({"text": text, "label": "refund"}, WHERE))
    assert read_golden_file(file, DESK)[0].prompt[0].text == text


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"{oops", "found '{oops'; expected"),
        (b"3", "expected {"),
        (b"\xff", "found the byte 0xff; expected UTF-8 text"),
        (lines({"text": "a"}), "neither or both"),
        (lines({**WHERE, **TALK}), "neither or both"),
        (lines({**WHERE, "must_pas": True}), "must_pas: Extra inputs are not permitted"),
        (lines({**WHERE, "part": "best"}), "part: Input should be 'kept' or 'sample'"),
        (lines({"text": "  ", "label": "refund"}), "nothing is asked"),
        (lines({"text": "a", "label": ""}), "there is no answer"),
        (lines({"messages": [{"role": "assistant", "content": "refund"}]}), "nothing is asked"),
        (lines({"messages": [{"role": "user", "content": "a"}]}), "nothing is asked"),
        (lines({"messages": []}), "messages: Tuple should have at least 1 item"),
        (lines({"text": "a", "label": "refnd"}), "label: 'refnd' is not a label of the task; did you mean 'refund'?"),
        (lines({"text": "a", "label": "x"}), "label: 'x' is not a label of the task; its labels:"),
        (lines(WHERE | {"label": "refund"}), "found the same question as in line 1"),
        (
            lines({"messages": [
                {"role": "user", "content": [{"type": "text", "text": "Is it this?"}, {"type": "image_url"}]},
                {"role": "assistant", "content": "refund"},
            ]}),
            "a part that the event does not carry: image_url",
        ),
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_asked_is_reported_with_its_number(file: Path, line: bytes, expected: str) -> None:
    file.write_bytes(lines(WHERE) + b"\n" + line)
    with pytest.raises(ConfigurationError) as caught:
        read_golden_file(file, DESK)
    assert caught.value.reason.startswith(f"{file}:3: ")
    assert expected in caught.value.reason
    assert "The golden set" in caught.value.way_out


def test_a_right_answer_of_an_extraction_must_be_json_by_its_schema(file: Path) -> None:
    spec = TaskSpec.model_validate({
        "name": "orders", "kind": "extraction", "system_prompt": "Extract.",
        "output_schema": {"type": "object", "properties": {"total": {"type": "number"}}},
    })  # fmt: skip
    file.write_bytes(lines({"text": "it cost 5", "label": '{"total": 5}'}))
    assert read_golden_file(file, spec)[0].answer == '{"total": 5}'
    file.write_bytes(lines({"text": "it cost 5", "label": '{"total": "5"}'}))
    with pytest.raises(ConfigurationError, match='total: "5" is not of type "number"'):
        read_golden_file(file, spec)


def test_several_right_labels_are_a_list_and_are_kept_in_the_tasks_order_by_their_names_of_today(file: Path) -> None:
    spec = tickets(renamed_labels={"bill": "invoice"})
    rows = [["refund", "bill", "refund"], json.dumps(["bill"]), []]
    file.write_bytes(lines(*({"text": f"question {n}", "label": label} for n, label in enumerate(rows))))
    read = read_golden_file(file, spec)
    assert [row.answer for row in read] == [topics("refund", "invoice"), topics("invoice"), topics()]
    assert read_golden_file(_written(file, spec), spec) == read


def _written(file: Path, spec: TaskSpec) -> Path:
    copy = file.with_suffix(".copy")
    copy.write_bytes(golden_lines(read_golden_file(file, spec)))
    return copy


@pytest.mark.parametrize("label", ["refund", ["parcel"], ["refund", "refunds"]])
def test_right_labels_that_the_task_does_not_have_are_refused(file: Path, label: object) -> None:
    file.write_bytes(lines({"text": "it came late", "label": label}))
    with pytest.raises(ConfigurationError, match=":1: label: "):
        read_golden_file(file, tickets())


def test_a_list_of_labels_is_no_label_of_a_classification(file: Path) -> None:
    file.write_bytes(lines({"text": "it came late", "label": ["refund"]}))
    with pytest.raises(ConfigurationError, match="did you mean 'refund'"):
        read_golden_file(file, DESK)


def test_too_many_rows_and_a_file_that_is_not_there_are_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_golden_file(file, DESK)
    monkeypatch.setattr(golden_file, "MAX_ROWS", 2)
    file.write_bytes(lines(*({"text": f"question {n}", "label": "refund"} for n in range(3))))
    with pytest.raises(ConfigurationError, match=r":3: found more than 2 rows"):
        read_golden_file(file, DESK)
    monkeypatch.setattr(golden_file, "MAX_BYTES", 10)
    with pytest.raises(ConfigurationError, match="more than 10 bytes"):
        read_golden_file(file, DESK)
