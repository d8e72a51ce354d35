"""The API formats: what is sent to vLLM, what is logged, and what the client gets back."""

from __future__ import annotations

import copy
import json
import math
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from schemas.conversation import Part, ToolCall
from services.gateway.auth.grants import Grant
from services.gateway.formats.calls import logged_call
from services.gateway.formats.conversation import EventConversation
from services.gateway.formats.identity import identity_of
from services.gateway.formats.media import MediaReferences
from services.gateway.routing.arms import Primary, ServingFlags
from services.gateway.upstreams.upstream import UpstreamFailed
from shared.http import HttpError
from tests.unit.gateway.conftest import (
    HAIKU,
    ORDERS,
    SUPPORT,
    USAGE,
    chat_completion,
    logprobs_of,
    serving,
    sse,
)

if TYPE_CHECKING:
    from tests.unit.gateway.conftest import Gateway

TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
LOGPROB_FIELDS = ("top_logprobs", "logprobs", "top_logprobs")
COMPLETION = {
    "choices": [{"index": 0, "text": "refund", "finish_reason": "stop", "logprobs": None}], "model": "small",
}  # fmt: skip
CALL = {"id": "call_1", "type": "function", "function": {"name": "find", "arguments": '{"id":7}'}}


async def test_fields_that_vllm_knows_are_passed_on_unchanged(gateway: Gateway) -> None:
    fields: dict[str, Any] = {
        "tools": TOOLS, "tool_choice": "auto", "parallel_tool_calls": False, "seed": 7, "stop": ["\n"], "top_p": 0.9,
        "response_format": {"type": "json_object"}, "frequency_penalty": 0.5, "logit_bias": {"50": -100},
        "max_completion_tokens": 5, "chat_template_kwargs": {"x": 1}, "guided_regex": "a+",
    }  # fmt: skip
    assert (await gateway.ask(model="haiku", **fields)).status_code == 200
    (asked,) = gateway.upstream.asked
    assert {name: asked[name] for name in fields} == fields
    assert "max_tokens" not in asked
    (event,) = gateway.log.events
    assert (list(event.call.tools), event.call.tool_choice) == (TOOLS, "auto")
    assert event.call.response_format == {"type": "json_object"}
    own = {"tools", "tool_choice", "response_format"}
    assert event.call.parameters == {name: value for name, value in fields.items() if name not in own}


async def test_the_user_is_not_passed_on(gateway: Gateway) -> None:
    for path, more in (("completions", {"prompt": "x"}), ("responses", {"input": "x"}), ("embeddings", {"input": "x"})):
        await gateway.http.post(f"/v1/{path}", json={"model": "haiku", "user": "ann@example.com", **more})
    await gateway.ask(user="ann@example.com")
    assert len(gateway.upstream.asked) == 4
    assert not any("user" in asked for asked in gateway.upstream.asked)


async def test_a_conversation_with_tools_and_a_picture_is_passed_on_and_kept(gateway: Gateway) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "text", "text": "What is it?"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}},
        ]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "a cat"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [CALL]},
    ]  # fmt: skip
    assert (await gateway.ask(model="haiku", messages=messages)).status_code == 200
    assert gateway.upstream.asked[0]["messages"] == messages
    system, user, assistant, tool, last = gateway.log.predictions[0].messages
    assert (system.role, system.content) == ("system", "Be brief.")
    text, picture = user.content
    assert text == Part(type="text", text="What is it?")
    assert (picture.type, picture.media.kind, picture.media.media_type) == ("image_url", "image", "image/png")
    assert (picture.media.size, picture.media.key) == (3, None)
    call = ToolCall(name="find", arguments='{"id":7}', id="call_1")
    assert (assistant.content, assistant.tool_calls) == (None, (call,))
    assert (tool.role, tool.tool_call_id, tool.content) == ("tool", "call_1", "a cat")
    assert (last.content, last.tool_calls) == ("Looking.", (call,))
    assert b"QUJD" not in gateway.log.events[0].model_dump_json().encode()


async def test_equal_tool_calls_are_equal_answers_whatever_their_random_ids(gateway: Gateway) -> None:
    gateway.upstream.answer = chat_completion("", [-0.1], tool_calls=[CALL])
    response = await gateway.ask(model="haiku", tools=TOOLS)
    assert response.json()["choices"][0]["message"]["tool_calls"] == [CALL]
    (logged,) = gateway.log.predictions
    assert logged.answer == '[{"name":"find","arguments":"{\\"id\\":7}"}]'
    assert logged.tool_calls == (ToolCall(name="find", arguments='{"id":7}', id="call_1"),)


