"""A tools task's functions are offered by every API that takes them, and calls are logged and measured."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from schemas.tasks import TaskSpec
from shared.conversation.task_tools import chat_fields, responses_fields
from tests.unit.gateway.conftest import Gateway, chat_completion, serving
from tests.unit.shared.grading.home import calls, home, light

HOME = home(base_model="small")
MESSAGES = [{"role": "user", "content": "light in the kitchen"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": light()[0], "arguments": json.dumps(light()[1])}}
OWN = {"type": "function", "function": {"name": "mine", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with serving(specs=(HOME,)) as gateway:
        gateway.upstream.answer = completion()
        yield gateway


def completion() -> dict[str, Any]:
    answer: dict[str, Any] = chat_completion("", [-0.1])
    answer["choices"][0]["message"] |= {"content": None, "tool_calls": [CALL]}
    answer["choices"][0]["finish_reason"] = "tool_calls"
    return answer


async def ask(gateway: Gateway, path: str, **fields: Any) -> Any:
    response = await gateway.http.post(f"/v1/{path}", json={"model": "home", **fields})
    assert response.status_code == 200, response.text
    return gateway.upstream.asked[-1]


def offered(asked: dict[str, Any]) -> dict[str, Any]:
    return {name: asked.get(name) for name in ("tools", "tool_choice", "parallel_tool_calls")}


async def test_chat_and_anthropics_api_offer_the_functions_and_the_calls_are_logged_with_them(gateway: Gateway) -> None:
    assert offered(await ask(gateway, "chat/completions", messages=MESSAGES)) == chat_fields(HOME)
    assert offered(await ask(gateway, "messages", messages=MESSAGES, max_tokens=50)) == chat_fields(HOME)
    for event in gateway.log.predictions:
        assert list(event.tools) == chat_fields(HOME)["tools"]
        assert event.tool_choice == "required"


async def test_the_responses_api_offers_them_in_its_own_form(gateway: Gateway) -> None:
    gateway.upstream.answer = {
        "id": "r", "object": "response", "model": "small", "status": "completed",
        "output": [{"type": "function_call", "call_id": "c", "name": "stop", "arguments": "{}"}],
    }  # fmt: skip
    asked = await ask(gateway, "responses", input="enough")
    assert offered(asked) == responses_fields(HOME)
    assert asked["tools"][0]["name"] == "set_light"


@pytest.mark.parametrize("path", ["chat/completions", "responses"])
async def test_an_empty_list_of_tools_is_none_of_the_clients_own(gateway: Gateway, path: str) -> None:
    """OpenAI's agents send it where an agent has no tools."""
    if path == "responses":
        gateway.upstream.answer = {
            "id": "r", "object": "response", "model": "small", "status": "completed",
            "output": [{"type": "function_call", "call_id": "c", "name": "stop", "arguments": "{}"}],
        }  # fmt: skip
    asked = await ask(gateway, path, tools=[], **({"input": "x"} if path == "responses" else {"messages": MESSAGES}))
    assert offered(asked) == (responses_fields(HOME) if path == "responses" else chat_fields(HOME))


async def test_the_apis_default_format_keeps_no_tools_out(gateway: Gateway) -> None:
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, response_format={"type": "text"})
    assert offered(asked) == chat_fields(HOME)


@pytest.mark.parametrize(
    "own", [{"tools": [OWN]}, {"response_format": {"type": "json_object"}}], ids=["tools", "format"]
)
async def test_a_client_that_brings_tools_or_a_format_of_its_own_keeps_them(
    gateway: Gateway, own: dict[str, Any]
) -> None:
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, **own)
    assert offered(asked) == {"tools": own.get("tools"), "tool_choice": None, "parallel_tool_calls": None}


async def test_a_format_of_its_own_keeps_them_out_of_the_responses_api_too(gateway: Gateway) -> None:
    gateway.upstream.answer = {
        "id": "r", "object": "response", "model": "small", "status": "completed",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "{}"}]}],
    }  # fmt: skip
    own = {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}}
    asked = await ask(gateway, "responses", input="enough", text=own)
    assert (asked["text"], offered(asked)) == (own, dict.fromkeys(offered(asked)))


async def test_a_client_may_choose_among_the_tasks_functions(gateway: Gateway) -> None:
    chosen = {"type": "function", "function": {"name": "stop"}}
    asked = await ask(gateway, "chat/completions", messages=MESSAGES, tool_choice=chosen)
    assert offered(asked) == {**chat_fields(HOME), "tool_choice": chosen}


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "auto", "disable_parallel_tool_use": True}, {"tool_choice": "auto", "parallel_tool_calls": False}),
        ({"type": "any"}, {"tool_choice": "required"}),
        ({"type": "tool", "name": "stop"}, {"tool_choice": {"type": "function", "function": {"name": "stop"}}}),
    ],
    ids=lambda case: case.get("type"),
)
async def test_a_client_of_anthropics_api_may_choose_among_the_tasks_functions(
    choice: dict[str, Any], chosen: dict[str, Any]
) -> None:
    several = home(base_model="small", tool_choice="auto" if choice["type"] == "any" else "required",
                   calls_per_answer="any_order")  # fmt: skip
    async with serving(specs=(several,)) as gateway:
        gateway.upstream.answer = completion()
        asked = await ask(gateway, "messages", messages=MESSAGES, max_tokens=50, tool_choice=choice)
    assert offered(asked) == {**chat_fields(several), **chosen}


async def test_a_choice_of_anthropics_api_where_a_format_keeps_the_tasks_functions_out_is_dropped_or_refused(
    gateway: Gateway,
) -> None:
    form = {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}
    fields = {"model": "home", "messages": MESSAGES, "max_tokens": 50, **form}
    asked = await ask(gateway, "messages", **fields, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert offered(asked) == {"tools": None, "tool_choice": None, "parallel_tool_calls": None}
    refused = await gateway.http.post("/v1/messages", json={**fields, "tool_choice": {"type": "any"}})
    assert refused.status_code == 400
    assert "there are no `tools`" in refused.json()["error"]["message"]


async def test_the_completions_api_which_has_no_tools_is_refused_with_the_way_out(gateway: Gateway) -> None:
    refused = await gateway.http.post("/v1/completions", json={"model": "home", "prompt": "light"})
    assert refused.status_code == 400
    assert "/v1/chat/completions" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("spec", "choice", "parallel"),
    [(HOME, "required", False), (home(tool_choice="auto", calls_per_answer="any_order"), "auto", True)],
)
def test_the_task_says_whether_a_call_is_required_and_whether_there_may_be_several(
    spec: TaskSpec, choice: str, parallel: bool
) -> None:
    fields = chat_fields(spec)
    assert (fields["tool_choice"], fields["parallel_tool_calls"]) == (choice, parallel)
    assert all(tool["function"]["strict"] is True for tool in fields["tools"])


async def test_feedback_that_says_what_is_right_must_be_calls_of_the_functions(gateway: Gateway) -> None:
    await ask(gateway, "chat/completions", messages=MESSAGES)
    body = {"prediction_id": gateway.log.predictions[-1].prediction_id, "kind": "edited"}
    good = await gateway.http.post("/v1/feedback", json={**body, "text": calls(light("hall"))})
    assert good.is_success, good.text
    bad = await gateway.http.post("/v1/feedback", json={**body, "text": calls(light("attic"))})
    assert bad.status_code == 422
    assert "set_light: room" in bad.json()["error"]["message"]
