"""Anthropic's requests as the chat API's: as vLLM 0.32 converts them for its own `/v1/messages`, which was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.gateway.formats.anthropic.request import chat_body, settle_tool_choice, tokenize_body
from shared.http import HttpError

RECORDED = json.loads((Path(__file__).parent / "recorded" / "anthropic_chat.json").read_bytes())
USER = {"role": "user", "content": "Hi"}
WEATHER = {"name": "weather", "input_schema": {"type": "object"}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}
CHAT_PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
PDF = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AAAA"}}


def _converted(*messages: Any, **fields: Any) -> dict[str, Any]:
    """For a task without tools of its own."""
    body = chat_body({"model": "t", "max_tokens": 9, "messages": list(messages), **fields})
    settle_tool_choice(body)
    return body


def _user(*blocks: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(blocks)}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _result(number: int, content: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content, **fields}


def _called(*numbers: int) -> dict[str, Any]:
    calls = [{"type": "tool_use", "id": f"toolu_{n}", "name": "weather", "input": {}} for n in numbers]
    return {"role": "assistant", "content": calls}


def _comparable(body: dict[str, Any]) -> dict[str, Any]:
    """Without what has no effect: defaults, how JSON is spaced, and both names of a limit."""
    body = {name: value for name, value in body.items() if name not in ("max_completion_tokens", "stream_options")}
    if body.get("parallel_tool_calls") is True:
        del body["parallel_tool_calls"]
    if body.get("tool_choice") == "auto":
        del body["tool_choice"]
    if schema := body.get("response_format", {}).get("json_schema"):
        schema["schema"] = schema.pop("json_schema", None) or schema["schema"]
    for message in body["messages"]:
        message.setdefault("content", None)
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return body


@pytest.mark.parametrize("case", RECORDED, ids=[case["name"] for case in RECORDED])
def test_the_model_sees_what_vllms_own_route_shows_it(case: Any) -> None:
    assert _comparable(chat_body(json.loads(json.dumps(case["request"])))) == _comparable(case["chat"])


def test_a_stream_asks_for_the_prompts_tokens_in_its_first_chunk() -> None:
    body = _converted(USER, stream=True)
    assert (body["stream"], body["stream_options"]) == (True, {"continuous_usage_stats": True})


def test_the_format_of_an_answer_may_have_its_earlier_name() -> None:
    form = {"type": "json_schema", "schema": {"type": "object"}}
    own = _converted(USER, output_format=form)
    assert own == _converted(USER, output_config={"format": form})
    assert own["response_format"]["json_schema"]["schema"] == {"type": "object"}


def test_identity_and_what_the_server_does_not_know_is_left_out() -> None:
    body = _converted(
        {**USER, "cache_control": {"type": "ephemeral"}}, metadata={"user_id": "ann"}, user="ann",
        safety_identifier="ann", service_tier="auto", cache_control={"type": "ephemeral"}, context_management={},
        inference_geo="eu", anything=[1],
    )  # fmt: skip
    assert body == {"messages": [USER], "max_tokens": 9}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("no such city", "Error: no such city"),
        ([_text("no such"), _text("city")], "Error: no such\ncity"),
        ("Error: no such city", "Error: no such city"),
        (None, "Error"),
    ],
)
def test_the_model_is_told_that_a_tool_failed(content: Any, text: str) -> None:
    body = _converted(USER, _called(1), _user(_result(1, content, is_error=True)))
    assert body["messages"][-1] == {"role": "tool", "tool_call_id": "toolu_1", "content": text}


def test_results_of_parallel_calls_stay_together_and_their_pictures_follow() -> None:
    answers = _user(_text("Look"), _result(1, [PICTURE]), _result(2, [_text("rain"), PICTURE]))
    messages = _converted(USER, _called(1, 2), answers)["messages"]
    assert messages[2:] == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": ""},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "rain"},
        {"role": "user", "content": [CHAT_PICTURE]},
        {"role": "user", "content": [CHAT_PICTURE]},
        {"role": "user", "content": "Look"},
    ]


@pytest.mark.parametrize(
    ("block", "content"),
    [
        (
            {"type": "document", "title": "Terms", "source": {"type": "text", "media_type": "text/plain", "data": "x"}},
            [_text("Terms"), _text("x")],
        ),
        ({"type": "document", "source": {"type": "content", "content": "whole"}}, "whole"),
        (
            {"type": "document", "source": {"type": "content", "content": [_text("a"), PICTURE]}},
            [_text("a"), CHAT_PICTURE],
        ),
        (
            {**PDF, "title": "a.pdf", "context": "of May"},
            [
                _text("a.pdf\nof May"),
                {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
            ],
        ),
        ({"type": "search_result", "title": "T", "source": "s", "content": [_text("found")]}, "T\ns\nfound"),
    ],
)
def test_documents_and_search_results_become_parts(block: Any, content: Any) -> None:
    assert _converted(_user(block))["messages"] == [{"role": "user", "content": content}]


def test_documents_in_a_result_are_text_of_the_tool_or_follow_it() -> None:
    found = [{"type": "search_result", "title": "T", "source": "s", "content": [_text("x")]}, PDF]
    result, file = _converted(USER, _called(1), _user(_result(1, found)))["messages"][2:]
    assert result["content"] == "T\ns\nx"
    assert file["content"][0]["type"] == "file"


def test_a_loaded_tool_is_named_because_every_tool_is_in_the_prompt() -> None:
    found = [{"type": "tool_reference", "tool_name": "weather"}]
    body = _converted(USER, _called(1), _user(_result(1, found)), tools=[{**WEATHER, "defer_loading": True}])
    assert body["messages"][-1]["content"] == "weather"
    assert "defer_loading" not in body["tools"][0]["function"]


@pytest.mark.parametrize("content", ["The answer is (", [_text("The answer is (")]])
def test_an_answer_that_the_client_began_is_continued(content: Any) -> None:
    body = _converted(USER, {"role": "assistant", "content": content})
    assert body["messages"][-1] == {"role": "assistant", "content": "The answer is ("}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_an_answer_that_the_client_began_in_several_blocks_is_continued() -> None:
    body = _converted(USER, {"role": "assistant", "content": [_text("The answer "), _text("is (")]})
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


@pytest.mark.parametrize(
    "after",
    [
        [_called(1)],
        [{"role": "assistant", "content": ""}],
        [{"role": "assistant", "content": "Hello"}, {"role": "system", "content": "Be brief."}],
    ],
)
def test_other_last_messages_are_not_continued(after: list[Any]) -> None:
    assert "continue_final_message" not in _converted(USER, *after)


@pytest.mark.parametrize("choice", [{"type": "auto"}, {"type": "none"}])
def test_a_choice_without_tools_is_none(choice: Any) -> None:
    assert "tool_choice" not in _converted(USER, tools=[], tool_choice=choice)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [_user()]}, "no content"),
        ({"messages": [{"role": "system", "content": "Be brief."}]}, "no content"),
        ({"messages": ["Hi"]}, "`messages.0.role` is 'None'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be one of: user, assistant, system"),
        ({"messages": [{"role": "user", "content": 5}]}, "`messages.0.content` must be text, or a list"),
        ({"messages": [{"role": "user"}]}, "`messages.0.content` must be text, or a list"),
        ({"messages": [_user("Hi")]}, "without a `type`"),
        ({"messages": [_user({"type": "text"})]}, "`text` is no text"),
        ({"messages": [_user({"type": "video"})]}, "type 'video', which is not supported: known are"),
        ({"messages": [_user({"type": "image"})]}, "without a `source`"),
        ({"messages": [_user({"type": "image", "source": {"type": "file", "file_id": "f"}})]}, "Files are not stored"),
        ({"messages": [_user({"type": "document", "source": {"type": "url", "url": "u"}})]}, "text, content or base64"),
        ({"messages": [_user({"type": "container_upload", "file_id": "f"})]}, "files are not stored here"),
        ({"messages": [_user({"type": "server_tool_use"})]}, "server tools do not exist here"),
        ({"messages": [_user({"type": "web_search_tool_result"})]}, "server tools do not exist here"),
        ({"messages": [_user({"type": "tool_use"})]}, "only an assistant's message may"),
        ({"messages": [{"role": "assistant", "content": [_result(1)]}]}, "only a user's message may"),
        ({"messages": [_user({"type": "tool_result", "content": "x"})]}, "`tool_use_id` is no text"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": 1}]}]}, "`input` is no object"),
        ({"system": 5}, "`system` must be text, or a list"),
        ({"system": [PICTURE]}, "only text is allowed"),
        ({"stream": "yes"}, "`stream` must be true or false"),
        ({"tools": {}}, "`tools` must be a list"),
        ({"tools": [5]}, "`tools.0` must be an object"),
        ({"tools": [{"type": "web_search_20260318", "name": "web_search"}]}, "Anthropic's own tool 'web_search_2026"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "Anthropic's own tool 'bash_20250124'"),
        ({"tools": [{"name": "x"}]}, "`tools.0.input_schema` must be a JSON schema"),
        ({"tools": [{"input_schema": {}}]}, "`tools.0.name` is missing"),
        ({"tools": [WEATHER], "tool_choice": {"type": "some"}}, "`tool_choice.type` must be"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool"}}, "`tool_choice.type` must be"),
        ({"tools": [WEATHER], "tool_choice": "auto"}, "`tool_choice` must be an object"),
        ({"tool_choice": {"type": "any"}}, "there are no `tools`"),
        ({"thinking": "on"}, "`thinking` must be an object"),
        ({"output_config": {"format": 5}}, "`output_config.format` must be an object"),
        ({"output_config": {"format": {"type": "json_object"}}}, "`output_config.format` must be of type json_schema"),
        ({"output_format": {"type": "json_object"}}, "`output_format` must be of type json_schema"),
        ({"mcp_servers": [{"type": "url"}]}, "`mcp_servers` is not supported"),
        ({"thread": {"type": "continue", "previous_message_id": "msg_1"}}, "`thread` is not supported: conversations"),
        ({"compaction": {"type": "summarize"}}, "`compaction` is not supported"),
        ({"container": "c"}, "`container` is not supported"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(HttpError) as caught:
        settle_tool_choice(chat_body({"model": "t", "max_tokens": 9, "messages": [USER], **fields}))
    assert caught.value.status == 400
    assert message in caught.value.body["error"]["message"]


def test_tokens_are_counted_of_the_prompt_that_the_chat_api_would_make() -> None:
    chat = _converted(
        USER, {"role": "assistant", "content": "The answer is ("}, tools=[WEATHER], thinking={"type": "disabled"},
        temperature=0.5, chat_template_kwargs={"x": 1},
    )  # fmt: skip
    assert tokenize_body(chat) == {
        "messages": chat["messages"], "tools": chat["tools"], "add_generation_prompt": False,
        "continue_final_message": True,
        "chat_template_kwargs": {"reasoning_effort": "none", "enable_thinking": False, "x": 1},
    }  # fmt: skip
    assert tokenize_body(_converted(USER)) == {"messages": [USER]}