async def test_a_refusal_is_the_answer_if_there_is_no_other(gateway: Gateway) -> None:
    gateway.upstream.answer = chat_completion("", [-0.1], refusal="I can't")
    gateway.upstream.answer["choices"][0]["message"]["content"] = None
    await gateway.ask(model="haiku")
    assert gateway.log.predictions[0].answer == "I can't"


async def test_each_of_several_answers_is_a_prediction(gateway: Gateway) -> None:
    first, second = chat_completion("one", [-0.1]), chat_completion("two", [-0.2, -0.2])
    second["choices"][0]["index"] = 1
    gateway.upstream.answer = {**first, "choices": [*first["choices"], *second["choices"]]}
    response = await gateway.ask(model="haiku", n=2)
    ids = response.headers["x-ratchet-prediction-ids"].split(",")
    events = gateway.log.predictions
    assert [(e.prediction_id, e.answer, e.answer_tokens) for e in events] == [(ids[0], "one", 1), (ids[1], "two", 2)]
    assert response.json()["id"] == response.headers["x-ratchet-prediction-id"] == ids[0]
    assert len(response.json()["choices"]) == 2
    assert [gateway.ids.task_of(prediction_id) for prediction_id in ids] == ["haiku", "haiku"]
    assert len({e.event_id for e in events}) == 1  # One event, with the conversation once.
    assert len(gateway.log.observed) == 1
    feedback = {"prediction_id": ids[1], "kind": "thumbs", "positive": True}
    assert (await gateway.http.post("/v1/feedback", json=feedback)).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_the_ids_of_many_answers_are_in_the_body_and_no_header_that_proxies_refuse(
    gateway: Gateway, stream: bool
) -> None:
    answer = chat_completion("one", [-0.1])
    choices = [{**answer["choices"][0], "index": number, "delta": {"content": "one"}} for number in range(128)]
    gateway.upstream.answer = {**answer, "choices": choices}
    gateway.upstream.pieces = list(sse(gateway.upstream.answer))
    response = await gateway.ask(model="haiku", n=128, stream=stream)
    assert "x-ratchet-prediction-ids" not in response.headers
    assert sum(len(name) + len(value) + 4 for name, value in response.headers.raw) < 4_096
    body = orjson.loads(response.content.split(b"data: ")[-2]) if stream else response.json()
    ids = [choice["prediction_id"] for choice in body["ratchet"]["choices"]]
    assert ids == [event.prediction_id for event in gateway.log.predictions]
    assert (len(set(ids)), ids[0]) == (128, response.headers["x-ratchet-prediction-id"])


@pytest.mark.parametrize("index", [None, "1", 1.5, True, [1]])
async def test_answers_of_which_only_some_are_numbered_are_refused_with_a_reason(gateway: Gateway, index: Any) -> None:
    first, second = chat_completion("one", [-0.1]), chat_completion("two", [-0.2])
    first["choices"][0]["index"], second["choices"][0]["index"] = 1, index
    gateway.upstream.answer = {**first, "choices": [*first["choices"], *second["choices"]]}
    response = await gateway.ask(model="haiku", n=2)
    assert (response.status_code, "indexes" in response.json()["error"]["message"]) == (502, True)
    assert gateway.log.events == []


