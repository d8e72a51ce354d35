"""Answers and streams of the chat API as Anthropic's messages and events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.gateway.formats.anthropic.answer import message_of
from services.gateway.formats.anthropic.errors import error_body
from services.gateway.formats.anthropic.stream import MessageStream
from services.gateway.formats.api import Choice, TokenUsage
from services.gateway.formats.chat import choice_of_message
from shared.http import HttpError

USAGE = TokenUsage(prompt_tokens=20, answer_tokens=5)


def _call(name: str, arguments: str) -> dict[str, Any]:
    return {"name": name, "arguments": arguments, "type": "function", "id": f"call_{name}"}


def _message(choice: Choice, stopped_at: Any = None, usage: TokenUsage = USAGE) -> dict[str, Any]:
    return message_of(choice, stopped_at, usage, "haiku.1", "haiku")


def _choice(text: str = "", finish: str | None = "stop", **fields: Any) -> Choice:
    return Choice(text, (), finish, **fields)


def _events(*deltas: Any, finish: str | None = "stop", stopped_at: Any = None) -> list[dict[str, Any]]:
    """The events of a stream of these deltas, of which each names its type twice, as clients need it."""
    stream = MessageStream("haiku.1", "haiku")
    chunks: list[Any] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish, "stop_reason": stopped_at}]})
    raw = b"".join([stream.feed(chunk) for chunk in chunks]) + stream.end(finish, USAGE, {"prediction_id": "haiku.1"})
    events = []
    for event in raw.decode().split("\n\n")[:-1]:
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def _blocks(events: list[dict[str, Any]]) -> list[str]:
    """The blocks with their pieces, in the order of their events. An event out of its place fails."""
    blocks: list[str] = []
    is_open = False
    for event in events:
        if event["type"] == "content_block_start":
            assert not is_open and event["index"] == len(blocks)
            is_open = True
            block = event["content_block"]
            blocks.append(f"{block['type']} {block.get('name', '')}:")
        elif event["type"].startswith("content_block"):
            assert is_open and event["index"] == len(blocks) - 1
            is_open = event["type"] != "content_block_stop"
            delta = event.get("delta", {})
            blocks[-1] += delta.get("text") or delta.get("thinking") or delta.get("partial_json") or ""
    assert not is_open
    return blocks


def _piece(number: int, arguments: str | None = None, name: str | None = None) -> dict[str, Any]:
    call: dict[str, Any] = {"index": number, "function": {"arguments": arguments}}
    if name is not None:
        call |= {"id": f"call_{name}", "function": {"name": name, "arguments": arguments}}
    return {"tool_calls": [call]}


def test_a_message_has_thoughts_then_text_then_calls() -> None:
    calls = [_call("find", '{"id": 1}'), _call("stop", "")]
    message = _message(_choice("I look.", "tool_calls", tool_calls=calls, reasoning="Which?"))
    thinking, *others = message["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "Which?")
    assert thinking["signature"]
    assert others == [
        {"type": "text", "text": "I look."},
        {"type": "tool_use", "id": "call_find", "name": "find", "input": {"id": 1}},
        {"type": "tool_use", "id": "call_stop", "name": "stop", "input": {}},
    ]
    assert {name: message[name] for name in ("id", "type", "role", "model", "stop_reason", "stop_sequence")} == {
        "id": "haiku.1", "type": "message", "role": "assistant", "model": "haiku", "stop_reason": "tool_use",
        "stop_sequence": None,
    }  # fmt: skip


STOPS = [
    (_choice("x"), None, ("end_turn", None)),
    (_choice("x"), 128_001, ("end_turn", None)),  # A stop token, which no client asked for.
    (_choice("x", "length"), None, ("max_tokens", None)),
    (_choice("x"), "END", ("stop_sequence", "END")),
    (_choice("", "tool_calls", tool_calls=[_call("f", "{}")]), None, ("tool_use", None)),
    (_choice("", "stop", tool_calls=[_call("f", "{}")]), None, ("tool_use", None)),
    (_choice("", "stop", tool_calls=[_call("f", '{"a": "')]), "END", ("stop_sequence", "END")),
    (_choice("", "length", tool_calls=[_call("f", '{"a": "')]), None, ("max_tokens", None)),
    (_choice("", "content_filter"), None, ("refusal", None)),
    (_choice("", "stop", refusal="No."), None, ("refusal", None)),
]


@pytest.mark.parametrize(("choice", "stopped_at", "expected"), STOPS)
def test_why_an_answer_ended_whole_and_streamed(choice: Choice, stopped_at: Any, expected: Any) -> None:
    message = _message(choice, stopped_at)
    assert (message["stop_reason"], message["stop_sequence"]) == expected
    deltas = [{"content": choice.text}, {"refusal": choice.refusal}]
    deltas += [_piece(0, call["arguments"], call["name"]) for call in choice.tool_calls]
    events = _events(*deltas, finish=choice.finish_reason, stopped_at=stopped_at)
    assert events[-2]["delta"] == {"stop_reason": expected[0], "stop_sequence": expected[1]}


def test_a_refusal_is_shown() -> None:
    assert _message(_choice(refusal="No."))["content"] == [{"type": "text", "text": "No."}]


@pytest.mark.parametrize("number", [2**64, -(10**30), 1.5])
def test_numbers_in_arguments_reach_the_tool_as_the_model_wrote_them(number: float) -> None:
    message = _message(_choice(finish="tool_calls", tool_calls=[_call("f", json.dumps({"id": number}))]))
    assert message["content"][0]["input"] == {"id": number}
    assert type(message["content"][0]["input"]["id"]) is type(number)


@pytest.mark.parametrize("arguments", ['{"a": ', "[1]", "5", "not JSON", '{"a": 1%s}' % ("0" * 400)])
def test_arguments_that_are_no_object_are_wrapped_so_that_the_tool_refuses_them(arguments: str) -> None:
    message = _message(_choice(finish="tool_calls", tool_calls=[_call("f", arguments)]))
    assert message["content"][0]["input"] == {"INVALID_JSON": arguments}


def test_usage_counts_cached_tokens_apart() -> None:
    assert _message(_choice("x"), None, TokenUsage(20, 5, 16, 3))["usage"] == {
        "input_tokens": 4, "cache_read_input_tokens": 16, "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 3},
    }  # fmt: skip


def test_an_empty_answer_has_one_empty_block_whole_and_streamed() -> None:
    assert _message(_choice())["content"] == [{"type": "text", "text": ""}]
    assert _blocks(_events()) == ["text :"]


def test_a_stream_begins_with_the_message_and_ends_with_who_answered() -> None:
    events = _events({"role": "assistant", "content": ""}, {"content": "An old"}, {"content": " pond"})
    assert [event["type"] for event in events] == [
        "message_start", "content_block_start", "content_block_delta", "content_block_delta", "content_block_stop",
        "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[0]["message"] | {"usage": None} == {
        "id": "haiku.1", "type": "message", "role": "assistant", "model": "haiku", "content": [], "stop_reason": None,
        "stop_sequence": None, "usage": None,
    }  # fmt: skip
    assert events[-2]["usage"] == {"input_tokens": 20, "cache_read_input_tokens": 0, "output_tokens": 5}
    assert events[-2]["ratchet"] == {"prediction_id": "haiku.1"}


def test_the_first_event_has_the_prompts_tokens() -> None:
    chunk = {"choices": [], "usage": {"prompt_tokens": 20, "prompt_tokens_details": {"cached_tokens": 16}}}
    first = MessageStream("haiku.1", "haiku").feed(chunk).split(b"data: ")[1]
    assert json.loads(first)["message"]["usage"]["input_tokens"] == 4


def test_blocks_follow_each_other() -> None:
    events = _events(
        {"reasoning": "Which"}, {"reasoning": "?"}, {"content": "I "}, {"content": "look."}, _piece(0, "", "find"),
        _piece(0, '{"id"'), _piece(0, ": 1}"), _piece(1, "{}", "stop"), finish="tool_calls",
    )  # fmt: skip
    assert _blocks(events) == ["thinking :Which?", "text :I look.", 'tool_use find:{"id": 1}', "tool_use stop:{}"]
    signatures = [event["delta"] for event in events if event.get("delta", {}).get("type") == "signature_delta"]
    assert len(signatures) == 1
    assert signatures[0]["signature"]


def test_an_answer_in_parts_is_its_text_whole_and_streamed() -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Rain"}, {"type": "text", "text": "."}, 5]
    choice = choice_of_message({"role": "assistant", "content": parts}, (), "stop")
    assert choice.truncated
    assert _message(choice)["content"] == [{"type": "text", "text": "Rain."}]
    assert _blocks(_events({"content": parts}, {"content": "!"})) == ["text :Rain.!"]


def test_text_within_a_tool_call_follows_it() -> None:
    events = _events(_piece(0, '{"id"', "find"), {"content": "Wait"}, {"content": "."}, _piece(0, ": 1}"))
    assert _blocks(events) == ['tool_use find:{"id": 1}', "text :Wait."]


def test_several_calls_may_come_in_one_chunk() -> None:
    both = {"tool_calls": [*_piece(0, "{}", "find")["tool_calls"], *_piece(1, "{}", "stop")["tool_calls"]]}
    assert _blocks(_events(both)) == ["tool_use find:{}", "tool_use stop:{}"]


def test_calls_of_one_number_are_told_apart_by_their_ids() -> None:
    again = {"tool_calls": [{"id": "call_x", "function": {"arguments": ": 1}"}}]}
    events = _events(_piece(0, '{"id"', "find"), again, _piece(0, "{}", "stop"), finish="tool_calls")
    assert _blocks(events) == ['tool_use find:{"id": 1}', "tool_use stop:{}"]


@pytest.mark.parametrize(
    ("deltas", "blocks"),
    [
        (
            [_piece(0, "", "find"), _piece(1, "", "stop"), _piece(0, '{"id"'), _piece(1, '{"at"'), _piece(0, ": 1}"),
             _piece(1, ": 2}")],
            ['tool_use find:{"id": 1}', 'tool_use stop:{"at": 2}'],
        ),
        (
            [_piece(0, '{"id"', "find"), _piece(1, "{}", "stop"), {"content": "Wait"}, _piece(2, "{", "look"),
             _piece(0, ": 1}"), _piece(2, "}")],
            ['tool_use find:{"id": 1}', "text :Wait", "tool_use stop:{}", "tool_use look:{}"],
        ),
        (
            [_piece(0, "", "find"), _piece(1, "{}", "stop"), {"reasoning": "Done."}],
            ["tool_use find:", "tool_use stop:{}", "thinking :Done."],
        ),
        ([_piece(0, "", "find"), _piece(1, '{"at', "stop")], ["tool_use find:", 'tool_use stop:{"at']),
    ],
    ids=["names first", "three", "thoughts follow", "cut"],
)  # fmt: skip
def test_pieces_of_calls_that_come_mixed_are_put_in_the_block_of_their_call(deltas: Any, blocks: list[str]) -> None:
    assert _blocks(_events(*deltas, finish="tool_calls")) == blocks


@pytest.mark.parametrize(
    "deltas",
    [
        [_piece(0, "{}", "find"), _piece(1, "", "stop"), _piece(0, "{}")],
        [_piece(0, "{}")],
        [{"tool_calls": [5]}],
        [{"tool_calls": 5}],
        ["text"],
    ],
)
def test_a_broken_stream_of_calls_is_an_error_instead_of_a_call_with_half_its_arguments(deltas: Any) -> None:
    with pytest.raises((ValueError, TypeError, AttributeError)):
        _events(*deltas)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
        (404, "not_found_error"), (405, "invalid_request_error"), (413, "request_too_large"),
        (422, "invalid_request_error"), (429, "rate_limit_error"), (500, "api_error"), (502, "api_error"),
        (503, "overloaded_error"), (504, "timeout_error"), (529, "overloaded_error"),
    ],
)  # fmt: skip
def test_an_errors_type_follows_from_its_status(status: int, kind: str) -> None:
    body = error_body(status, HttpError(status, "what went wrong", "its_code").body, "req_1")
    assert body == {
        "type": "error", "request_id": "req_1",
        "error": {"type": kind, "message": "what went wrong", "details": {"error_code": "its_code"}},
    }  # fmt: skip


def test_an_error_of_vllm_keeps_its_message() -> None:
    raw = {"error": {"message": "too long", "type": "BadRequestError", "param": None, "code": 400}}
    assert error_body(400, raw, "req_1")["error"] == {"type": "invalid_request_error", "message": "too long"}
