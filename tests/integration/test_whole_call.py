"""What is logged makes the request again: rows of the lake, replayed straight at vLLM, give the same greedy answers.

The requests come by the official clients, as applications send them: long conversations, tools over several turns,
structured outputs, several answers, streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import cycle, islice
from typing import Any
from uuid import uuid4

import httpx
import openai
import orjson
import pytest

from schemas.lake import PREDICTIONS
from services.prediction_log.main import build
from services.prediction_log.settings import PredictionLogSettings
from services.prediction_log.tables import open_table
from shared.conversation import answer_of_row, call_of_row, replay_request
from shared.service import running
from shared.settings import Settings
from tests.integration.gateway_stack import LABELS, MESSAGES, Gateway, gateway
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

__all__ = ["gateway"]

REQUESTS = 100
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 4}
TOOL = {
    "type": "function", "function": {
        "name": "find_card", "description": "Find a lost card.",
        "parameters": {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]},
    },
}  # fmt: skip
CALLS = [
    {
        "id": f"call_{color}", "type": "function",
        "function": {"name": "find_card", "arguments": f'{{"color": "{color}"}}'},
    }
    for color in ("red", "blue")
]  # fmt: skip
TOOL_TURNS = [
    {"role": "user", "content": "Find my red card and my blue card."},
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_red", "content": "It is under the bed."},
    {"role": "tool", "tool_call_id": "call_blue", "content": [{"type": "text", "text": "It is not found."}]},
    {"role": "assistant", "content": "The red one is under the bed."},
    {"role": "user", "content": "And the blue one?"},
]
RESPONSE_ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Find my red card."}]},
    {
        "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
        "content": [{"type": "output_text", "text": "I look for it.", "annotations": []}],
    },
    {"type": "function_call", "call_id": "call_1", "name": "find_card", "arguments": '{"color": "red"}'},
    {"type": "function_call_output", "call_id": "call_1", "output": "It is under the bed."},
    {"role": "user", "content": [{"type": "input_text", "text": "And what of {}?"}]},
]  # fmt: skip
"""What was answered goes back with the next question, as the responses API gave it."""
ANTHROPIC_TOOL = {
    "name": "find_card", "description": "Find a lost card.",
    "input_schema": {"type": "object", "properties": {"color": {"enum": ["red", "blue"]}}, "required": ["color"]},
}  # fmt: skip
SCHEMA = {
    "type": "json_schema", "json_schema": {
        "name": "card", "schema": {"type": "object", "properties": {"lost": {"type": "boolean"}}, "required": ["lost"]},
    },
}  # fmt: skip
TOPICS = (
    "the weather at sea", "bread", "a lost umbrella", "trains", "old bridges", "night shifts", "rivers", "chess",
    "winter tyres", "violins",
)  # fmt: skip


def _mixed(task: str, free: str) -> list[tuple[str, dict[str, Any]]]:
    """A hundred different requests of twelve kinds: path and body.

    Each is one sequence and shares no cached prefix (`cache_salt`): another batch, or the end of a prompt whose start
    is cached, rounds differently on some processors, and another token may win.
    """
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("chat/completions", {"model": task, "messages": [{"role": "user", "content": "Tell me about {}."}]}),
        ("chat/completions", {**GREEDY, "messages": [{"role": "user", "content": "Tell me about {}."}]}),
        ("chat/completions", {**GREEDY, "messages": [{"role": "user", "content": "One word on {}."}], "stream": True}),
        ("chat/completions", {**GREEDY, "messages": [{"role": "user", "content": [
            {"type": "text", "text": "Name"}, {"type": "text", "text": "three things about {}."},
        ]}], "stop": [","], "seed": 7, "frequency_penalty": 0.3}),
        ("chat/completions", {
            **GREEDY, "messages": [
                {"role": "user", "content": "{}!"}, {"role": "assistant", "content": "Yes?"},
                {"role": "user", "content": "Say more."},
            ], "logit_bias": {"198": -100}, "repetition_penalty": 1.1,
        }),
        ("chat/completions", {
            **GREEDY, "messages": [*TOOL_TURNS, {"role": "user", "content": "Now {}."}], "tools": [TOOL],
        }),
        ("chat/completions", {
            **GREEDY, "messages": [{"role": "user", "content": "Is my card lost? Say {}."}], "max_tokens": 12,
            "tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "find_card"}},
        }),
        ("chat/completions", {
            **GREEDY, "messages": [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "On {}?"}],
            "max_tokens": 8, "response_format": SCHEMA,
        }),
        ("completions", {**GREEDY, "prompt": "Notes on {}:", "min_tokens": 2}),
        ("responses", {
            "input": [{"role": "user", "content": "Tell me about {}."}], "temperature": 0.0, "max_output_tokens": 6,
        }),
        ("responses", {"input": RESPONSE_ITEMS, "temperature": 0.0, "max_output_tokens": 6}),
        ("messages", {
            **GREEDY, "system": "Be terse.", "tools": [ANTHROPIC_TOOL], "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Find my red card."}]},
                {"role": "assistant", "content": [
                    {"type": "text", "text": "I look for it."},
                    {"type": "tool_use", "id": "toolu_1", "name": "find_card", "input": {"color": "red"}},
                ]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "toolu_1", "content": "It is under the bed."},
                    {"type": "text", "text": "And what of {}?"},
                ]},
            ],
        }),
    ]  # fmt: skip
    pairs = zip(cycle(kinds), (topic for topic in TOPICS for _ in kinds), strict=False)
    return [
        (path, {"model": free, **_uncached(), **orjson.loads(orjson.dumps(body).replace(b"{}", topic.encode()))})
        for (path, body), topic in islice(pairs, REQUESTS)
    ]


def _uncached() -> dict[str, str]:
    return {"cache_salt": uuid4().hex}


@pytest.fixture(scope="module")
async def lake(stack_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a lake that prediction_log fills."""
    uri = str(tmp_path_factory.mktemp("lake"))
    settings = PredictionLogSettings.load(home=stack_settings.home, lake=uri)
    async with running([build(settings)]):
        yield uri


