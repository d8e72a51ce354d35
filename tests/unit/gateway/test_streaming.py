"""Streams through the gateway: forwarded as they arrive, recorded before they end, cut by either side."""

from __future__ import annotations

import asyncio
import json
import math
from typing import TYPE_CHECKING, Any

import orjson
import pytest

from schemas.conversation import ToolCall
from services.gateway.routing.arms import Primary, ServingFlags
from services.gateway.upstreams.upstream import UpstreamFailed
from tests.unit.gateway.conftest import REFUND, USAGE, chunk, sse
from tests.waiting import PATIENCE_SECONDS

if TYPE_CHECKING:
    import httpx

    from tests.unit.gateway.conftest import Gateway

MESSAGES = [{"role": "user", "content": "I want my money back"}]


def _chunks(response: httpx.Response) -> list[Any]:
    events = [event.removeprefix(b"data: ") for event in response.content.split(b"\n\n") if event]
    return [orjson.loads(event) for event in events if event != b"[DONE]"]


async def test_a_stream_is_forwarded_under_our_id_and_the_tasks_name(gateway: Gateway) -> None:
    response = await gateway.ask(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.content.endswith(b"data: [DONE]\n\n")
    prediction_id = response.headers["x-ratchet-prediction-id"]
    chunks = _chunks(response)
    identity = (prediction_id, "support", 1_790_000_000)
    assert {(event["id"], event["model"], event["created"]) for event in chunks} == {identity}
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in chunks) == "refund"
    assert [event["choices"][0]["logprobs"] for event in chunks] == [None] * 4
    (asked,) = gateway.upstream.asked
    assert (asked["stream"], asked["stream_options"]) == (True, {"include_usage": True})


async def test_the_last_chunk_has_the_variant_and_the_confidence(gateway: Gateway) -> None:
    gateway.flags.flags = ServingFlags(Primary("now", None))
    response = await gateway.ask(stream=True)
    *others, last = _chunks(response)
    (event,) = gateway.log.predictions
    assert last["ratchet"] == {
        "prediction_id": event.prediction_id, "variant": "primary", "adapter": "now",
        "confidence": event.confidence.score,
    }  # fmt: skip
    assert last["choices"][0]["finish_reason"] == "stop"
    assert not any("ratchet" in event for event in others)
    assert response.headers["x-ratchet-variant"] == "primary"
    assert response.headers["x-ratchet-adapter"] == "now"


async def test_a_streamed_answer_is_logged_like_a_whole_one(gateway: Gateway) -> None:
    await gateway.ask(stream=True, user="ann")
    gateway.upstream.says("refund", [-0.1, -0.1])
    await gateway.ask(user="ann")
    streamed, whole = gateway.log.events
    own: Any = {
        "event_id": True, "occurred_at": True, "request_id": True, "latency_ms": True, "call": {"stream"},
        "answers": {"__all__": {"prediction_id"}},
    }  # fmt: skip
    assert (streamed.call.stream, whole.call.stream) == (True, False)
    assert streamed.model_dump(exclude=own) == whole.model_dump(exclude=own)
    assert [event.status for event in gateway.log.observed] == [200, 200]


@pytest.mark.parametrize("include_usage", [True, False])
async def test_usage_reaches_only_a_client_that_asked_for_it(gateway: Gateway, include_usage: bool) -> None:
    chunks = _chunks(await gateway.ask(stream=True, stream_options={"include_usage": include_usage}))
    assert [event["usage"]["total_tokens"] for event in chunks if event.get("usage")] == ([22] if include_usage else [])
    assert "ratchet" in chunks[-1]
    assert len(chunks) == (5 if include_usage else 4)


async def test_the_system_fingerprint_of_vllms_last_chunk_reaches_the_client(gateway: Gateway) -> None:
    gateway.upstream.pieces = list(
        sse(chunk({"content": "refund"}), chunk({}, finish="stop", logprob=None), {**USAGE, "system_fingerprint": "fp"})
    )
    without = _chunks(await gateway.ask(stream=True))
    assert [event.get("system_fingerprint") for event in without] == [None, "fp"]
    with_usage = _chunks(await gateway.ask(stream=True, stream_options={"include_usage": True}))
    assert [event.get("system_fingerprint") for event in with_usage] == [None, None, "fp"]


