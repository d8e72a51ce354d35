"""The call of an event is the request that was sent: made again from the event, it is what the upstream was asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from schemas.conversation import ToolCall
from services.gateway.formats.calls import without_credentials_of
from services.gateway.upstreams.external import external_fields
from shared.conversation import replay_request
from tests.unit.gateway.conftest import USAGE, chat_completion, chunk, sse

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
CALLS = [
    {"id": f"call_{name}", "type": "function", "function": {"name": "find", "arguments": f'{{"id": "{name}"}}'}}
    for name in "ab"
]
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Both, please", "name": "ann"},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_a", "content": "1"},
    {"role": "tool", "tool_call_id": "call_b", "content": [{"type": "text", "text": "2"}]},
    {"role": "assistant", "content": "", "reasoning": "Both are there."},
    {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "refusal", "refusal": "No."}]},
    {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
]
SAMPLING = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 5, "seed": 7, "stop": ["\n"], "max_tokens": 99, "n": 1,
    "logit_bias": {"5": -1.0}, "presence_penalty": 0.1, "chat_template_kwargs": {"x": True},
    "structured_outputs": {"regex": "a+"},
}  # fmt: skip
NOT_THE_CALL = {"model", "logprobs", "top_logprobs", "include", "stream", "stream_options", "store"}
"""Fields of the request that are no part of the call."""
RESPONSES_INPUT = [
    {"role": "user", "content": [{"type": "input_text", "text": "Both?"}]},
    {"type": "reasoning", "id": "", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
    {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"},
    {"type": "function_call", "call_id": "b", "name": "find", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "a", "output": "1"},
    {"type": "function_call_output", "call_id": "b", "output": "2"},
    {"role": "assistant", "content": "Both are there."},
    {"role": "user", "content": "Thanks"},
]


async def _replayed(gateway: Gateway, path: str, **body: Any) -> tuple[Any, Any]:
    """The request that the upstream got, and that of the event, both without what is no part of the call."""
    await gateway.http.post(path, json=body)
    (asked,) = gateway.upstream.asked
    (event,) = gateway.log.events or [None]
    assert event is not None, "nothing was logged"
    assert event.call.is_whole
    path_again, again = replay_request(event.call, ("refund", "card_lost"))
    assert path_again == gateway.upstream.paths[0]
    return _call(asked), _call(again)


def _call(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in NOT_THE_CALL}


async def test_a_chat_request_is_made_again_from_its_event(gateway: Gateway) -> None:
    asked, again = await _replayed(
        gateway, "/v1/chat/completions", model="haiku", messages=CONVERSATION, tools=TOOLS, tool_choice="required",
        response_format={"type": "json_object"}, parallel_tool_calls=True, user="ann", **SAMPLING,
    )  # fmt: skip
    assert again == asked
    assert asked["messages"] == CONVERSATION


async def test_a_classification_is_made_again_from_its_event_and_its_tasks_labels(gateway: Gateway) -> None:
    asked, again = await _replayed(
        gateway, "/v1/chat/completions", model="support", messages=[{"role": "user", "content": "x"}], seed=3
    )
    assert again == asked
    assert asked["structured_outputs"] == {"choice": ["refund", "card_lost"]}
    assert b"card_lost" not in gateway.log.events[0].call.model_dump_json().encode()


@pytest.mark.parametrize("prompt", ["Once upon", [1, 2, 3]])
async def test_a_completion_is_made_again_from_its_event(gateway: Gateway, prompt: Any) -> None:
    gateway.upstream.answer["choices"][0]["text"] = "a time"
    del gateway.upstream.answer["choices"][0]["logprobs"]
    asked, again = await _replayed(gateway, "/v1/completions", model="haiku", prompt=prompt, **SAMPLING)
    assert again == asked
    assert asked["prompt"] == prompt


@pytest.mark.parametrize("instructions", ["Be brief.", None])
async def test_a_response_is_made_again_from_its_event(gateway: Gateway, instructions: str | None) -> None:
    gateway.upstream.answer = {"status": "completed", "output": []}
    asked, again = await _replayed(
        gateway, "/v1/responses", model="haiku", input=RESPONSES_INPUT, instructions=instructions, temperature=0.5,
        text={"format": {"type": "text"}}, tools=[{"type": "function", "name": "find"}], tool_choice="auto",
    )  # fmt: skip
    system = asked.pop("instructions")
    assert again["input"][0] == {"role": "system", "content": system}
    assert {**again, "input": again["input"][1:]} == asked


async def test_what_an_event_cannot_say_marks_its_call_as_not_whole(gateway: Gateway) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    for content in ([picture], [{"type": "prompt_embeds", "data": "x"}]):
        await gateway.ask(model="haiku", messages=[{"role": "user", "content": content}])
    assert [event.call.is_whole for event in gateway.log.events] == [False, False]


async def test_what_a_message_says_outside_its_content_marks_its_call_as_not_whole(gateway: Gateway) -> None:
    tools = {"role": "developer", "content": "x", "tools": TOOLS}
    spoken = {"role": "assistant", "content": None, "audio": {"id": "audio_1"}}
    for message in (tools, {"role": "user", "content": "x", "task": "query"}, spoken):
        await gateway.ask(model="haiku", messages=[message, {"role": "user", "content": "x"}])
    assert [event.call.is_whole for event in gateway.log.events] == [False, False, False]
    # vLLM reads the tools of a `developer` alone.
    assert gateway.upstream.asked[0]["messages"][0] == {"role": "developer", "content": "x", "tools": TOOLS}
    nothing = {"role": "assistant", "content": "x", "audio": None, "annotations": [], "tools": None}
    await gateway.ask(model="haiku", messages=[nothing, {"role": "user", "content": "x"}])
    assert gateway.log.events[-1].call.is_whole


@pytest.mark.parametrize("content", [None, [{"type": "thinking", "thinking": []}]])
async def test_an_answer_that_is_no_text_is_logged_as_not_whole(gateway: Gateway, content: Any) -> None:
    audio = {"id": "audio_1", "data": "AAAA", "transcript": "Hello"}
    gateway.upstream.answer = chat_completion("", [], audio=None if content else audio)
    gateway.upstream.answer["choices"][0]["message"]["content"] = content
    delta = {"content": content} if content else {"audio": audio}
    gateway.upstream.pieces = list(sse(chunk(delta), chunk({}, finish="stop"), USAGE))
    for stream in (False, True):
        assert (await gateway.ask(model="haiku", stream=stream)).status_code == 200
    assert [event.answers[0].is_whole for event in gateway.log.events] == [False, False]
    assert [event.answers[0].text for event in gateway.log.events] == ["", ""]


async def test_what_only_its_provider_can_read_of_a_response_marks_its_call_as_not_whole(gateway: Gateway) -> None:
    gateway.upstream.answer = {"status": "completed", "output": []}
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"}
    user = {"role": "user", "content": "x"}
    for fields in ({"input": [thought, user]}, {"input": "x", "prompt": {"id": "pmpt_1"}}, {"input": [user]}):
        await gateway.http.post("/v1/responses", json={"model": "haiku", **fields})
    assert [event.call.is_whole for event in gateway.log.events] == [False, False, True]


async def test_a_response_with_calls_of_custom_tools_and_a_message_of_a_tool_is_made_again_from_its_event(
    gateway: Gateway,
) -> None:
    """vLLM shows the model a custom call as a function's whose arguments are an object with its input."""
    gateway.upstream.answer = {"status": "completed", "output": []}
    items = [
        {"role": "user", "content": "Patch it"},
        {"type": "function_call", "call_id": "a", "name": "find", "arguments": "{}"},
        {"type": "custom_tool_call", "call_id": "b", "name": "apply_patch", "input": "*** Begin Patch"},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"type": "custom_tool_call_output", "call_id": "b", "output": "done"},
    ]
    tools = [{"type": "custom", "name": "apply_patch"}]
    asked, again = await _replayed(gateway, "/v1/responses", model="haiku", input=items, instructions="", tools=tools)
    results = [{"type": "function_call_output", "call_id": i, "output": o} for i, o in (("a", "1"), ("b", "done"))]
    assert again["input"] == [*items[:3], *results]
    assert again["tools"] == asked["tools"] == tools


