"""The fast decoder accepts what the event's class accepts, and reads the same values."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas.base import MAX_TEXT, Event
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from shared.errors import InvalidMessage
from shared.kafka.decoding import Decoder

DECODERS = {kind: Decoder(kind) for kind in (PredictionLogged, FeedbackGiven, RequestObserved)}
UUID = '"816c08a2-ed3f-48d0-8b5f-000000000000"'
TIME = '"2026-11-25T09:19:19.465238+00:00"'
TEXTS = [
    '"a"', '""', json.dumps("x" * 200), json.dumps("x" * 201), json.dumps("é" * 200),
    '"\\u00e9\\n\\t\\""', '"\\ud83d\\ude00"',
    '"\\ud800"', '"a\tb"', '"\\u0000"', json.dumps("y" * MAX_TEXT), json.dumps("ü" * (MAX_TEXT + 1)), "5", "true",
]  # fmt: skip
NUMBERS = [
    "0", "1", "-1", "0.5", "1.0", "1e2", "-0", "-0.0", "0.30000000000000004", "1e400", "-1e400", "99", "100", "599",
    "600", "9223372036854775808", '"5"', '"0.5"', "true", "NaN", "Infinity", "-Infinity", "1.", "01", "1.5",
]  # fmt: skip
TOKENS = {
    "event_id": [
        UUID, UUID.upper(), UUID.replace("-", ""), '"{816c08a2-ed3f-48d0-8b5f-000000000000}"',
        '"urn:uuid:816c08a2-ed3f-48d0-8b5f-000000000000"', UUID[:-1] + '\\n"', '"816c08a2"', "5",
    ],
    "occurred_at": [
        TIME, '"2026-11-25T09:19:19Z"', '"2026-11-25T09:19:19.4652389Z"', '"2026-11-25T23:59:59.999999999+00:00"',
        '"2026-11-25T09:19:19.4Z"', '"2026-11-25T09:19:19.46523+01:00"', '"2026-11-25 09:19:19z"',
        '"2026-11-25T09:19:19"',
        '"2026-11-25T09:19Z"', '"2026-11-25T09:19:19.465238+0530"', '"2026-11-25T24:00:00Z"', '"2026-11-25T23:59:60Z"',
        '"2026-02-29T00:00:00Z"', '"2024-02-29T00:00:00-23:59"', '"0001-01-01T00:00:00Z"', '"1764072000"', "1764072000",
        '"2026-11-25T09:19:1\\u0039.1234567Z"', '"2026-11-25T09:19:1\\\\u0039Z"', '"2026-11-25T09:19:19,5Z"',
        '"2026-11-25"',
    ],
    "task": ['"support-desk"', '"a"', '"A"', '"a\\n"', '"-a"', json.dumps("a" * 63), json.dumps("a" * 64), '"ä"'],
    "messages": [
        '[{"role":"user","content":"where?"}]', "[]", '[{"role":"robot","content":"x"}]', '[{"role":"user"}]', "{}",
        '[{"content":"\\u00fc","role":"system"},{"role":"user","content":"b","name":"n"}]', '[["user","x"]]',
        "[" + ",".join(['{"role":"user","content":""}'] * 64) + "]",
        "[" + ",".join(['{"role":"user","content":""}'] * 65) + "]",
        '[{"role":"user","content":"a","content":"b"}]', '[{"role":"user","content":"a"},]',
    ],
    "variant": ['"base"', '"primary"', '"BASE"', '"\\u0062ase"', '""', "1"],
    "confidence": [
        '{"score":0.9,"logprob":-0.1,"tokens":3}', "{}", '{"score":null}', '{"score":1.1}', '{"tokens":-1}', "0.5", "2",
    ],
    "kind": ['"thumbs"', '"label"', '"other"'],
    "positive": ["true", "false", '"true"', "1", '"no"'],
    "status": NUMBERS, "latency_ms": NUMBERS, "prompt_tokens": NUMBERS, "answer_tokens": NUMBERS, "redactions": NUMBERS,
}  # fmt: skip
VALID = {
    "event_id": UUID, "occurred_at": TIME, "task": '"support-desk"', "messages": TOKENS["messages"][0],
    "kind": '"label"',
    "variant": '"base"', "confidence": "null", "positive": "true", "status": "200", "latency_ms": "12.5",
    "prompt_tokens": "0", "answer_tokens": "0", "redactions": "0",
}  # fmt: skip


@st.composite
def texts(draw: st.DrawFn, kind: type[Event]) -> str:
    """JSON that is nearly an event: fields in any order, some of them invalid, missing, unknown or repeated."""
    names = draw(st.permutations(list(kind.model_fields)))
    changed = draw(st.sets(st.sampled_from(names), max_size=3))
    pairs = [(name, VALID.get(name, '"a"')) for name in names if name not in changed]
    if kind is PredictionLogged:
        pairs = [(name, "{}" if name == "confidence" else token) for name, token in pairs]
    for name in changed:
        token = draw(st.sampled_from([*TOKENS.get(name, TEXTS), "null", "missing"]))
        if token != "missing":
            pairs.append((name, token))
    if draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), draw(st.sampled_from([("new_field", "1"), ("task", '"b"')])))
    space = draw(st.sampled_from(["", " ", "\n"]))
    end = draw(st.sampled_from(["}"] * 10 + ["", "}}", ",}", "} x"]))
    return "{" + f",{space}".join(f'"{name}":{space}{token}' for name, token in pairs) + end


def expect_the_same(kind: type[Event], value: bytes) -> None:
    try:
        event = kind.model_validate_json(value)
    except ValidationError:
        with pytest.raises(InvalidMessage):
            DECODERS[kind](value)
        return
    plain = DECODERS[kind](value)
    made = {
        name for name, info in kind.model_fields.items() if info.default_factory and name not in event.model_fields_set
    }
    ours: dict[str, Any] = json.loads(msgspec.json.encode(plain))
    theirs: dict[str, Any] = json.loads(event.model_dump_json())
    for fields in (ours, theirs):
        for name in made | {"occurred_at"}:
            assert fields.pop(name)
    assert ours == theirs
    assert "occurred_at" in made or plain.occurred_at.astimezone(UTC) == event.occurred_at.astimezone(UTC)
    assert isinstance(plain.occurred_at, datetime)


@settings(max_examples=600, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(list(DECODERS)))
def test_it_accepts_and_reads_what_the_class_does(data: st.DataObject, kind: type[Event]) -> None:
    expect_the_same(kind, data.draw(texts(kind)).encode("utf-8", "surrogatepass"))


@settings(max_examples=200, deadline=None)
@given(value=st.binary(max_size=60))
@example(b"")
@example(b"null")
@example(b"[" * 100_000)
@example(b'{"new_field":' + b"[" * 100_000)
def test_anything_but_json_is_refused(value: bytes) -> None:
    for kind in DECODERS:
        expect_the_same(kind, value)


@pytest.mark.parametrize("token", [token for name in sorted(TOKENS) for token in TOKENS[name]])
def test_every_unusual_token_in_an_otherwise_valid_event(token: str) -> None:
    for kind in DECODERS:
        for field in kind.model_fields.keys() & {name for name, tokens in TOKENS.items() if token in tokens}:
            pairs = {name: VALID.get(name, '"a"') for name in kind.model_fields} | {field: token}
            if kind is PredictionLogged and field != "confidence":
                pairs["confidence"] = "{}"
            text = ",".join(f'"{name}":{value}' for name, value in pairs.items())
            expect_the_same(kind, f"{{{text}}}".encode())


def test_text_that_is_not_utf8_is_refused_in_unknown_fields_too() -> None:
    valid = FeedbackGiven(task="t", task_revision="r", prediction_id="p", kind="label").model_dump_json().encode()
    expect_the_same(FeedbackGiven, valid)
    for field in (b'"text":"\xff"', b'"new_field":"\xff"', b'"new_field":"\\ud800"', b'"new_field":"fine"'):
        expect_the_same(FeedbackGiven, valid[:-1] + b"," + field + b"}")