async def test_a_chunk_that_vllm_sends_for_its_logprobs_alone_is_not_passed_on(gateway: Gateway) -> None:
    alone = chunk({})
    gateway.upstream.pieces = list(
        sse(chunk({"content": "refund"}), alone, chunk({}, finish="stop", logprob=None), USAGE)
    )
    deltas = [event["choices"][0]["delta"] for event in _chunks(await gateway.ask(stream=True))]
    assert deltas == [{"content": "refund"}, {}], "the last one has the finish reason"


async def test_a_stream_has_only_the_logprobs_that_the_client_asked_for(gateway: Gateway) -> None:
    tops = [{"token": name, "logprob": -1.0, "bytes": None} for name in "abcde"]
    first = chunk({"content": "refund"})
    first["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = tops
    gateway.upstream.pieces = list(sse(first, chunk({}, finish="stop", logprob=None), USAGE))
    chunks = _chunks(await gateway.ask(stream=True, logprobs=True, top_logprobs=2))
    (token,) = chunks[0]["choices"][0]["logprobs"]["content"]
    assert token["top_logprobs"] == tops[:2]
    assert gateway.upstream.asked[0]["top_logprobs"] == 20


async def test_only_the_last_chunks_are_held_back(gateway: Gateway) -> None:
    more = asyncio.Event()
    gateway.upstream.pieces = [*REFUND[:2], more, *REFUND[2:]]
    sent: list[bytes] = []
    arrived = asyncio.Event()

    async def receive() -> Any:
        body = orjson.dumps({"model": "support", "messages": MESSAGES, "stream": True})
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if len(sent) == 3:  # The start, the role, the first token.
            arrived.set()

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    request = asyncio.create_task(gateway.app(scope, receive, send))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await arrived.wait()
    assert b'"ref"' in sent[2]
    assert gateway.log.appends == []
    more.set()
    await request
    assert b'"ratchet"' in sent[-1]
    assert gateway.log.predictions[0].answer == "refund"


async def test_the_last_chunks_wait_for_the_log(gateway: Gateway) -> None:
    gateway.log.full = True
    response = await gateway.ask(stream=True)
    *chunks, last = _chunks(response)
    assert last["error"]["code"] == "unavailable"
    assert [event["choices"][0]["finish_reason"] for event in chunks] == [None, None, None]
    assert b"[DONE]" not in response.content


async def test_with_spool_full_answer_an_unrecorded_stream_is_marked(answering_when_full: Gateway) -> None:
    answering_when_full.log.full = True
    chunks = _chunks(await answering_when_full.ask(stream=True))
    assert chunks[-1]["ratchet"]["logged"] is False


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (
            [*REFUND[:3], UpstreamFailed(502, "the model server broke off", "lost", another_may_answer=True)],
            "upstream_lost",
        ),
        (list(REFUND[:3]), "upstream_cut"),
        ([*REFUND[:2], b"data: pong\n\n"], "upstream_garbled"),
        ([*REFUND[:2], b'data: {"choices": [{"index": 7}]}\n\n'], "upstream_garbled"),
        ([*REFUND[:2], b'data: {"choices": 7}\n\n'], "upstream_garbled"),
        ([*REFUND[:2], b'data: {"error": "out of memory"}\n\n'], "upstream_failed"),
    ],
)
async def test_a_stream_cut_by_the_upstream_ends_with_an_error_and_is_logged_as_cut(
    gateway: Gateway, pieces: list[Any], code: str
) -> None:
    gateway.upstream.pieces = pieces
    response = await gateway.ask(stream=True)
    assert response.status_code == 200
    assert _chunks(response)[-1]["error"]["code"] == code
    assert b"[DONE]" not in response.content
    assert [event.finish_reason for event in gateway.log.predictions] == ["upstream_cut"]
    assert [event.status for event in gateway.log.observed] == [502]


async def test_an_error_inside_a_stream_is_passed_on_unchanged(gateway: Gateway) -> None:
    error = {"message": "aborted", "type": "InternalServerError", "param": None, "code": 500}
    gateway.upstream.pieces = [*REFUND[:2], *sse({"error": error})]
    assert _chunks(await gateway.ask(stream=True))[-1] == {"error": error}
    assert [event.status for event in gateway.log.observed] == [500]


