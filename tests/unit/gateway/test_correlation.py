"""The correlation buffer: spans and their messages arrive separately in any order, and wait encrypted on disk."""

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
from tests.unit.gateway.otlp_senders import (
    CHAT,
    CHAT_WITH_MESSAGES,
    SPAN,
    TRACE,
    Receiver,
    logs,
    receiver,
    recorded,
    span,
    traces,
)

QUESTION = ("gen_ai.user.message", {"content": "where is Maria Gonzalez?"})
CHOICE = ("gen_ai.choice", {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "here"}})
PROTOBUF = {"content-type": "application/x-protobuf"}


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with receiver(tmp_path / "waiting") as receiving:
        yield receiving


def _answers(gateway: Receiver) -> list[tuple[list[str], str]]:
    return [([message.text for message in p.call.messages], p.answers[0].plain) for p in gateway.log.predictions]


EXPECTED = [(["where is Maria Gonzalez?"], "here")]


async def test_messages_that_arrive_before_their_span_wait_for_it(gateway: Receiver) -> None:
    await gateway.accepted(logs(QUESTION, CHOICE))
    assert gateway.log.records == []
    await gateway.accepted(traces(span(CHAT)))
    assert _answers(gateway) == EXPECTED
    assert gateway.log.predictions[0].usage.prompt_tokens == 5


async def test_a_span_that_arrives_before_its_messages_waits_and_its_sender_is_warned(
    gateway: Receiver,
) -> None:
    result = await gateway.accepted(traces(span(CHAT)))
    assert result.rejected_spans == 0
    assert "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=span_only" in result.error_message
    await gateway.accepted(logs(QUESTION))
    assert gateway.log.records == []
    assert (await gateway.accepted(logs(CHOICE))).error_message == ""
    assert _answers(gateway) == EXPECTED
    assert (gateway.counted("waiting"), gateway.counted("logged")) == (1, 1)


async def test_repeated_messages_are_stored_once(gateway: Receiver) -> None:
    for _ in range(2):
        await gateway.accepted(logs(QUESTION))
    await gateway.accepted(logs(CHOICE))
    await gateway.accepted(traces(span(CHAT)))
    assert _answers(gateway) == EXPECTED


async def test_span_and_messages_are_joined_across_gateways_and_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "waiting"
    async with receiver(folder) as first:
        await first.accepted(logs(QUESTION, CHOICE))
    async with receiver(folder) as second:
        await second.accepted(traces(span(CHAT)))
        assert _answers(second) == EXPECTED
    assert list(folder.iterdir()) == []


async def test_with_a_full_log_span_and_messages_stay_in_the_buffer(gateway: Receiver) -> None:
    await gateway.accepted(logs(QUESTION, CHOICE))
    gateway.log.full = True
    assert (await gateway.send(traces(span(CHAT)))).status_code == 503
    gateway.log.full = False
    await gateway.accepted(traces(span(CHAT)))
    assert _answers(gateway) == EXPECTED


async def test_the_buffer_is_encrypted(tmp_path: Path, gateway: Receiver) -> None:
    await gateway.accepted(logs(QUESTION))
    await gateway.accepted(traces(span({**CHAT, "enduser.id": "Maria Gonzalez"}, span_id=b"another!")))
    files = [path for path in (tmp_path / "waiting").rglob("*") if path.is_file()]
    assert len(files) == 2
    assert [path for path in files if b"Gonzalez" in path.read_bytes()] == []
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


async def test_log_records_without_texts_are_ignored(tmp_path: Path, gateway: Receiver) -> None:
    for path, body in recorded("openai-v2 2.4b0, without messages"):
        if path == "/v1/logs":
            assert (await gateway.http.post(path, content=body, headers=PROTOBUF)).content == b""
    await gateway.accepted(logs(("some.event", {"content": "hello"}), ("gen_ai.user.message", {})))
    assert not (tmp_path / "waiting").exists()


async def test_messages_that_their_span_does_not_need_expire(tmp_path: Path, gateway: Receiver) -> None:
    await gateway.accepted(traces(span(CHAT_WITH_MESSAGES)))
    await gateway.accepted(logs(QUESTION, CHOICE))
    _age(tmp_path / "waiting", 61.0)
    gateway.buffer.sweep()
    assert list((tmp_path / "waiting").iterdir()) == []
    assert gateway.counted("lost") == 0


async def test_a_span_whose_messages_never_arrive_is_counted_as_lost(tmp_path: Path, gateway: Receiver) -> None:
    await gateway.accepted(traces(span(CHAT), span(CHAT, span_id=b"another!")))
    (tmp_path / "waiting" / "tmp-of-a-killed-worker").write_bytes(b"half")
    gateway.buffer.sweep()
    assert gateway.counted("lost") == 0
    _age(tmp_path / "waiting", 61.0)
    gateway.buffer.sweep()
    assert gateway.counted("lost") == 2
    assert list((tmp_path / "waiting").iterdir()) == []


def test_the_buffer_is_bounded(tmp_path: Path) -> None:
    buffer = CorrelationBuffer(tmp_path / "waiting", Cipher(b"w" * 32), 60.0, 2, lambda count: None)
    events = [SpanEvent("gen_ai.user.message", {"content": "?"})]
    for number in range(2):
        buffer.add_events(TRACE, f"{number:016x}", events)
    with pytest.raises(DependencyUnavailable, match="2 spans wait"):
        buffer.add_events(TRACE, SPAN, events)
    buffer.remove(Span(TRACE, f"{0:016x}", 0, 0, False, {}, {}))
    buffer.sweep()
    assert buffer.add_events(TRACE, SPAN, events) is None


def test_a_file_that_cannot_be_decrypted_is_ignored(tmp_path: Path) -> None:
    events = [SpanEvent("gen_ai.user.message", {"content": "?"})]
    waiting = Span(TRACE, SPAN, 1, 2, False, {"a": 1}, {"b": [2]})
    CorrelationBuffer(tmp_path, Cipher(b"x" * 32), 60.0, 9, lambda count: None).add_events(TRACE, SPAN, events)
    buffer = CorrelationBuffer(tmp_path, Cipher(b"w" * 32), 60.0, 9, lambda count: None)
    assert buffer.add_span(waiting) == waiting


def _age(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (time.time() - seconds,) * 2)
