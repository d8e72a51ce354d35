"""What a chat template gets of a conversation, and which conversations can teach nothing."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue

from schemas.conversation import Answer, Api, Call, FinishReason, Media, Message, Part, Role, ToolCall
from shared.conversation import NEVER_TRAINED, chat_tools, never_trained, template_messages
from shared.conversation.requests import TOKEN_IDS

FIND: dict[str, JsonValue] = {"name": "find_order", "parameters": {"type": "object"}}
TALK = (
    Message(
        role=Role.USER,
        content=(
            Part(type="text", text="Where are"),
            Part(type="text", text=""),
            Part(type="text", text="4711 and 4712?"),
        ),
    ),
    Message(
        role=Role.ASSISTANT,
        reasoning="Look both up.",
        tool_calls=(
            ToolCall(name="find_order", arguments='{"number": "4711"}', id="call_1"),
            ToolCall(name="find_order", id="call_2"),
            ToolCall(name="find_order", arguments='{"number": "47', id="call_3"),
            ToolCall(name="find_order", arguments='"4711"', id="call_4"),
            ToolCall(name="find_order", arguments='{"number":' * 5_000, id="call_5"),
        ),
    ),
    Message(role=Role.TOOL, content="on its way", tool_call_id="call_1"),
)


def test_a_template_gets_texts_and_arguments_as_vllm_gives_it_them() -> None:
    asked, called, result = template_messages(TALK)
    assert asked["content"] == "Where are\n4711 and 4712?"
    assert (called["content"], called["reasoning_content"]) == ("", "Look both up.")
    arguments = [call["function"]["arguments"] for call in called["tool_calls"]]
    assert arguments == [{"number": "4711"}, {}, {}, {}, {}], "what is no object would be refused by the template"
    assert result == {"role": "tool", "content": "on its way", "tool_call_id": "call_1"}


def test_functions_have_one_shape_whichever_api_they_came_by() -> None:
    chat: dict[str, JsonValue] = {"type": "function", "function": FIND}
    assert chat_tools([chat, {"type": "function", **FIND}, {"type": "web_search"}]) == (chat, chat)


def test_a_whole_conversation_with_tools_can_teach() -> None:
    call = Call(messages=TALK)
    answer = Answer(tool_calls=(ToolCall(name="find_order", arguments="{}"),))
    assert never_trained(call, [answer]) is None
    assert never_trained(call, [Answer(text="4711 is", finish_reason=FinishReason.LENGTH)]) is None


def user(part: Part) -> Call:
    return Call(messages=(Message(role=Role.USER, content=(part,)),))


@pytest.mark.parametrize(
    ("call", "answer", "reason"),
    [
        (Call(messages=TALK, truncated=True), {"text": "x"}, "truncated"),
        (Call(messages=TALK), {"text": "x", "truncated": True}, "truncated"),
        (Call(messages=TALK), {"refusal": "I cannot."}, "refused"),
        (Call(messages=TALK), {"finish_reason": "content_filter"}, "refused"),
        (user(Part(type="image_url", media=Media(kind="image", hash="h"))), {"text": "x"}, "media"),
        (user(Part(type="image_url", media=Media(kind="image", hash="h", key="k"))), {"text": "x"}, "media"),
        (user(Part(type="thinking")), {"text": "x"}, "media"),
        (user(Part(type=TOKEN_IDS, text="[1, 2]")), {"text": "x"}, "token_ids"),
        (Call(messages=TALK), {"tool_calls": ({"name": "sh", "type": "custom"},)}, "custom_tool"),
        (Call(messages=TALK[:1], api=Api.COMPLETIONS), {"text": "x"}, "completions"),
        (Call(messages=(*TALK, Message(role=Role.ASSISTANT, content="{"))), {"text": '"n": 1}'}, "continued"),
    ],
)
def test_what_is_not_whole_or_no_text_can_never_teach(call: Call, answer: dict[str, Any], reason: str) -> None:
    found = never_trained(call, [Answer.model_validate({"text": "whole"}), Answer.model_validate(answer)])
    assert found is not None
    assert found[0] == reason in NEVER_TRAINED
    assert found[1]