@pytest.mark.parametrize("broken", [b'data: {"error": {"message": "aborted", "code": 500}}\n\n', b"data: pong\n\n"])
async def test_text_that_comes_in_one_piece_with_an_error_reaches_the_client_as_it_is_logged(
    gateway: Gateway, broken: bytes
) -> None:
    gateway.upstream.pieces = [b"".join([*REFUND[:2], broken])]
    *chunks, error = _chunks(await gateway.ask(stream=True))
    assert "error" in error
    text = "".join(event["choices"][0]["delta"].get("content") or "" for event in chunks)
    assert text == gateway.log.predictions[0].answer == "ref"


async def test_a_stream_that_cannot_begin_is_an_http_error(gateway: Gateway) -> None:
    gateway.upstream.failure = UpstreamFailed(429, "slow down", "status_429")
    response = await gateway.ask(stream=True)
    assert (response.status_code, response.json()["error"]["message"]) == (429, "slow down")
    assert [event.status for event in gateway.log.observed] == [429]


async def test_another_arm_streams_if_the_first_is_not_served(gateway: Gateway) -> None:
    gateway.flags.flags = ServingFlags(Primary("now", None), canary="next")
    gateway.upstream.not_served = {"next"}
    response = await gateway.ask(stream=True)
    assert response.headers["x-ratchet-variant"] == "primary"
    assert response.headers["x-ratchet-instead-of"] == "canary"
    assert _chunks(response)[-1]["ratchet"]["adapter"] == "now"
    assert gateway.upstream.models == ["next", "now"]


async def test_streamed_tool_calls_are_assembled_for_the_log(gateway: Gateway) -> None:
    def call(**function: str) -> Any:
        return chunk({"tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]})

    gateway.upstream.pieces = list(
        sse(call(name="find", arguments=""), call(arguments='{"id"'), call(arguments=": 7}"),
            chunk({}, finish="tool_calls", logprob=None), USAGE)
    )  # fmt: skip
    chunks = _chunks(await gateway.ask(model="haiku", stream=True, tools=[{"type": "function"}]))
    assert chunks[1]["choices"][0]["delta"]["tool_calls"][0]["function"] == {"arguments": '{"id"'}
    (event,) = gateway.log.predictions
    assert event.answer == '[{"name":"find","arguments":"{\\"id\\": 7}"}]'
    assert event.finish_reason == "tool_calls"


@pytest.mark.parametrize("numbered", [{}, {"index": None}, {"index": 0}])
async def test_streamed_calls_that_the_server_does_not_number_are_told_apart_by_their_ids(
    gateway: Gateway, numbered: dict[str, Any]
) -> None:
    def call(call_id: str, **function: Any) -> Any:
        return chunk({"tool_calls": [{**numbered, "id": call_id, "type": "function", "function": function}]})

    gateway.upstream.pieces = list(
        sse(call("call_1", name="find", arguments='{"id"'), call("call_x", arguments=": 7}"),
            call("call_2", name="stop", arguments={"now": True}), chunk({}, finish="tool_calls", logprob=None), USAGE)
    )  # fmt: skip
    await gateway.ask(model="haiku", stream=True, tools=[{"type": "function"}])
    (event,) = gateway.log.predictions
    assert [(call.id, call.name, json.loads(call.arguments)) for call in event.tool_calls] == [
        ("call_1", "find", {"id": 7}), ("call_2", "stop", {"now": True}),
    ]  # fmt: skip


async def test_a_server_that_repeats_the_name_with_an_id_of_its_own_in_each_piece_makes_one_call(
    gateway: Gateway,
) -> None:
    pieces = [
        chunk({"tool_calls": [{"index": 0, "id": f"call_{n}", "function": {"name": "find", "arguments": text}}]})
        for n, text in enumerate(('{"id"', ": 7", "}"))
    ]
    gateway.upstream.pieces = list(sse(*pieces, chunk({}, finish="tool_calls", logprob=None), USAGE))
    await gateway.ask(model="haiku", stream=True, tools=[{"type": "function"}])
    (event,) = gateway.log.predictions
    assert [(call.id, call.arguments) for call in event.tool_calls] == [("call_0", '{"id": 7}')]


async def test_a_call_of_another_name_is_another_call_though_the_one_before_is_not_complete(gateway: Gateway) -> None:
    pieces = [
        chunk({"tool_calls": [{"id": f"call_{n}", "function": {"name": name, "arguments": text}}]})
        for n, (name, text) in enumerate((("find", '{"a": 1'), ("lookup", '{"b":1}')))
    ]
    gateway.upstream.pieces = list(sse(*pieces, chunk({}, finish="tool_calls", logprob=None), USAGE))
    await gateway.ask(model="haiku", stream=True, tools=[{"type": "function"}])
    (event,) = gateway.log.predictions
    assert [(call.name, call.arguments) for call in event.tool_calls] == [("find", '{"a": 1'), ("lookup", '{"b":1}')]


@pytest.mark.parametrize(
    "arguments", [json.loads("[" * 300 + "]" * 300), 10**400, 7], ids=["nested", "a large number", "no index"]
)
async def test_a_chunk_that_cannot_be_passed_on_breaks_the_stream_and_what_came_before_is_logged(
    gateway: Gateway, arguments: Any
) -> None:
    index = "first" if arguments == 7 else 0
    broken = {"tool_calls": [{"index": index, "id": "c", "function": {"name": "f", "arguments": arguments}}]}
    raw = b"data: " + json.dumps(chunk(broken)).encode() + b"\n\n"
    gateway.upstream.pieces = [next(iter(sse(chunk({"content": "pond"})))), raw]
    await gateway.ask(model="haiku", stream=True, tools=[{"type": "function"}])
    (event,) = gateway.log.predictions
    assert (event.answer[:4], event.finish_reason) == ("pond", "upstream_cut")


async def test_a_streamed_answer_in_parts_is_logged_with_its_text(gateway: Gateway) -> None:
    parts = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "pond"}]
    gateway.upstream.pieces = list(
        sse(chunk({"content": parts}), chunk({"content": "."}), chunk({}, finish="stop"), USAGE)
    )
    await gateway.ask(model="haiku", stream=True)
    (event,) = gateway.log.predictions
    assert (event.answer, event.truncated) == ("pond.", True)