async def _rows(lake: str, ids: set[str]) -> dict[str, dict[str, Any]]:
    """Wait until the lake has rows of these predictions; return them by id."""
    found: dict[str, dict[str, Any]] = {}

    def has_all() -> bool:
        delta = open_table(lake, PREDICTIONS)
        rows = delta.to_pyarrow_table().to_pylist() if delta else []
        found.update({row["prediction_id"]: row for row in rows if row["prediction_id"] in ids})
        return len(found) == len(ids)

    await until(has_all, lambda: f"{len(ids) - len(found)} of {len(ids)} predictions are not in the lake")
    return found


def _ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    several = response.headers.get("x-ratchet-prediction-ids")
    return several.split(",") if several else [response.headers["x-ratchet-prediction-id"]]


def _answers(body: dict[str, Any]) -> list[tuple[str, Any, int]]:
    """Text, tool calls and number of tokens of each answer of vLLM."""
    if "output" in body:
        text = "".join(part["text"] for item in body["output"] for part in item.get("content") or ())
        return [(text, [], body["usage"]["output_tokens"])]
    found = []
    for choice in body["choices"]:
        message = choice.get("message") or {"content": choice["text"]}
        calls = [(c["function"]["name"], c["function"]["arguments"]) for c in message.get("tool_calls") or ()]
        logprobs = choice["logprobs"]
        tokens = len(logprobs["content"] if "content" in logprobs else logprobs["tokens"])
        found.append((message["content"] or "", calls, tokens))
    return found


async def test_rows_of_a_hundred_mixed_requests_replayed_at_vllm_give_the_same_greedy_answers(
    gateway: Gateway, lake: str
) -> None:
    sent = [
        _ids(await gateway.http.post(f"/v1/{path}", json=body)) for path, body in _mixed(gateway.task, gateway.free)
    ]
    rows = await _rows(lake, {prediction_id for ids in sent for prediction_id in ids})
    by_request: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        by_request.setdefault(row["request_id"], []).append(row)
    assert len(by_request) == REQUESTS
    differing = []
    async with httpx.AsyncClient(base_url=gateway.settings.vllm_urls[0], timeout=PATIENCE_SECONDS) as vllm:
        for request_id, answers in by_request.items():
            answers.sort(key=lambda row: row["answer_number"])
            call = call_of_row(answers[0])
            assert call.is_whole
            path, body = replay_request(call, LABELS)
            asks = {"logprobs": 1 if path == "/v1/completions" else True}
            again = await vllm.post(path, json={"model": answers[0]["model"], **asks, **body, **_uncached()})
            logged = [answer_of_row(row) for row in answers]
            expected = [
                (answer.text, [(c.name, c.arguments) for c in answer.tool_calls], row["answer_tokens"])
                for answer, row in zip(logged, answers, strict=True)
            ]
            if _answers(again.json()) != expected:
                differing.append((request_id, path, body, expected, again.text))
    assert differing == []