async def test_a_client_gets_as_many_alternatives_as_it_asked_for(gateway: Gateway) -> None:
    tops = [{"token": name, "logprob": -1.0, "bytes": None} for name in "abcde"]
    gateway.upstream.answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = tops
    asked_for = (await gateway.ask(logprobs=True, top_logprobs=2)).json()
    none = (await gateway.ask(logprobs=True)).json()
    assert asked_for["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == tops[:2]
    assert none["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []


async def test_an_openai_error_of_the_upstream_is_passed_on_unchanged(gateway: Gateway) -> None:
    error = {"message": "too long", "type": "BadRequestError", "param": "messages", "code": 400}
    raw = orjson.dumps({"error": error})
    gateway.upstream.failure = UpstreamFailed(400, "too long", "status_400", raw=raw)
    response = await gateway.ask()
    assert (response.status_code, response.json()) == (400, {"error": error})


@pytest.mark.parametrize("raw", [b"", b"<html>", b"[]", b'{"detail":"Not Found"}', b'{"error":"no"}'])
async def test_an_error_in_another_format_becomes_an_openai_error(gateway: Gateway, raw: bytes) -> None:
    gateway.upstream.failure = UpstreamFailed(404, "the model server answered 404", "status_404", raw=raw)
    error = (await gateway.ask()).json()["error"]
    assert (error["message"], error["code"]) == ("the model server answered 404", "upstream_status_404")


async def test_retry_after_is_passed_on(gateway: Gateway) -> None:
    gateway.upstream.failure = UpstreamFailed(429, "busy", "busy", retry_after=7.0)
    assert (await gateway.ask()).headers["retry-after"] == "7"


async def test_a_user_comes_from_the_first_field_that_names_one_or_from_a_header(gateway: Gateway) -> None:
    await gateway.ask(user="ann")
    body = {"model": "support", "messages": [{"role": "user", "content": "x"}]}
    await gateway.http.post("/v1/chat/completions", json=body, headers={"x-ratchet-user": "ann"})
    await gateway.http.post("/v1/chat/completions", json={**body, "user": "ann"}, headers={"x-ratchet-user": "bob"})
    await gateway.http.post("/v1/chat/completions", json=body)
    assert gateway.flags.users == ["ann", "ann", "ann", None]
    hashes = [event.user_hash for event in gateway.log.predictions]
    assert hashes[0] == hashes[1] == hashes[2] is not None
    assert hashes[3] is None
    for who in ({"safety_identifier": "ann"}, {"metadata": {"user_id": "ann"}}, {"user": "ann" * 1_000}):
        await gateway.ask(**who)
    hashes = [event.user_hash for event in gateway.log.predictions]
    assert hashes[4] == hashes[5] == hashes[0] != hashes[6]
    order = {"user": "ann", "safety_identifier": "bob", "metadata": {"user_id": "cleo"}}
    await gateway.ask(**order)
    await gateway.ask(**{**order, "user": None})
    assert gateway.flags.users[-2:] == ["ann", "bob"]


@pytest.mark.parametrize("account", ["", "1d0f9f2c-6a51-4f0e-9d8a-0c5a3d2b7e41"])
async def test_a_person_of_claude_code_is_one_user_in_all_of_their_sessions(gateway: Gateway, account: str) -> None:
    device, sessions = "5d" * 32, [f"{n}f3c2b1a-7a67-4d2e-9a4b-1d16d3f44752" for n in (1, 2)]
    for session in sessions:
        ids = {"device_id": device, "account_uuid": account, "session_id": session}
        metadata = {"user_id": json.dumps(ids)}
        asked = {"model": "haiku", "messages": [{"role": "user", "content": "x"}], "metadata": metadata}
        assert (await gateway.http.post("/v1/messages", json={**asked, "max_tokens": 5})).status_code == 200
    assert gateway.flags.users == [account or device] * 2
    assert len({event.user_hash for event in gateway.log.predictions}) == 1
    one, other = [event.session_hash for event in gateway.log.predictions]
    assert one is not None and other is not None and one != other


async def test_a_user_that_only_looks_like_claude_codes_is_taken_as_it_is(gateway: Gateway) -> None:
    users = ["user_4711", "user_ann_account_7_session_1", '{"id": 7}', '{"session_id": "s1"}', "{ann"]
    for user in users:
        await gateway.ask(user=user)
    assert gateway.flags.users == users
    assert {event.session_hash for event in gateway.log.predictions} == {None}


async def test_a_subject_is_a_user_else_a_session_else_what_an_apps_conversation_began_with(gateway: Gateway) -> None:
    """Both events name it and the canary is sticky by it: traffic without users never entered one."""
    await gateway.ask(user="ann", metadata={"session_id": "s1"})
    await gateway.ask(metadata={"session_id": "s1"})
    predictions = gateway.log.predictions
    assert [event.subject for event in predictions] == [predictions[0].user_hash, predictions[1].session_hash]
    said = [{"role": "user", "content": "\nI am Maria Gonzalez: my parcel? "}]
    turns = [{"role": "assistant", "content": "Which?"}, {"role": "user", "content": "4711"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "which?"}]}]
    for messages in (
        said, [*said, *turns], [{"role": "user", "content": "I am Maria Gonzalez: my parcel?"}],
        [{"role": "user", "content": "And mine?"}], parts, parts, [{"role": "system", "content": "Begin."}],
        [{"role": "user", "content": ""}],
    ):  # fmt: skip
        await gateway.ask(messages=messages)
    one, later, spaced, other, part, again, system, empty = [event.subject for event in gateway.log.predictions[2:]]
    assert one == later == spaced
    assert part == again
    assert len({one, other, part, system, empty, None}) == 6
    assert [event.subject for event in gateway.log.observed] == [e.subject for e in gateway.log.predictions]
    assert gateway.flags.subjects == [event.subject for event in gateway.log.predictions]
    assert "Maria" not in str(one)


