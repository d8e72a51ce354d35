"""Examples are bounded in tokens of the base model, and the short ones, which are most, are not even counted."""

from __future__ import annotations

from collections.abc import Sequence

from schemas.conversation import JsonObject, Message, Role, ToolCall
from schemas.task_settings import TrainingSettings
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.length import length_error

SPEC = TaskSpec(
    name="t", kind=TaskKind.GENERATION, system_prompt="Reply.", base_model="small",
    training=TrainingSettings(max_length=200),
)  # fmt: skip
TOOL: JsonObject = {"type": "function", "function": {"name": "f"}}


class Words:
    """Counts words; a template that knows no tools."""

    def __init__(self) -> None:
        self.counted = 0

    def __call__(self, messages: Sequence[Message], tools: Sequence[JsonObject]) -> int | None:
        self.counted += 1
        if tools:
            return None
        return sum(len(message.text.split()) for message in messages)


def chat(text: str, answer: Message | None = None) -> tuple[Message, ...]:
    return (Message(role=Role.USER, content=text), answer or Message(role=Role.ASSISTANT, content="Fine."))


def test_an_example_with_too_many_tokens_is_rejected_with_their_number() -> None:
    words = Words()
    assert length_error(chat("word " * 250), (), SPEC, words) == (
        "too_many_tokens", "251 tokens of small; training.max_length is 200",
    )  # fmt: skip
    assert length_error(chat("word " * 199), (), SPEC, words) is None
    assert words.counted == 2


def test_a_short_example_is_not_counted_since_a_token_has_at_least_a_byte() -> None:
    words = Words()
    assert length_error(chat("where is it"), (), SPEC, words) is None
    assert words.counted == 0
    assert length_error(chat("é" * 60), (), SPEC, words) is None
    assert words.counted == 1, "a character may be several tokens"


def test_what_the_template_does_not_take_is_named_however_short() -> None:
    calling = Message(role=Role.ASSISTANT, tool_calls=(ToolCall(name="f"),))
    error = length_error(chat("hi", calling), (TOOL,), SPEC, Words())
    assert error is not None
    assert error[0] == "not_rendered"


def test_without_the_base_model_nothing_is_counted() -> None:
    assert length_error(chat("word " * 9_999), (), SPEC, None) is None