@pytest.mark.parametrize(
    "last",
    [
        {"type": "function_call", "call_id": "a", "name": "find", "namespace": "shop", "arguments": "{}"},
        {"type": "message", "role": "assistant", "status": "incomplete", "content": "It is"},
        {"type": "message", "role": "assistant", "status": "in_progress", "content": "It is"},
        {"type": "reasoning", "summary": [{"text": "Hm"}], "status": "incomplete"},
    ],
)
async def test_a_namespace_of_a_call_or_an_answer_to_be_continued_marks_a_response_as_not_whole(
    gateway: Gateway, last: dict[str, Any]
) -> None:
    gateway.upstream.answer = {"status": "completed", "output": []}
    for items in ([last], [last, {"role": "user", "content": "x"}]):
        await gateway.http.post("/v1/responses", json={"model": "haiku", "input": items})
    assert [event.call.is_whole for event in gateway.log.events] == [False, "namespace" not in last]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_call_that_an_answer_makes_in_a_namespace_is_logged_as_not_whole(
    gateway: Gateway, stream: bool
) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "find", "namespace": "shop", "arguments": "{}"}
    gateway.upstream.answer = {"status": "completed", "output": [call]}
    completed = {"type": "response.completed", "response": gateway.upstream.answer}
    gateway.upstream.pieces = sse(completed)[:1]
    response = await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "x", "stream": stream})
    assert '"namespace":"shop"' in response.text
    (event,) = gateway.log.events
    assert [(each.name, each.arguments) for each in event.answers[0].tool_calls] == [("find", "{}")]
    assert not event.answers[0].is_whole