async def test_a_conversation_of_two_hundred_messages_is_answered_and_in_the_lake(gateway: Gateway, lake: str) -> None:
    turns: list[Any] = [{"role": ("user", "assistant")[n % 2], "content": str(n % 10)} for n in range(199)]
    answer = await gateway.client.chat.completions.create(
        model=gateway.free, messages=[*turns, {"role": "user", "content": "Go on."}], max_tokens=3
    )
    call = call_of_row((await _rows(lake, {answer.id}))[answer.id])
    assert [message.content for message in call.messages] == [*(turn["content"] for turn in turns), "Go on."]


async def test_a_prompt_of_a_hundred_thousand_characters_gets_the_model_servers_own_error(gateway: Gateway) -> None:
    asked = {"messages": [{"role": "user", "content": "word " * 20_000}], "max_tokens": 3}
    with pytest.raises(openai.BadRequestError) as refused:
        await gateway.client.chat.completions.create(model=gateway.free, **asked)  # type: ignore[call-overload]
    async with httpx.AsyncClient(base_url=gateway.settings.vllm_urls[0], timeout=PATIENCE_SECONDS) as vllm:
        own = await vllm.post("/v1/chat/completions", json={"model": gateway.base_model, **asked})
    assert own.status_code == 400
    assert refused.value.response.json() == own.json()


async def test_parallel_tool_calls_and_their_results_are_in_the_lake_over_three_turns(
    gateway: Gateway, lake: str
) -> None:
    conversation: list[Any] = [{"role": "user", "content": "Find my red card and my blue card."}]
    ids = []
    for _ in range(3):
        answer = await gateway.client.chat.completions.create(
            model=gateway.free, messages=conversation, tools=[TOOL], max_tokens=60, temperature=0.0,  # type: ignore[list-item]
            tool_choice={"type": "function", "function": {"name": "find_card"}},
        )  # fmt: skip
        ids.append(answer.id)
        (made,) = answer.choices[0].message.tool_calls or ()
        conversation += [
            {"role": "assistant", "content": None, "tool_calls": [made.model_dump(), CALLS[1]]},
            {"role": "tool", "tool_call_id": made.id, "content": "under the bed"},
            {"role": "tool", "tool_call_id": "call_blue", "content": "not found"},
        ]
    rows = await _rows(lake, set(ids))
    last = call_of_row(rows[ids[-1]])
    _, body = replay_request(last)
    assert body["messages"] == conversation[: len(body["messages"])]
    assert len(body["messages"]) == 7
    assert answer_of_row(rows[ids[0]]).tool_calls[0].id == conversation[1]["tool_calls"][0]["id"]


async def test_a_stream_and_a_whole_answer_are_the_same_row_but_for_their_ids(gateway: Gateway, lake: str) -> None:
    asked: dict[str, Any] = {"model": gateway.task, "messages": MESSAGES, "user": "ann"}
    whole = _ids(await gateway.http.post("/v1/chat/completions", json=asked))
    streamed = _ids(await gateway.http.post("/v1/chat/completions", json={**asked, "stream": True}))
    rows = await _rows(lake, {*whole, *streamed})
    own = {"prediction_id", "request_id", "occurred_at", "latency_ms", "stream"}
    numbers = {"confidence", "confidence_raw", "logprob", "cached_tokens"}
    first, second = (
        {name: value for name, value in rows[ids[0]].items() if name not in own | numbers} for ids in (whole, streamed)
    )
    assert first == second


async def test_the_async_and_the_sync_client_get_four_answers_each_with_its_own_row(
    gateway: Gateway, lake: str
) -> None:
    def ask() -> list[str]:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
            raw = client.chat.completions.with_raw_response.create(
                model=gateway.free,
                messages=MESSAGES,
                n=4,
                temperature=1.0,
                max_tokens=3,
                seed=5,  # type: ignore[arg-type]
            )
            return [*raw.headers["x-ratchet-prediction-ids"].split(",")]

    ids = await asyncio.to_thread(ask)
    rows = await _rows(lake, set(ids))
    assert [rows[prediction_id]["answer_number"] for prediction_id in ids] == [0, 1, 2, 3]
    assert len({row["request_id"] for row in rows.values()}) == 1
