"""OpenAI's own client against the gateway on a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai
import pytest
from pydantic import BaseModel

from tests.unit.gateway.conftest import REFUND, USAGE, chat_completion, chunk, sse
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

MESSAGES = [{"role": "user", "content": "I want my money back"}]


async def test_the_sync_client_works(gateway: Gateway, address: str) -> None:
    def ask() -> object:
        with openai.OpenAI(base_url=address, api_key="any") as client:
            return client.chat.completions.create(model="support", messages=MESSAGES, user="u1")

    answer = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content == "refund"
    assert answer.id == gateway.log.predictions[0].prediction_id
    assert answer.usage.total_tokens == 22


async def test_the_async_client_works_and_sees_the_headers(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        raw = await client.chat.completions.with_raw_response.create(model="support", messages=MESSAGES)
        assert raw.headers["x-ratchet-variant"] == "base"
        assert raw.parse().choices[0].message.content == "refund"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_has_the_answer_and_the_usage_if_requested(address: str, include_usage: bool) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        stream = await client.chat.completions.create(
            model="support", messages=MESSAGES, stream=True, stream_options={"include_usage": include_usage}
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "refund"
    assert [choice.finish_reason for choice in choices] == [None, None, None, "stop"]
    assert chunks[-1].ratchet["prediction_id"] == chunks[0].id
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([22] if include_usage else [])


async def test_the_clients_stream_helper_assembles_the_answer(address: str) -> None:
    async with (
        openai.AsyncOpenAI(base_url=address, api_key="any") as client,
        client.chat.completions.stream(model="support", messages=MESSAGES) as stream,
    ):
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "refund"


async def test_models_are_the_tasks(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        assert [model.id async for model in client.models.list()] == ["haiku", "support"]
        assert (await client.models.retrieve("support")).owned_by == "ratchet"
        with pytest.raises(openai.NotFoundError, match="Known tasks: haiku, support"):
            await client.models.retrieve("nope")


async def test_an_unknown_task_raises_the_clients_not_found_error(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        with pytest.raises(openai.NotFoundError, match="Known tasks: haiku, support") as caught:
            await client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert caught.value.code == "model_not_found"


async def test_the_sync_client_streams(gateway: Gateway, address: str) -> None:
    def ask() -> str:
        with openai.OpenAI(base_url=address, api_key="any") as client:
            stream = client.chat.completions.create(model="support", messages=MESSAGES, stream=True)
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)

    assert await asyncio.to_thread(ask) == "refund"
    assert gateway.log.predictions[0].answer == "refund"


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]


async def test_tool_calls_arrive_whole_and_streamed(gateway: Gateway, address: str) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    gateway.upstream.answer = chat_completion("", [-0.1], tool_calls=[call])
    gateway.upstream.pieces = list(
        sse(chunk({"tool_calls": [{"index": 0, **call}]}), chunk({}, finish="tool_calls", logprob=None), USAGE)
    )
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        answer = await client.chat.completions.create(model="haiku", messages=MESSAGES, tools=TOOLS)
        async with client.chat.completions.stream(model="haiku", messages=MESSAGES, tools=TOOLS) as stream:
            streamed = await stream.get_final_completion()
        for completion in (answer, streamed):
            (made,) = completion.choices[0].message.tool_calls
            assert (made.function.name, made.function.arguments) == ("find", "{}")
        result = {"role": "tool", "tool_call_id": "call_1", "content": "found"}
        conversation = [*MESSAGES, answer.choices[0].message, result]
        await client.chat.completions.create(model="haiku", messages=conversation, tools=TOOLS)
    assert [m.role for m in gateway.log.predictions[-1].messages] == ["system", "user", "assistant", "tool"]


class Poem(BaseModel):
    title: str
    lines: int


async def test_structured_outputs_are_parsed_by_the_client(gateway: Gateway, address: str) -> None:
    gateway.upstream.says('{"title": "Pond", "lines": 3}', [-0.1])
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        answer = await client.chat.completions.parse(model="haiku", messages=MESSAGES, response_format=Poem)
    assert answer.choices[0].message.parsed == Poem(title="Pond", lines=3)
    assert gateway.upstream.asked[0]["response_format"]["type"] == "json_schema"


async def test_two_answers_and_their_logprobs(gateway: Gateway, address: str) -> None:
    first = chat_completion("one", [-0.1])
    gateway.upstream.answer = {**first, "choices": [first["choices"][0], {**first["choices"][0], "index": 1}]}
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        answer = await client.chat.completions.create(model="haiku", messages=MESSAGES, n=2, logprobs=True)
    assert [choice.logprobs.content[0].logprob for choice in answer.choices] == [-0.1, -0.1]
    assert len(gateway.log.predictions) == 2


async def test_a_stream_that_the_client_closes_is_logged_as_client_left(gateway: Gateway, address: str) -> None:
    gateway.upstream.pieces = [*REFUND[:2], asyncio.Event()]
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        stream = await client.chat.completions.create(model="support", messages=MESSAGES, stream=True)
        async for piece in stream:
            if piece.choices[0].delta.content:
                break
        await stream.close()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await gateway.upstream.closed.wait()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not gateway.log.predictions:
            await asyncio.sleep(0.01)
    assert gateway.log.predictions[0].finish_reason == "client_left"


async def test_a_stream_that_breaks_off_raises_the_clients_error(gateway: Gateway, address: str) -> None:
    gateway.upstream.pieces = list(REFUND[:2])
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        stream = await client.chat.completions.create(model="support", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="ended before the answer did"):
            async for _ in stream:
                pass


async def test_the_other_apis_of_the_client_work(gateway: Gateway, address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        gateway.upstream.answer = {
            "id": "c", "object": "text_completion", "created": 1, "model": "small",
            "choices": [{"index": 0, "text": " pond", "finish_reason": "stop", "logprobs": None}],
        }  # fmt: skip
        assert (await client.completions.create(model="haiku", prompt="An old")).choices[0].text == " pond"
        gateway.upstream.answer = {
            "object": "list", "model": "small", "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "data": [{"object": "embedding", "index": 0, "embedding": "AACAPwAAAEA="}],
        }  # fmt: skip
        assert (await client.embeddings.create(model="haiku", input="x")).data[0].embedding == [1.0, 2.0]
        message = {
            "id": "m", "type": "message", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": "pond", "annotations": []}],
        }  # fmt: skip
        gateway.upstream.answer = {
            "id": "r", "object": "response", "created_at": 1, "model": "small", "status": "completed",
            "output": [message],
        }  # fmt: skip
        assert (await client.responses.create(model="haiku", input="An old")).output_text == "pond"
    assert [event.answer for event in gateway.log.predictions] == [" pond", "pond"]