async def test_a_call_of_a_providers_own_tool_makes_a_response_not_whole(gateway: Gateway) -> None:
    said = {"type": "message", "content": [{"type": "output_text", "text": "Sunny"}]}
    gateway.upstream.answer = {"status": "completed", "output": [{"type": "web_search_call", "id": "ws_1"}, said]}
    await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "x"})
    (event,) = gateway.log.events
    assert (event.answers[0].text, event.answers[0].is_whole) == ("Sunny", False)


async def test_the_credentials_of_a_tools_server_reach_the_model_server_and_no_event(gateway: Gateway) -> None:
    tool = {"type": "mcp", "server_label": "shop", "headers": {"X-Key": "secret-1"}, "authorization": "secret-2"}
    tool["server_url"] = "https://bot:secret-3@mcp.example.com/sse?token=secret-4"
    gateway.upstream.answer = {"status": "completed", "output": []}
    await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "x", "tools": [tool, TOOLS[0]]})
    elsewhere = {"task": "haiku", "messages": [{"role": "user", "content": "x"}], "answer": "y", "latency_ms": 1}
    response = await gateway.http.post("/v1/predictions", json={**elsewhere, "tools": [tool]})
    assert response.status_code == 200
    assert gateway.upstream.asked[0]["tools"] == [tool, TOOLS[0]]
    for event in gateway.log.events:
        shown = {"type": "mcp", "server_label": "shop", "server_url": "https://mcp.example.com/sse"}
        assert event.call.tools[0] == shown
        assert event.call.truncated
        assert "secret" not in event.model_dump_json()
    assert gateway.log.events[0].call.tools[1] == TOOLS[0]


async def test_what_a_client_signs_in_with_elsewhere_is_in_no_event_and_leaves_for_no_other_api(
    gateway: Gateway,
) -> None:
    """As clients of LiteLLM's proxy send it."""
    keys = {"api_key": "secret-1", "authorization": "secret-2", "extra_headers": {"x-key": "secret-3"}}
    await gateway.ask(model="haiku", temperature=0.5, **keys)
    (event,) = gateway.log.events
    assert event.call.parameters.keys() == {"temperature", "max_tokens"}
    assert event.call.is_whole
    assert "secret" not in event.model_dump_json()
    assert external_fields({"messages": [], **keys}) == {"messages": []}