async def test_a_streamed_call_of_a_custom_tool_or_in_the_older_form_is_logged_whole(gateway: Gateway) -> None:
    custom = ({"index": 0, "id": "call_1", "type": "custom", "custom": {"name": "sql", "input": "sel"}},
              {"index": 0, "custom": {"input": "ect"}})  # fmt: skip
    older = ({"name": "find", "arguments": ""}, {"arguments": '{"id":7}'})
    for pieces, finish in (
        ([{"tool_calls": [piece]} for piece in custom], "tool_calls"),
        ([{"function_call": piece} for piece in older], "function_call"),
    ):
        gateway.upstream.pieces = list(sse(*map(chunk, pieces), chunk({}, finish=finish), USAGE))
        await gateway.ask(model="haiku", stream=True)
    assert [event.tool_calls for event in gateway.log.predictions] == [
        (ToolCall(name="sql", arguments="select", id="call_1", type="custom"),),
        (ToolCall(name="find", arguments='{"id":7}'),),
    ]


async def test_each_choice_of_a_stream_is_a_prediction(gateway: Gateway) -> None:
    gateway.upstream.pieces = list(
        sse(chunk({"content": "one"}, 0), chunk({"content": "two"}, 1), chunk({}, 1, "length", None),
            chunk({}, 0, "stop", None), USAGE)
    )  # fmt: skip
    response = await gateway.ask(model="haiku", stream=True, n=2)
    ids = response.headers["x-ratchet-prediction-ids"].split(",")
    assert ids[0] == response.headers["x-ratchet-prediction-id"]
    events = gateway.log.predictions
    assert [(event.prediction_id, event.answer, event.finish_reason) for event in events] == [
        (ids[0], "one", "stop"), (ids[1], "two", "length"),
    ]  # fmt: skip
    chunks = _chunks(response)
    assert [event["choices"][0]["finish_reason"] for event in chunks] == [None, None, "length", "stop"]
    assert [choice["prediction_id"] for choice in chunks[-1]["ratchet"]["choices"]] == ids
    assert chunks[-1]["ratchet"]["choices"][1]["confidence"] == pytest.approx(math.exp(-0.1))