async def test_all_answers_of_a_request_are_of_one_subject(gateway: Gateway) -> None:
    gateway.upstream.answer = {
        "choices": [{"index": n, "text": "x", "finish_reason": "stop"} for n in range(2)], "model": "small",
    }  # fmt: skip
    response = await gateway.http.post("/v1/completions", json={"model": "haiku", "prompt": ["one", "two"]})
    assert response.status_code == 200
    assert [event.call.messages[0].content for event in gateway.log.predictions] == ["one", "two"]
    assert len({event.subject for event in gateway.log.predictions} | {gateway.flags.subjects[0]}) == 1


async def test_what_names_a_person_does_not_reach_the_model_server(gateway: Gateway) -> None:
    fields = {
        "user": "ann", "safety_identifier": "ann", "prompt_cache_key": "ann", "metadata": {"user_id": "ann", "k": "v"},
        "session_id": "ann", "client_metadata": {"x-codex-installation-id": "ann"},
    }  # fmt: skip
    await gateway.ask(model="haiku", **fields)
    assert not fields.keys() & gateway.upstream.asked[0].keys()
    assert "ann" not in gateway.log.events[0].model_dump_json()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_a_session_that_fields_of_vllm_or_codex_name_is_hashed_and_does_not_reach_the_model_server(
    gateway: Gateway, path: str
) -> None:
    asked = {"model": "haiku", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
    by_xargs = {"vllm_xargs": {"session_id": "ann@example.com", "other": 1}}
    named = {"session_id": "ann@example.com"}
    for fields in (named, by_xargs, {"metadata": named}, {"client_metadata": named}):
        assert (await gateway.http.post(path, json={**asked, **fields})).status_code == 200
    assert not any(b"ann@" in orjson.dumps(sent) for sent in gateway.upstream.asked)
    assert gateway.upstream.asked[1]["vllm_xargs"] == {"other": 1}
    assert not any("ann@" in event.model_dump_json() for event in gateway.log.events)
    assert len({event.session_hash for event in gateway.log.events} - {None}) == 1
    assert all(event.session_hash for event in gateway.log.events)


async def test_a_session_in_vllms_arguments_counts_though_a_classification_drops_them(gateway: Gateway) -> None:
    chat, xargs = [{"role": "user", "content": "x"}], {"session_id": "ann"}
    for path, asked, answer in (
        ("chat/completions", {"messages": chat}, gateway.upstream.answer),
        ("messages", {"messages": chat, "max_tokens": 5}, gateway.upstream.answer),
        ("completions", {"prompt": "x"}, COMPLETION), ("responses", {"input": "x"}, RESPONSE),
    ):  # fmt: skip
        gateway.upstream.answer = answer
        body = {"model": "support", **asked, "vllm_xargs": xargs}
        assert (await gateway.http.post(f"/v1/{path}", json=body)).status_code == 200
    await gateway.ask(metadata=xargs)
    assert not any("vllm_xargs" in sent for sent in gateway.upstream.asked)
    assert len({event.session_hash for event in gateway.log.events}) == 1
    assert gateway.log.events[0].subject == gateway.log.events[0].session_hash is not None


async def test_which_log_probabilities_come_is_the_clients_to_say_only_where_confidence_does_not_need_others() -> None:
    """vLLM lists the named tokens instead of the likeliest ones, and ids instead of texts: no label is found then."""
    chat, own = [{"role": "user", "content": "x"}], {"logprob_token_ids": [1], "return_tokens_as_token_ids": True}
    async with serving(specs=(SUPPORT, ORDERS, HAIKU)) as gateway:
        for task, left in (("support", set()), ("orders", {"logprob_token_ids"}), ("haiku", set(own))):
            for path, asked, answer in (
                ("chat/completions", {"messages": chat, "logprobs": True}, chat_completion("refund", [-0.1])),
                ("completions", {"prompt": "x"}, COMPLETION), ("responses", {"input": "x"}, RESPONSE),
            ):  # fmt: skip
                gateway.upstream.answer = answer
                response = await gateway.http.post(f"/v1/{path}", json={"model": task, **asked, **own})
                assert response.status_code == 200
                assert own.keys() & gateway.upstream.asked[-1].keys() == left


def test_a_session_that_is_sent_on_is_hashed_all_the_same() -> None:
    for data in ({"session_id": "ann"}, {"vllm_xargs": {"session_id": "ann"}}):
        sent = copy.deepcopy(data)
        assert identity_of(sent).session == "ann"
        assert sent == data
        call = logged_call("chat", EventConversation(MediaReferences(b"k")), sent, constrained=False, format_field="x")
        assert "ann" not in repr(call)


async def test_metadata_is_logged_bounded_and_its_ids_as_hashes(gateway: Gateway) -> None:
    metadata = {
        "user_id": 17,
        "session_id": "s1",
        "channel": "mail",
        "n": 3,
        "long": "x" * 600,
        "note": "x " * 250 + "to ann@example.com",
    }
    many = {f"k{number}": "v" for number in range(40)}
    await gateway.ask(metadata=metadata)
    await gateway.ask(metadata=many)
    body = {"model": "support", "messages": [{"role": "user", "content": "x"}]}
    await gateway.http.post("/v1/chat/completions", json=body, headers={"x-ratchet-session": "s1"})
    first, second, third = gateway.log.events
    assert first.metadata == {"channel": "mail", "n": "3", "long": "x" * 512, "note": "x " * 250 + "to"}
    assert len(second.metadata) == 16
    assert first.session_hash == third.session_hash is not None
    assert first.user_hash is not None
    assert first.session_hash != first.user_hash


async def test_a_flag_payload_cannot_inject_headers(gateway: Gateway) -> None:
    gateway.flags.flags = ServingFlags(Primary("adapter\r\nx-evil: 1 ü", None))
    assert (await gateway.ask()).headers["x-ratchet-adapter"] == "adapter??x-evil: 1 ?"


class _Refusing:
    """Access control that knows one key."""

    def grant(self, headers: Any) -> Grant:
        if (b"authorization", b"Bearer good") not in headers:
            raise HttpError(401, "invalid key", "invalid_api_key")
        return Grant("app")

    def charge(self, grant: Grant, size: int) -> None:
        """Its keys have no limits."""


async def test_without_a_valid_key_nothing_is_sent_upstream_and_no_task_is_named() -> None:
    async with serving(access=_Refusing()) as gateway:
        refused = await gateway.ask(model="nope")
        assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
        gateway.http.headers["authorization"] = "Bearer good"
        assert (await gateway.ask()).status_code == 200
        assert len(gateway.upstream.asked) == 1


async def test_a_prompt_is_a_user_message_and_each_of_its_answers_a_prediction(gateway: Gateway) -> None:
    def choice(index: int, text: str) -> Any:
        logprobs = {"tokens": ["a", "b"], "token_logprobs": [-0.1, -0.3], "top_logprobs": [{"a": -0.1}, None]}
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": "length"}

    gateway.upstream.answer = {
        "id": "cmpl-1", "object": "text_completion", "created": 1, "model": "small",
        "choices": [choice(1, "B"), choice(0, "A")], "usage": {"prompt_tokens": 5, "completion_tokens": 4},
    }  # fmt: skip
    response = await gateway.http.post("/v1/completions", json={"model": "haiku", "prompt": ["first", [1, 2]]})
    assert gateway.upstream.paths == ["/v1/completions"]
    assert gateway.upstream.asked[0]["prompt"] == ["first", [1, 2]]
    body = response.json()
    assert (body["model"], body["id"]) == ("haiku", response.headers["x-ratchet-prediction-id"])
    assert [choice["logprobs"] for choice in body["choices"]] == [None, None]
    events = gateway.log.predictions
    assert [[(m.role, m.content) for m in e.messages] for e in events] == [
        [("user", "first")], [("user", (Part(type="token_ids", text="[1,2]"),))],
    ]  # fmt: skip
    assert [(e.answer, e.finish_reason) for e in events] == [("A", "length"), ("B", "length")]
    assert events[0].confidence.score == pytest.approx(math.exp(-0.2))
    assert [(e.prompt_tokens, e.answer_tokens) for e in events] == [(3, 2), (2, 2)], (
        "of five that were counted together"
    )


def _completion(*choices: Any) -> dict[str, Any]:
    return {"id": "cmpl-1", "object": "text_completion", "created": 1, "model": "small", "choices": [*choices]}


TWO_PROMPTS = {"model": "haiku", "prompt": ["first", "second"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_the_only_answer_to_several_prompts_is_of_the_prompt_that_its_index_says(
    gateway: Gateway, stream: bool
) -> None:
    answered = _completion({"index": 1, "text": "B", "logprobs": None, "finish_reason": "stop"})
    gateway.upstream.answer, gateway.upstream.pieces = answered, list(sse(answered))
    response = await gateway.http.post("/v1/completions", json={**TWO_PROMPTS, "stream": stream})
    assert response.status_code == 200
    (event,) = gateway.log.predictions
    assert [message.content for message in event.messages] == ["second"]
    assert (event.answer, event.finish_reason) == ("B", "stop")
    assert event.prediction_id == response.headers["x-ratchet-prediction-ids"].split(",")[1]
    if stream:
        told = orjson.loads(response.content.split(b"data: ")[-2])["ratchet"]["choices"]
        assert [choice["prediction_id"] for choice in told] == [event.prediction_id]


@pytest.mark.parametrize("indexes", [[None], [2], [-1], [1, 1]])
async def test_an_answer_that_may_be_of_any_of_several_prompts_is_refused(gateway: Gateway, indexes: list[Any]) -> None:
    choices = [{"index": index, "text": "B", "logprobs": None, "finish_reason": "stop"} for index in indexes]
    gateway.upstream.answer = _completion(*choices)
    response = await gateway.http.post("/v1/completions", json=TWO_PROMPTS)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "upstream_garbled")
    assert gateway.log.events == []


async def test_a_stream_that_ends_without_any_answer_is_an_error(gateway: Gateway) -> None:
    gateway.upstream.pieces = list(sse(USAGE))
    response = await gateway.ask(model="haiku", stream=True)
    assert b'"upstream_garbled"' in response.content
    assert [event.status for event in gateway.log.observed] == [502]
    assert [event.finish_reason for event in gateway.log.predictions] == ["upstream_cut"]


async def test_a_streamed_completion_is_logged_and_an_echo_has_no_confidence(gateway: Gateway) -> None:
    def piece(text: str, finish: str | None = None) -> bytes:
        logprobs = {"tokens": ["t"], "token_logprobs": [None], "top_logprobs": [None]}
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        body = {"id": "c", "object": "text_completion", "created": 1, "model": "small", "choices": [choice]}
        return b"data: " + orjson.dumps(body) + b"\n\n"

    gateway.upstream.pieces = [piece("once"), piece(" upon", "stop"), b"data: [DONE]\n\n"]
    body = {"model": "haiku", "prompt": "once", "stream": True, "echo": True, "logprobs": 0}
    response = await gateway.http.post("/v1/completions", json=body)
    assert b'"tokens":["t"]' in response.content
    (event,) = gateway.log.predictions
    assert (event.answer, event.confidence.score) == ("once upon", None)


async def test_all_logprobs_of_a_token_reach_a_client_that_asks_for_minus_one(gateway: Gateway) -> None:
    """vLLM's own number for the whole vocabulary. It refuses other negative ones itself."""
    tops = [{"token": name, "logprob": -1.0} for name in "abc"]
    token = {"token": "a", "logprob": -1.0, "top_logprobs": tops}
    for number in (-1, -5):
        gateway.upstream.answer = chat_completion("refund", [-0.1])
        gateway.upstream.answer["choices"][0]["logprobs"]["content"] = [token]
        chat = (await gateway.ask(logprobs=True, top_logprobs=number)).json()
        gateway.upstream.answer["choices"][0]["text"] = "refund"
        named = {"tokens": ["a"], "token_logprobs": [-1.0], "top_logprobs": [{"a": -1.0, "b": -1.0, "c": -1.0}]}
        gateway.upstream.answer["choices"][0]["logprobs"] = named
        asked = {"model": "support", "prompt": "x", "logprobs": number}
        completion = (await gateway.http.post("/v1/completions", json=asked)).json()
        part = {"type": "output_text", "text": "refund", "logprobs": [token]}
        gateway.upstream.answer = {"status": "completed", "output": [{"type": "message", "content": [part]}]}
        asked = {"model": "support", "input": "x", "top_logprobs": number, "include": ["message.output_text.logprobs"]}
        response = (await gateway.http.post("/v1/responses", json=asked)).json()
        sent = [gateway.upstream.asked[-3 + api][field] for api, field in enumerate(LOGPROB_FIELDS)]
        assert sent == [number] * 3
        assert chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == tops
        assert completion["choices"][0]["logprobs"] == named
        assert response["output"][0]["content"][0]["logprobs"] == [token]


async def test_an_echo_requests_logprobs_only_if_the_client_did(gateway: Gateway) -> None:
    for fields in ({"echo": True}, {"echo": True, "logprobs": 1}, {}):
        await gateway.http.post("/v1/completions", json={"model": "haiku", "prompt": "x", **fields})
    assert [asked.get("logprobs") for asked in gateway.upstream.asked] == [None, 1, 0]


async def test_a_classification_by_completion_is_constrained_to_the_labels(gateway: Gateway) -> None:
    overruled = {"best_of": 3, "suffix": "y", "repetition_detection": {"max_pattern_size": 1, "min_count": 2}}
    await gateway.http.post("/v1/completions", json={"model": "support", "prompt": "x", **overruled})
    (asked,) = gateway.upstream.asked
    assert asked["structured_outputs"] == {"choice": ["refund", "card_lost"]}
    assert (asked["temperature"], asked["max_tokens"], asked["logprobs"]) == (0.0, 12, 20)
    assert not overruled.keys() & asked.keys()


async def test_how_much_a_model_reasons_about_a_label_is_the_clients_to_say_in_every_api(gateway: Gateway) -> None:
    await gateway.ask(reasoning_effort="low")
    gateway.upstream.answer = RESPONSE
    await gateway.http.post("/v1/responses", json={"model": "support", "input": "x", "reasoning": {"effort": "low"}})
    chat, responses = gateway.upstream.asked
    assert (chat["reasoning_effort"], responses["reasoning"]) == ("low", {"effort": "low"})
    assert [event.parameters.get("reasoning") for event in gateway.log.predictions] == [None, {"effort": "low"}]


def _logprobs(value: float) -> Any:
    return logprobs_of([value])["content"]


RESPONSE: dict[str, Any] = {
    "id": "resp_1", "object": "response", "created_at": 1, "model": "small", "status": "completed",
    "instructions": "Write a haiku.", "top_logprobs": 0, "user": None,
    "output": [
        {"type": "reasoning", "id": "rs_1", "content": []},
        {"type": "message", "id": "msg_1", "role": "assistant", "content": [
            {"type": "output_text", "text": "pond", "annotations": [], "logprobs": _logprobs(-0.5)},
        ]},
        {"type": "function_call", "name": "find", "arguments": "{}", "call_id": "call_1"},
    ],
    "usage": {"input_tokens": 9, "output_tokens": 3},
}  # fmt: skip


async def test_a_response_is_logged_like_a_chat(gateway: Gateway) -> None:
    gateway.upstream.answer = RESPONSE
    asked = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "find", "arguments": "{}", "call_id": "c"},
        {"type": "function_call_output", "call_id": "c", "output": "a cat"},
    ]
    response = await gateway.http.post("/v1/responses", json={"model": "haiku", "input": asked, "user": "ann"})
    body = response.json()
    assert (body["id"], body["model"]) == (response.headers["x-ratchet-prediction-id"], "haiku")
    assert (body["instructions"], body["user"], body["top_logprobs"]) == (None, "ann", None)
    assert body["output"][1]["content"][0]["logprobs"] is None
    (sent,) = gateway.upstream.asked
    assert (sent["instructions"], sent["input"]) == ("Write a haiku.", asked)
    assert (sent["include"], sent["max_output_tokens"]) == (["message.output_text.logprobs"], 256)
    (event,) = gateway.log.predictions
    system, user, assistant, tool = event.messages
    assert (system.content, user.content) == ("Write a haiku.", (Part(type="input_text", text="Hi"),))
    assert assistant.reasoning == ""
    assert assistant.tool_calls == (ToolCall(name="find", arguments="{}", id="c"),)
    assert (tool.role, tool.tool_call_id, tool.content) == ("tool", "c", "a cat")
    assert (event.answer, event.finish_reason) == ('pond\n[{"name":"find","arguments":"{}"}]', "tool_calls")
    assert event.tool_calls == (ToolCall(name="find", arguments="{}", id="call_1"),)
    assert (event.prompt_tokens, event.answer_tokens) == (9, 3)
    assert event.confidence.score == pytest.approx(math.exp(-0.5))