async def test_an_answer_that_a_client_predicts_to_get_it_sooner_is_no_part_of_the_call(gateway: Gateway) -> None:
    predicted = {"type": "content", "content": "x" * 100}
    await gateway.ask(model="haiku", prediction=predicted, modalities=["text"], store=False)
    assert gateway.upstream.asked[0]["prediction"] == predicted
    (event,) = gateway.log.events
    assert event.call.parameters.keys() == {"max_tokens", "modalities"}


async def test_a_tool_nested_deeper_than_readers_take_is_passed_on_and_not_logged(gateway: Gateway) -> None:
    deep: Any = "x"
    for _ in range(100):
        deep = [deep]
    await gateway.ask(model="haiku", tools=[{"type": "function", "x": deep}])
    assert gateway.upstream.asked[0]["tools"]
    (event,) = gateway.log.events
    assert (event.call.tools, event.call.truncated) == ((), True)


async def test_a_conversation_of_two_hundred_messages_with_a_long_one_is_logged_whole(gateway: Gateway) -> None:
    messages = [{"role": ("user", "assistant")[number % 2], "content": str(number)} for number in range(199)]
    await gateway.ask(model="haiku", messages=[*messages, {"role": "user", "content": "x" * 50_000}])
    (event,) = gateway.log.events
    assert len(event.call.messages) == 201  # With the task's system prompt.
    assert event.call.messages[-1].content == "x" * 50_000
    assert event.call.is_whole


async def test_names_of_nothing_but_nul_do_not_make_an_event_that_nobody_can_read(gateway: Gateway) -> None:
    call = {"id": "\x00", "type": "function", "function": {"name": "\x00", "arguments": "{}"}}
    part = {"type": "\x00", "text": "x"}
    messages = [
        {"role": "assistant", "content": [part], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "\x00"},
    ]
    await gateway.ask(model="haiku", messages=messages)
    (event,) = gateway.log.events
    assert event.call.truncated
    assert event.call.messages[1].tool_calls[0].id


LONG_IDS = ["x" * 256 + end for end in "ab"]


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
async def test_long_ids_of_calls_are_cut_and_marked_and_still_tell_whose_a_result_is(
    gateway: Gateway, path: str
) -> None:
    calls = [{"id": call_id, "type": "function", "function": {"name": "find"}} for call_id in LONG_IDS]
    asked: dict[str, Any] = {"max_tokens": 5, "messages": [
        {"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": calls},
        *({"role": "tool", "tool_call_id": call_id, "content": call_id[-1]} for call_id in reversed(LONG_IDS)),
    ]}  # fmt: skip
    if path == "messages":
        uses = [{"type": "tool_use", "id": call_id, "name": "find", "input": {}} for call_id in LONG_IDS]
        results = [
            {"type": "tool_result", "tool_use_id": call_id, "content": call_id[-1]} for call_id in reversed(LONG_IDS)
        ]
        asked["messages"][1:] = [{"role": "assistant", "content": uses}, {"role": "user", "content": results}]
    if path == "responses":
        asked = {"input": [
            {"role": "user", "content": "x"},
            *({"type": "function_call", "call_id": call_id, "name": "find", "arguments": "{}"} for call_id in LONG_IDS),
            *({"type": "function_call_output", "call_id": call_id, "output": call_id[-1]}
              for call_id in reversed(LONG_IDS)),
        ]}  # fmt: skip
        gateway.upstream.answer = {"status": "completed", "output": []}
    response = await gateway.http.post(f"/v1/{path}", json={"model": "haiku", **asked})
    assert response.status_code == 200, response.text
    (event,) = gateway.log.events
    (called,) = (message.tool_calls for message in event.call.messages if message.tool_calls)
    results_of = {m.tool_call_id: m.content for m in event.call.messages if m.role == "tool"}
    assert [results_of[call.id] for call in called] == ["a", "b"]
    assert event.call.truncated


