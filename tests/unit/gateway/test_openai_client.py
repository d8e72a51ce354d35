"""The official client, unchanged, against the gateway on a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import openai
import pytest

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

MESSAGES = [{"role": "user", "content": "I want my money back"}]


async def test_the_sync_client_works(gateway: Gateway, address: str) -> None:
    def ask() -> object:
        with openai.OpenAI(base_url=address, api_key="any") as client:
            return client.chat.completions.create(model="support", messages=MESSAGES, user="u1")

    answer = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content == "refund"
    assert answer.id == gateway.log.events[0].prediction_id
    assert answer.usage.total_tokens == 22


async def test_the_async_client_works_and_sees_the_headers(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        raw = await client.chat.completions.with_raw_response.create(model="support", messages=MESSAGES)
        assert raw.headers["x-ratchet-variant"] == "base"
        assert raw.parse().choices[0].message.content == "refund"


@pytest.mark.parametrize("include_usage", [True, False])
async def test_a_stream_has_the_answer_its_end_and_the_usage_if_wanted(address: str, include_usage: bool) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        stream = await client.chat.completions.create(
            model="support", messages=MESSAGES, stream=True, stream_options={"include_usage": include_usage}
        )
        chunks = [chunk async for chunk in stream]
    choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "refund"
    assert [choice.finish_reason for choice in choices] == [None, "stop"]
    assert [chunk.usage.total_tokens for chunk in chunks if chunk.usage] == ([22] if include_usage else [])


async def test_the_clients_stream_helper_puts_the_answer_together(address: str) -> None:
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


async def test_an_unknown_task_raises_the_clients_own_not_found(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="any") as client:
        with pytest.raises(openai.NotFoundError, match="Known tasks: haiku, support") as caught:
            await client.chat.completions.create(model="gpt-5", messages=MESSAGES)
    assert caught.value.code == "model_not_found"