async def test_a_stream_may_be_cut_anywhere(gateway: Gateway) -> None:
    whole = b"".join(REFUND)
    gateway.upstream.pieces = [whole[at : at + 7] for at in range(0, len(whole), 7)]
    chunks = _chunks(await gateway.ask(stream=True))
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in chunks) == "refund"
    assert gateway.log.predictions[0].answer == "refund"


async def test_line_ends_comments_and_split_data_are_parsed_as_server_sent_events(gateway: Gateway) -> None:
    odd = [b": ping\r\n\r\n", REFUND[1].replace(b"\n", b"\r\n"), b"event: x\n" + REFUND[2], *REFUND[3:]]
    gateway.upstream.pieces = list(odd)
    await gateway.ask(stream=True)
    assert gateway.log.predictions[0].answer == "refund"


@pytest.mark.parametrize("stream", ["chat", "responses"])
@pytest.mark.parametrize(
    ("first", "end"), [
        (b"data: \n\n", b""), (b"data\n\ndata:\n\n", b""), (b"\xef\xbb\xbf", b""), (b"", b"data: [DONE] \n\n"),
    ],
    ids=["empty data", "no data", "byte order mark", "blank behind the end"],
)  # fmt: skip
async def test_a_stream_is_read_as_the_rules_of_server_sent_events_and_openais_client_read_it(
    gateway: Gateway, stream: str, first: bytes, end: bytes
) -> None:
    pieces, path, asked = list(REFUND), "/v1/chat/completions", {"messages": MESSAGES}
    if stream == "responses":
        said = {"type": "message", "content": [{"type": "output_text", "text": "refund"}]}
        whole = {"type": "response.completed", "response": {"status": "completed", "output": [said]}}
        pieces, path, asked = list(sse(whole)), "/v1/responses", {"input": "x"}  # type: ignore[dict-item]
    gateway.upstream.pieces = [first + pieces[0], *pieces[1:-1], end or pieces[-1]]
    response = await gateway.http.post(path, json={"model": "haiku", "stream": True, **asked})
    assert b'"error"' not in response.content
    assert [(event.answer, event.finish_reason) for event in gateway.log.predictions] == [("refund", "stop")]


async def test_a_stream_without_a_finish_reason_still_ends_with_the_prediction_id(gateway: Gateway) -> None:
    gateway.upstream.pieces = list(sse(chunk({"content": "refund"})))
    chunks = _chunks(await gateway.ask(stream=True))
    assert (chunks[-1]["choices"], chunks[-1]["ratchet"]["variant"]) == ([], "base")
    assert gateway.log.predictions[0].finish_reason is None


@pytest.mark.parametrize("choices", [{"choices": None}, {}], ids=["null", "none"])
async def test_a_usage_chunk_without_a_list_of_choices_is_one_with_an_empty_list(
    gateway: Gateway, choices: dict[str, Any]
) -> None:
    usage = {name: value for name, value in USAGE.items() if name != "choices"} | choices
    gateway.upstream.pieces = list(sse(chunk({"content": "refund"}), chunk({}, finish="stop", logprob=None), usage))
    chunks = _chunks(await gateway.ask(stream=True, stream_options={"include_usage": True}))
    assert (chunks[-1]["choices"], chunks[-1]["usage"]["total_tokens"]) == ([], 22)
    (event,) = gateway.log.predictions
    assert (event.answer, event.finish_reason, event.prompt_tokens) == ("refund", "stop", 20)


async def test_a_first_chunk_whose_choices_are_null_does_not_break_a_stream(gateway: Gateway) -> None:
    gateway.upstream.pieces = [*sse({**USAGE, "usage": None, "choices": None})[:-1], *REFUND]
    assert all(event["choices"] for event in _chunks(await gateway.ask(stream=True)))
    assert gateway.log.predictions[0].answer == "refund"


async def test_an_object_that_is_no_chunk_breaks_the_stream(gateway: Gateway) -> None:
    """As an error that a server reports in a form of its own: it must not pass for the end of an answer."""
    gateway.upstream.pieces = [*REFUND[:2], *sse({"object": "error", "message": "out of memory", "code": 500})]
    assert _chunks(await gateway.ask(stream=True))[-1]["error"]["code"] == "upstream_garbled"
    assert [event.finish_reason for event in gateway.log.predictions] == ["upstream_cut"]


