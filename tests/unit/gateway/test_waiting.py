"""Spans and their messages come by two ways, in any order; neither is lost, and neither lies readable on the disk."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.gateway.telemetry.correlation import CorrelationBuffer
from services.gateway.telemetry.spans import Span, SpanEvent
from shared.errors import DependencyUnavailable
from shared.privacy.encryption import Cipher
from tests.unit.gateway.otlp_senders import CHAT, SPAN, TRACE, WHOLE, Receiver, logs, receiver, recorded, span, traces

QUESTION = ("gen_ai.user.message", {"content": "where is Maria Gonzalez?"})
CHOICE = ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "here"}})
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with receiver(tmp_path / "waiting") as it:
        yield it


def _answers(one: Receiver) -> list[tuple[list[str], str]]:
    return [([message.content for message in p.messages], p.answer) for p in one.log.predictions]


WANTED = [(["where is Maria Gonzalez?"], "here")]


async def test_messages_that_come_before_their_span_wait_for_it(one: Receiver) -> None:
    await one.accepted(logs(QUESTION, CHOICE))
    assert one.log.records == []
    await one.accepted(traces(span(CHAT)))
    assert _answers(one) == WANTED
    assert one.log.predictions[0].prompt_tokens == 5


async def test_a_span_that_comes_before_its_messages_waits_and_its_sender_is_told_of_a_better_way(
    one: Receiver,
) -> None:
    told = await one.accepted(traces(span(CHAT)))
    assert told.rejected_spans == 0
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only" in told.error_message
    await one.accepted(logs(QUESTION))
    assert one.log.records == []
    assert (await one.accepted(logs(CHOICE))).error_message == ""
    assert _answers(one) == WANTED
    assert (one.counted("waiting"), one.counted("logged")) == (1, 1)


async def test_what_was_sent_twice_is_there_once(one: Receiver) -> None:
    for _ in range(2):
        await one.accepted(logs(QUESTION))
    await one.accepted(logs(CHOICE))
    await one.accepted(traces(span(CHAT)))
    assert _answers(one) == WANTED


async def test_halves_find_each_other_across_two_gateways_and_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "waiting"
    async with receiver(folder) as first:
        await first.accepted(logs(QUESTION, CHOICE))
    async with receiver(folder) as second:
        await second.accepted(traces(span(CHAT)))
        assert _answers(second) == WANTED
    assert list(folder.iterdir()) == []


async def test_without_room_in_the_log_the_halves_stay(one: Receiver) -> None:
    await one.accepted(logs(QUESTION, CHOICE))
    one.log.full = True
    assert (await one.send(traces(span(CHAT)))).status_code == 503
    one.log.full = False
    await one.accepted(traces(span(CHAT)))
    assert _answers(one) == WANTED


async def test_nothing_that_waits_can_be_read_without_the_key(tmp_path: Path, one: Receiver) -> None:
    await one.accepted(logs(QUESTION))
    await one.accepted(traces(span({**CHAT, "enduser.id": "Maria Gonzalez"}, span_id=b"another!")))
    files = [path for path in (tmp_path / "waiting").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert [path for path in files if b"Gonzalez" in path.read_bytes()] == []
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_log_records_without_texts_are_let_go(tmp_path: Path, one: Receiver) -> None:
    for path, body in recorded("openai-v2 2.4b0, without messages"):
        if path == "/v1/logs":
            assert (await one.http.post(path, content=body, headers=PROTOBUF)).content == b""
    await one.accepted(logs(("some.event", {"content": "hello"}), ("gen_ai.user.message", {})))
    assert not (tmp_path / "waiting").exists()


async def test_messages_of_a_span_that_has_its_own_go_after_a_while(tmp_path: Path, one: Receiver) -> None:
    await one.accepted(traces(span(WHOLE)))
    await one.accepted(logs(QUESTION, CHOICE))
    _age(tmp_path / "waiting", 61.0)
    one.room.sweep()
    assert list((tmp_path / "waiting").iterdir()) == []
    assert one.counted("lost") == 0


async def test_a_span_for_which_nothing_comes_is_counted_as_lost(tmp_path: Path, one: Receiver) -> None:
    await one.accepted(traces(span(CHAT), span(CHAT, span_id=b"another!")))
    (tmp_path / "waiting" / "tmp-of-a-killed-worker").write_bytes(b"half")
    one.room.sweep()
    assert one.counted("lost") == 0
    _age(tmp_path / "waiting", 61.0)
    one.room.sweep()
    assert one.counted("lost") == 2
    assert list((tmp_path / "waiting").iterdir()) == []


def test_no_more_wait_than_there_is_room_for(tmp_path: Path) -> None:
    room = CorrelationBuffer(tmp_path / "waiting", Cipher(b"w" * 32), 60.0, 2, lambda count: None)
    said = [SpanEvent("gen_ai.user.message", {"content": "?"})]
    for number in range(2):
        room.put_said(TRACE, f"{number:016x}", said)
    with pytest.raises(DependencyUnavailable, match="2 spans wait"):
        room.put_said(TRACE, SPAN, said)
    room.drop(Span(TRACE, f"{0:016x}", 0, 0, False, {}, {}))
    room.sweep()
    assert room.put_said(TRACE, SPAN, said) is None


def test_a_file_that_no_key_opens_is_as_if_it_had_not_come(tmp_path: Path) -> None:
    said = [SpanEvent("gen_ai.user.message", {"content": "?"})]
    waiting = Span(TRACE, SPAN, 1, 2, False, {"a": 1}, {"b": [2]})
    CorrelationBuffer(tmp_path, Cipher(b"x" * 32), 60.0, 9, lambda count: None).put_said(TRACE, SPAN, said)
    room = CorrelationBuffer(tmp_path, Cipher(b"w" * 32), 60.0, 9, lambda count: None)
    assert room.put_span(waiting) == waiting


def _age(folder: Path, seconds: float) -> None:
    for place in folder.iterdir():
        os.utime(place, (time.time() - seconds,) * 2)