@pytest.mark.parametrize("stream", [False, True])
async def test_long_ids_and_names_of_an_answers_calls_are_cut_in_the_event_alone(
    gateway: Gateway, stream: bool
) -> None:
    calls = [
        {"id": call_id, "type": "function", "function": {"name": call_id, "arguments": "{}"}} for call_id in LONG_IDS
    ]
    gateway.upstream.answer = chat_completion("", [-0.1], tool_calls=calls)
    indexed = [{"index": number, **call} for number, call in enumerate(calls)]
    gateway.upstream.pieces = sse(chunk({"tool_calls": indexed}), chunk({}, finish="tool_calls"), USAGE)
    asked = {"model": "haiku", "max_tokens": 5, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    response = await gateway.http.post("/v1/messages", json=asked)
    assert all(response.text.count(f'"{call_id}"') == 2 for call_id in LONG_IDS)
    (event,) = gateway.log.events
    assert len({call.id for call in event.answers[0].tool_calls}) == 2
    assert len({call.name for call in event.answers[0].tool_calls}) == 2
    assert event.answers[0].truncated


@pytest.mark.parametrize("role", ["document 1", "документ", "r" * 33])
async def test_a_role_that_an_event_cannot_say_is_passed_on_and_marked(gateway: Gateway, role: str) -> None:
    given = [{"role": role, "content": "The shop opens at nine."}, {"role": "user", "content": "When?"}]
    await gateway.ask(model="haiku", messages=given)
    assert gateway.upstream.asked[0]["messages"][-2:] == given
    (event,) = gateway.log.events
    assert [message.role for message in event.call.messages[-2:]] == ["other", "user"]
    assert event.call.truncated


async def test_the_older_form_of_a_call_cannot_be_sent_again(gateway: Gateway) -> None:
    call = {"name": "find", "arguments": "{}"}
    earlier = [{"role": "assistant", "content": None, "function_call": call}, {"role": "function", "content": "3"}]
    await gateway.ask(model="haiku", messages=[{"role": "user", "content": "How many?"}, *earlier])
    (event,) = gateway.log.events
    assert event.call.messages[-2].tool_calls == (ToolCall(name="find", arguments="{}"),)
    assert not event.call.is_whole


@pytest.mark.parametrize("tools", [[None], {"x": 1}, 5, "x"])
async def test_tools_that_are_none_are_passed_on_and_not_logged(gateway: Gateway, tools: Any) -> None:
    await gateway.ask(model="haiku", tools=tools)
    assert gateway.upstream.asked[0]["tools"] == tools
    (event,) = gateway.log.events
    assert (event.call.tools, event.call.truncated) == ((), True)


@pytest.mark.parametrize("path", ["chat/completions", "responses", "messages"])
@pytest.mark.parametrize("metadata", ['{"x": DEEP}', "DEEP"])
async def test_metadata_nested_deeper_than_json_can_be_written_is_no_error_of_ours(
    gateway: Gateway, path: str, metadata: str
) -> None:
    gateway.upstream.answer |= {"status": "completed", "output": []}
    body = '{"model": "haiku", "messages": [{"role": "user", "content": "x"}], "input": "x", "metadata": METADATA}'
    body = body.replace("METADATA", metadata).replace("DEEP", "[" * 500 + "]" * 500)
    response = await gateway.http.post(f"/v1/{path}", content=body)
    assert response.status_code in (200, 400), response.text


def test_tools_of_a_namespace_have_no_credentials_either() -> None:
    inner = {"type": "mcp", "server_url": "https://ann:secret@mcp.example.com", "authorization": "secret"}
    (shown,) = without_credentials_of([{"type": "namespace", "name": "crm", "tools": [inner, {"type": "web_search"}]}])
    assert shown["tools"] == [{"type": "mcp", "server_url": "https://mcp.example.com"}, {"type": "web_search"}]


def test_a_tool_whose_credentials_are_empty_is_whole() -> None:
    tools = [{"type": "mcp", "server_url": "https://mcp.example.com/sse", "headers": None, "authorization": ""}]
    assert without_credentials_of(tools) is tools
