"""The rules of a chat example: what real applications send is valid, and each error has its reason."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from schemas.conversation import Message, Role, ToolCall
from schemas.task_settings import DatasetSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.chat_format import format_error, output_error

FREE = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
SYSTEM = Message(role=Role.SYSTEM, content="Answer with the intent.")


def spec(**dataset: object) -> TaskSpec:
    return TaskSpec(
        name="support-desk",
        kind=TaskKind.CLASSIFICATION,
        system_prompt=SYSTEM.text,
        labels=("refund", "delivery", "cancel"),
        dataset=DatasetSettings.model_validate({"max_answer_chars": 20, **dataset}),
    )


def calling(*ids: str | None) -> Message:
    return Message(role=Role.ASSISTANT, tool_calls=tuple(ToolCall(name="find_order", id=call_id) for call_id in ids))


def result(call_id: str | None = None, content: str = "found") -> Message:
    return Message(role=Role.TOOL, content=content, tool_call_id=call_id)


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
        (SYSTEM, user(), user("please"), assistant()),
        (SYSTEM, assistant("How can I help?"), user(), assistant()),
        (Message(role="developer", content="Be short."), SYSTEM, user(), assistant()),
        (user(), calling("1", "2"), result("2"), result("1"), assistant()),
        (user(), calling("1"), result("1", content=""), calling("2"), result("2"), assistant()),
        (user(), calling("1"), result("1"), user("and?"), assistant()),
        (user(), calling(None), result("1"), assistant()),
        (user(), calling("1"), user("never mind"), assistant()),
        (user(), Message(role="documents", content="…"), assistant()),
        (user(), Message(role="developer", content="Be short."), assistant()),
        (user(), calling("1"), Message(role="developer", content="Be short."), result("1"), assistant()),
        ((user(), assistant()) * 200),
    ],
)
def test_a_valid_conversation_passes(messages: tuple[Message, ...]) -> None:
    assert format_error(messages, (), spec()) is None


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((result("1"), user(), assistant()), "result_without_call"),
        ((user(), result("1"), assistant()), "result_without_call"),
        ((user(), calling("1"), result("2"), assistant()), "result_without_call"),
        ((user(), calling("1"), result("1"), user(), result("1"), assistant()), "result_without_call"),
        ((user(), calling("1"), assistant()), "roles_do_not_alternate"),
        ((user(), assistant("It is"), assistant()), "roles_do_not_alternate"),
        ((SYSTEM, user()), "wrong_end"),
        ((user(), SYSTEM, assistant()), "misplaced_system"),
        ((SYSTEM, assistant()), "nothing_asked"),
        ((SYSTEM, user("  \n"), assistant()), "empty_content"),
        ((SYSTEM, user(), assistant("")), "empty_content"),
        ((SYSTEM, user(), assistant("x" * 21)), "answer_too_long"),
    ],
)
def test_each_format_error_has_its_reason(messages: tuple[Message, ...], reason: str) -> None:
    error = format_error(messages, (), spec())
    assert error is not None
    assert error[0] == reason
    assert error[1]


def test_an_answer_below_the_minimum_is_too_short() -> None:
    assert format_error((user(), assistant("cancel")), (), spec(min_answer_chars=7)) is not None


def test_a_generation_needs_20_characters_unless_set_otherwise_or_it_calls_a_tool() -> None:
    writing = TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt="")
    short = (user(), assistant("x" * 19))
    assert format_error(short, (), writing) == ("answer_too_short", "19 characters; at least 20")
    assert format_error((user(), assistant("x" * 20)), (), writing) is None
    assert format_error((user(), assistant("x" * 8_001)), (), writing) == (
        "answer_too_long", "8001 characters; at most 8000",
    )  # fmt: skip
    assert format_error(short, (), writing.model_copy(update={"dataset": DatasetSettings(min_answer_chars=5)})) is None
    call = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f", arguments="{}"),))
    assert format_error((user(), call), (), writing) is None


SCHEMA: JsonValue = {
    "type": "object",
    "properties": {"order": {"type": "integer"}},
    "required": ["order"],
    "additionalProperties": False,
}


def asked_for(schema: JsonValue) -> JsonValue:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


@pytest.mark.parametrize(
    ("text", "response_format", "reason"),
    [
        ('{"order": 5}', asked_for(SCHEMA), None),
        ('{"order": "5"}', asked_for(SCHEMA), "breaks_schema"),
        ('{"order": 5, "more": 1}', asked_for(SCHEMA), "breaks_schema"),
        ("{}", asked_for(SCHEMA), "breaks_schema"),
        ('{"order": 5', asked_for(SCHEMA), "invalid_json"),
        ("Order 5", asked_for(SCHEMA), "invalid_json"),
        ("Order 5", {"type": "json_object"}, "invalid_json"),
        ("[5]", {"type": "json_object"}, "invalid_json"),
        ('{"a":' * 5_000, {"type": "json_object"}, "invalid_json"),
        ('{"a":' * 260 + "1" + "}" * 260, asked_for({"type": "object"}), "invalid_json"),
        ('{"\\ud83d": 5}', asked_for(SCHEMA), "invalid_json"),
        ('{"order": NaN}', {"type": "json_object"}, "invalid_json"),
        ('{"any": "thing"}', {"type": "json_object"}, None),
        ("Order 5", {"type": "text"}, None),
        ("Order 5", {"format": {"type": "text"}}, None),
        ('{"order": 5}', {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, None),
        ('{"order": "5"}', {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "breaks_schema"),
        ("Order 5", {"format": {"type": "json_object"}}, "invalid_json"),
        ("Order 5", None, None),
        ('{"order": 5}', asked_for({"type": "nonsense"}), None),
        ('{"order": 5}', asked_for({"$ref": "http://127.0.0.1:9/schema.json"}), None),
    ],
)
def test_an_answer_is_in_the_format_that_its_call_asked_for(
    text: str, response_format: JsonValue, reason: str | None
) -> None:
    error = output_error(assistant(text), response_format, FREE)
    assert (error[0] if error else None) == reason
    if error:
        assert error[1]


def test_an_answer_that_is_no_label_of_the_task_is_none() -> None:
    error = output_error(assistant("something"), None, spec())
    assert error is not None and error[0] == "unknown_label"


def test_a_tool_call_is_no_answer_in_the_format() -> None:
    call = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f", arguments="{}"),))
    assert output_error(call, {"type": "json_object"}, FREE) is None


def test_arguments_that_are_nested_too_deeply_to_be_read_are_invalid() -> None:
    call = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f", arguments="[" * 5_000, id="1"),))
    error = format_error((user(), call), (), TaskSpec(name="t", kind=TaskKind.GENERATION, system_prompt=""))
    assert error is not None and error[0] == "invalid_arguments"


def test_a_label_of_one_letter_is_valid() -> None:
    short = TaskSpec(name="t", kind=TaskKind.CLASSIFICATION, system_prompt="", labels=("A", "B"))
    assert format_error((user(), assistant("A")), (), short) is None