async def test_the_only_answer_of_a_stream_may_have_the_index_null(gateway: Gateway) -> None:
    pieces = [chunk({"content": "refund"}), chunk({}, finish="stop", logprob=None)]
    for piece in pieces:
        piece["choices"][0]["index"] = None
    gateway.upstream.pieces = list(sse(*pieces, USAGE))
    chunks = _chunks(await gateway.ask(stream=True))
    assert [event["choices"][0]["index"] for event in chunks] == [0, 0]
    assert gateway.log.predictions[0].answer == "refund"


@pytest.mark.parametrize("index", [None, "absent", -1, 2, "0", True])
async def test_a_piece_that_does_not_say_which_of_several_answers_it_is_of_breaks_the_stream(
    gateway: Gateway, index: Any
) -> None:
    piece = chunk({"content": "two"}, index)
    if index == "absent":
        del piece["choices"][0]["index"]
    gateway.upstream.pieces = list(sse(chunk({"content": "one"}, 0), piece))
    error = _chunks(await gateway.ask(model="haiku", stream=True, n=2))[-1]["error"]
    assert (error["code"], "`index`" in error["message"]) == ("upstream_garbled", True)
    assert [(event.answer, event.finish_reason) for event in gateway.log.predictions] == [
        ("one", "upstream_cut"), ("", "upstream_cut"),
    ]  # fmt: skip


UNFINISHED = [chunk({"content": "one"}, 0), chunk({"content": "two"}, 1), chunk({}, 1, "length", None)]
FINISHED = [*UNFINISHED, chunk({}, 0, "stop", None)]


@pytest.mark.parametrize("usage", [[USAGE], []], ids=["usage", "none"])
@pytest.mark.parametrize("end", [b"\n\n", b"\n", b"", b"\r\n", b"\n\ndata: [DONE]", b"\n\ndata: [DONE]\n"])
async def test_a_stream_that_ends_without_done_once_each_answer_is_finished_is_whole(
    gateway: Gateway, end: bytes, usage: list[Any]
) -> None:
    *pieces, last, _ = sse(*FINISHED, *usage)
    gateway.upstream.pieces = [*pieces, last.removesuffix(b"\n\n") + end]
    response = await gateway.ask(model="haiku", stream=True, n=2)
    assert response.content.endswith(b"data: [DONE]\n\n")
    assert "ratchet" in _chunks(response)[-1]
    assert [(event.answer, event.finish_reason) for event in gateway.log.predictions] == [
        ("one", "stop"), ("two", "length"),
    ]  # fmt: skip
    assert [event.prompt_tokens for event in gateway.log.predictions] == [20 if usage else 0] * 2
    assert [event.status for event in gateway.log.observed] == [200]


@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        (sse(*UNFINISHED)[:-1], "upstream_cut"),
        ([*sse(*FINISHED)[:-1], b'data: {"choices": [], "usa'], "upstream_cut"),
        ([*sse(*UNFINISHED)[:-1], b'data: {"choices": [{"index": 0, "finish_reas'], "upstream_cut"),
        ([*sse(*UNFINISHED)[:-1], b'data: {"error": {"message": "out of memory"}}'], None),
        ([*sse(*FINISHED)[:-1], UpstreamFailed(502, "upstream connection lost", "lost")], "upstream_lost"),
    ],
    ids=["an answer goes on", "within a chunk", "within the last chunk", "an error", "the connection breaks"],
)
async def test_a_stream_that_ends_without_done_is_cut_otherwise(
    gateway: Gateway, pieces: list[Any], code: str | None
) -> None:
    gateway.upstream.pieces = pieces
    response = await gateway.ask(model="haiku", stream=True, n=2)
    assert _chunks(response)[-1]["error"].get("code") == code
    assert b"[DONE]" not in response.content
    assert [event.status for event in gateway.log.observed] == [502]
    reasons = ["stop", "length"] if sse(*FINISHED)[3] in pieces else ["upstream_cut", "length"]
    assert [event.finish_reason for event in gateway.log.predictions] == reasons