async def test_a_streamed_response_is_rewritten_and_its_last_event_held_back_until_it_is_logged(
    gateway: Gateway,
) -> None:
    def event(**fields: Any) -> bytes:
        return f"event: {fields['type']}\n".encode() + b"data: " + orjson.dumps(fields) + b"\n\n"

    started = {**RESPONSE, "status": "in_progress", "output": []}
    whole = orjson.loads(orjson.dumps(RESPONSE))
    whole["output"][1]["content"][0]["logprobs"] = None  # vLLM sends them in the deltas only.
    text = {"type": "output_text", "text": "pond", "annotations": [], "logprobs": _logprobs(-0.5)}
    gateway.upstream.pieces = [
        event(type="response.created", sequence_number=0, response=started),
        event(type="response.output_text.delta", sequence_number=1, delta="pond", logprobs=_logprobs(-0.5)),
        event(type="response.content_part.done", sequence_number=2, part=text),
        event(type="response.completed", sequence_number=3, response=whole),
    ]
    response = await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "Hi", "stream": True})
    events = [orjson.loads(part.split(b"data: ")[1]) for part in response.content.split(b"\n\n") if part]
    assert response.content.startswith(b"event: response.created\ndata: ")
    prediction_id = response.headers["x-ratchet-prediction-id"]
    assert [e["response"]["id"] for e in events if "response" in e] == [prediction_id] * 2
    assert (events[1]["logprobs"], events[2]["part"]["logprobs"]) == ([], None)
    assert events[-1]["ratchet"]["confidence"] == pytest.approx(math.exp(-0.5))
    (logged,) = gateway.log.predictions
    assert logged.answer.startswith("pond\n")


