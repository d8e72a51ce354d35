"""The gateway with a real broker, Unleash and vLLM, called by the official client."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import httpx
import openai
import pytest

from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from tests.integration.gateway_stack import LABELS, MESSAGES, Gateway, gateway
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack

__all__ = ["gateway"]


async def test_the_sync_client_gets_a_label_and_the_prediction_is_on_the_topic(gateway: Gateway) -> None:
    def ask() -> Any:
        with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="any") as client:
            return client.chat.completions.create(model=gateway.task, messages=MESSAGES, user="ann")

    answer = await asyncio.to_thread(ask)
    assert answer.choices[0].message.content in LABELS
    assert answer.choices[0].logprobs is None
    event, logged = await gateway.logged(answer.id)
    assert logged.text == answer.choices[0].message.content
    assert [message.content for message in event.call.messages][1] == MESSAGES[0]["content"]
    assert logged.confidence.score is not None
    assert 0.0 < logged.confidence.score < 1.0
    (observed,) = await gateway.event(RequestObserved, answer.id)
    assert (observed.status, observed.confidence) == (200, logged.confidence.score)


async def test_the_async_client_gets_logprobs_if_it_asks(gateway: Gateway) -> None:
    answer = await gateway.client.chat.completions.create(
        model=gateway.task, messages=MESSAGES, logprobs=True, top_logprobs=2
    )
    assert answer.choices[0].logprobs.content


async def test_a_stream_gives_the_label(gateway: Gateway) -> None:
    stream = await gateway.client.chat.completions.create(model=gateway.task, messages=MESSAGES, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) in LABELS
    assert await gateway.event(PredictionLogged, chunks[0].id)


async def test_a_stream_ends_with_the_confidence_that_is_logged(gateway: Gateway) -> None:
    stream = await gateway.client.chat.completions.create(model=gateway.task, messages=MESSAGES, stream=True)
    last = [chunk async for chunk in stream][-1]
    event, logged = await gateway.logged(last.id)
    assert last.ratchet["confidence"] == logged.confidence.score is not None
    assert event.usage.prompt_tokens > 10
    assert (event.call.stream, logged.finish_reason) == (True, "stop")


async def test_a_stream_that_its_client_closes_says_that_the_client_left(gateway: Gateway) -> None:
    stream = await gateway.client.chat.completions.create(
        model=gateway.free, messages=MESSAGES, stream=True, max_tokens=500, extra_body={"ignore_eos": True}
    )
    text = ""
    async for chunk in stream:
        text += chunk.choices[0].delta.content or ""
        if text:
            break
    await stream.close()
    _, logged = await gateway.logged(chunk.id)
    assert logged.finish_reason == "client_left"
    assert logged.text.startswith(text)
    assert logged.tokens < 500


async def test_anthropics_client_gets_a_label_whole_and_streamed(gateway: Gateway) -> None:
    asked: Any = {"model": gateway.task, "max_tokens": 20, "messages": MESSAGES, "metadata": {"user_id": "ann"}}
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any") as client:
        message = await client.messages.create(**asked)
        async with client.messages.stream(**asked) as stream:
            streamed = await stream.get_final_message()
        counted = await client.messages.count_tokens(model=gateway.task, messages=asked["messages"])
    for answer in (message, streamed):
        (block,) = answer.content
        assert block.text in LABELS
        assert (answer.stop_reason, answer.usage.input_tokens) == ("end_turn", counted.input_tokens)
        event, logged = await gateway.logged(answer.id)
        assert (event.call.api, logged.text) == ("messages", block.text)
        assert event.user_hash is not None
        assert logged.confidence.score is not None


async def test_the_model_sees_the_same_messages_as_by_vllms_own_route(gateway: Gateway) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "find", "input": {"card": "visa"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "blocked"}]}
    asked: Any = {
        "max_tokens": 12, "temperature": 0.0, "stop_sequences": ["zzz"], "system": [{"type": "text", "text": "Help."}],
        "messages": [
            *MESSAGES,
            {"role": "assistant", "content": [{"type": "text", "text": "I look."}, call]},
            {"role": "user", "content": [result, {"type": "text", "text": "And"}, {"type": "text", "text": "now?"}]},
        ],
    }  # fmt: skip
    counted = {name: asked[name] for name in ("system", "messages")}
    async with httpx.AsyncClient(base_url=gateway.settings.vllm_urls[0], timeout=PATIENCE_SECONDS) as vllm:
        for path, body, names in (
            ("/v1/messages", asked, ("content", "stop_reason", "stop_sequence", "role", "type")),
            ("/v1/messages/count_tokens", counted, ("input_tokens",)),
        ):
            own = (await vllm.post(path, json={"model": gateway.base_model, **body})).json()
            ours = (await gateway.http.post(path, json={"model": gateway.free, **body})).json()
            assert {name: ours.get(name) for name in names} == {name: own.get(name) for name in names}
            assert ours.keys() >= {names[0]}
            if "usage" in own:
                assert ours["usage"]["input_tokens"] + ours["usage"]["cache_read_input_tokens"] == sum(
                    own["usage"].get(name) or 0 for name in ("input_tokens", "cache_read_input_tokens")
                )


async def test_an_answer_that_anthropics_client_began_is_continued_and_its_first_event_has_the_prompts_tokens(
    gateway: Gateway,
) -> None:
    begun: Any = [*MESSAGES, {"role": "assistant", "content": "First, call the"}]
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any") as client:
        counted = await client.messages.count_tokens(model=gateway.free, messages=begun)
        whole = await client.messages.count_tokens(model=gateway.free, messages=[*begun, *MESSAGES])
        stream = await client.messages.create(model=gateway.free, max_tokens=5, messages=begun, stream=True)
        events = [event async for event in stream]
    first, last = events[0], events[-2]
    assert first.type == "message_start"
    assert last.type == "message_delta"
    assert first.message.usage.input_tokens == counted.input_tokens < whole.input_tokens
    assert (last.delta.stop_reason, last.usage.output_tokens) == ("max_tokens", 5)
    event, logged = await gateway.logged(first.message.id)
    assert event.call.parameters["continue_final_message"] is True
    assert logged.text == "".join(e.delta.text for e in events if e.type == "content_block_delta")


async def test_anthropics_client_gets_vllms_own_error_word_for_word(gateway: Gateway) -> None:
    long: Any = [{"role": "user", "content": "word " * 6_000}]
    async with anthropic.AsyncAnthropic(base_url=gateway.url, api_key="any") as client:
        with pytest.raises(anthropic.BadRequestError, match=r"(?i)context|tokens") as caught:
            await client.messages.create(model=gateway.task, max_tokens=5, messages=long)
    assert caught.value.type == "invalid_request_error"


async def test_feedback_reaches_the_topic(gateway: Gateway) -> None:
    prediction_id = (await gateway.ask()).headers["x-ratchet-prediction-id"]
    body = {"prediction_id": prediction_id, "kind": "label", "text": LABELS[0], "user": "ann"}
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 200
    (event,) = await gateway.event(FeedbackGiven, prediction_id)
    assert (event.kind, event.text) == ("label", LABELS[0])
    body["text"] = "no such label"
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 422
    body["prediction_id"] = prediction_id[:-1] + ("0" if prediction_id[-1] != "0" else "1")
    assert (await gateway.http.post("/v1/feedback", json=body)).status_code == 404


async def test_an_answer_made_elsewhere_reaches_the_topic(gateway: Gateway) -> None:
    body = {"task": gateway.task, "messages": MESSAGES, "answer": LABELS[1], "latency_ms": 3}
    (prediction_id,) = (await gateway.http.post("/v1/predictions", json=body)).json()["prediction_ids"]
    event, logged = await gateway.logged(prediction_id)
    assert (event.variant, logged.text) == ("external", LABELS[1])


async def test_each_kind_of_bad_input_has_its_own_error(gateway: Gateway) -> None:
    create = gateway.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match=gateway.task):
        await create(model="no-such-task", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="at least one message"):
        await create(model=gateway.task, messages=[])
    assert (await gateway.http.post("/v1/chat/completions", content=b"{")).status_code == 400
    long = [{"role": "user", "content": "word " * 6_000}]
    with pytest.raises(openai.BadRequestError, match=r"(?i)context|tokens"):  # vLLM's own error.
        await create(model=gateway.task, messages=long)


async def test_flags_move_the_traffic(gateway: Gateway) -> None:
    # Any name that vLLM serves can stand for an adapter; the base's own does, so that this test trains nothing.
    flag, served = f"ratchet.{gateway.task}", gateway.base_model
    assert (await gateway.ask()).headers["x-ratchet-variant"] == "base"
    await gateway.unleash.create(f"{flag}.primary", {"adapter": served, "previous": served})
    response = await gateway.until_variant("primary")
    assert response.headers["x-ratchet-adapter"] == served
    await gateway.unleash.create(f"{flag}.rollback", None)
    await gateway.until_variant("rollback")
    await gateway.unleash.switch(f"{flag}.rollback", "off")
    await gateway.until_variant("primary")
    await gateway.unleash.create(f"{flag}.canary", {"adapter": served}, stickiness="userId")
    await gateway.until_variant("canary")
    without_user = await gateway.http.post("/v1/chat/completions", json={"model": gateway.task, "messages": MESSAGES})
    assert without_user.headers["x-ratchet-variant"] == "canary"  # Sticky by what the conversation begins with.
    await gateway.unleash.switch(f"{flag}.canary", "off")
    await gateway.unleash.switch(f"{flag}.primary", "off")
    await gateway.until_variant("base")
    await gateway.unleash.clear()


async def test_a_canary_that_vllm_does_not_serve_counts_as_its_error_and_the_base_answers(gateway: Gateway) -> None:
    flag = f"ratchet.{gateway.free}.canary"
    await gateway.unleash.create(flag, {"adapter": "never-trained"}, stickiness="userId")

    async def fallen_back() -> httpx.Response | None:
        answer = await gateway.ask(model=gateway.free)
        return answer if "x-ratchet-instead-of" in answer.headers else None

    response = await until(fallen_back)
    assert response.status_code == 200
    assert response.headers["x-ratchet-variant"] == "base"
    observed = await gateway.event(RequestObserved, response.headers["x-ratchet-prediction-id"], count=2)
    assert {(event.variant.value, event.status) for event in observed} == {("canary", 404), ("base", 200)}
    await gateway.unleash.clear()