async def test_a_streamed_response_that_is_cut_is_logged_with_the_call_and_the_refusal_that_had_begun(
    gateway: Gateway,
) -> None:
    call = {"type": "function_call", "call_id": "a", "name": "find", "arguments": ""}
    begun = [
        {"type": "response.reasoning_summary_text.delta", "delta": "Hm."},
        {"type": "response.output_item.added", "item": call},
        {"type": "response.output_item.done", "item": {**call, "arguments": "{}"}},
        {"type": "response.refusal.delta", "delta": "I can"},
        {"type": "response.refusal.delta", "delta": "not"},
        {"type": "response.output_item.added", "item": {**call, "call_id": "b"}},
        {"type": "response.function_call_arguments.delta", "delta": '{"id"'},
        {"type": "response.function_call_arguments.delta", "delta": ": 4"},
    ]
    gateway.upstream.pieces = [b"data: " + orjson.dumps(event) + b"\n\n" for event in begun]
    await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "Hi", "stream": True})
    (logged,) = gateway.log.predictions
    assert (logged.finish_reason, logged.refusal, logged.reasoning) == ("upstream_cut", "I cannot", "Hm.")
    assert logged.tool_calls == (ToolCall(name="find", arguments="{}", id="a"),), "the other call is not whole"


async def test_what_a_streamed_response_repeats_of_the_request_has_its_numbers_as_they_came(gateway: Gateway) -> None:
    schema = {"type": "object", "properties": {"id": {"const": 2**70}}}
    tool = {"type": "function", "name": "find", "parameters": schema}
    echoed = {**RESPONSE, "tools": [tool]}
    gateway.upstream.pieces = [
        b"data: " + json.dumps({"type": kind, "response": echoed}).encode() + b"\n\n"
        for kind in ("response.created", "response.completed")
    ]
    response = await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "Hi", "stream": True})
    events = [json.loads(part.split(b"data: ")[1]) for part in response.content.split(b"\n\n") if part]
    assert [event["response"]["tools"] for event in events] == [[tool]] * 2
    assert all(type(e["response"]["tools"][0]["parameters"]["properties"]["id"]["const"]) is int for e in events)


@pytest.mark.parametrize(("path", "more"), [("chat/completions", {}), ("completions", {"prompt": "x"})])
async def test_a_whole_number_of_answers_may_be_written_with_a_point(
    gateway: Gateway, path: str, more: dict[str, Any]
) -> None:
    gateway.upstream.answer = COMPLETION if more else gateway.upstream.answer
    body = {"model": "haiku", "n": 1.0, "messages": [{"role": "user", "content": "Hi"}], **more}
    assert (await gateway.http.post(f"/v1/{path}", json=body)).status_code == 200
    assert len(gateway.log.predictions) == 1


@pytest.mark.parametrize(
    "failure",
    [{"type": "error", "message": "no"}, {"type": "response.failed", "response": {"error": {"message": "no"}}}],
)
async def test_a_streamed_response_that_fails_ends_with_an_error(gateway: Gateway, failure: Any) -> None:
    gateway.upstream.pieces = [b"data: " + orjson.dumps(failure) + b"\n\n"]
    response = await gateway.http.post("/v1/responses", json={"model": "haiku", "input": "Hi", "stream": True})
    assert b'"message":"no"' in response.content
    assert [event.status for event in gateway.log.observed] == [502]
