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
from shared.kafka.delivery import decode_event

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
MESSAGES = [
    '[{"role":"user","content":"where?"}]', "[]", '[{"role":"robot","content":"x"}]', '[{"role":"user"}]', "{}",
    '[{"content":"\\u00fc","role":"system"},{"role":"user","content":"b","name":"n"}]', '[["user","x"]]',
    "[" + ",".join(['{"role":"user","content":""}'] * 200) + "]", '[{"role":"user","content":["a"]}]',
    '[{"role":"user","content":"a","content":"b"}]', '[{"role":"user","content":"a"},]', '[{"role":"a b"}]',
    '[{"role":"' + "r" * 32 + '"}]', '[{"role":"' + "r" * 33 + '"}]', '[{"role":"user\\n"}]', '[{"role":""}]',
    '[{"role":"user","content":[]}]', '[{"role":"user","content":[{"type":"text","text":"a"}]}]',
    '[{"role":"user","content":[{"type":"image_url","media":{"kind":"image","hash":"h","size":9}}]}]',
    '[{"role":"user","content":[{"type":"image_url","media":{"kind":"film","hash":"h"}}]}]',
    '[{"role":"assistant","content":null,"tool_calls":[{"name":"f","arguments":"{","id":"1"}],"refusal":"no"}]',
]  # fmt: skip
JSON = [
    *(number for number in NUMBERS if "e400" not in number and "N" not in number and "I" not in number), "null", '"x"',
    "{}", "[]", '{"a":[1,{"b":null}],"":"é"}', '{"a":1,"a":2}', "1180591620717411303424", '{"a":', "[1,]", '"\\ud800"',
]  # fmt: skip
TOOL_CALLS = ['{"name":"f"}', '{"name":""}', "{}", '{"name":"f","type":"custom"}', '{"name":"f","type":"x"}', "null"]
CONFIDENCES = [
    '{"score":0.9,"logprob":-0.1,"tokens":3}', "{}", '{"score":null}', '{"score":1.1}', '{"tokens":-1}', "null",
]  # fmt: skip
ANSWER = '{"prediction_id":"a","text":"delivery"}'
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
    "call": [
        *(f'{{"messages":{messages}}}' for messages in MESSAGES),
        *(f'{{"messages":{MESSAGES[0]},"parameters":{value}}}' for value in JSON),
        *(f'{{"messages":{MESSAGES[0]},"tool_choice":{value},"response_format":{value}}}' for value in JSON),
        *(f'{{"messages":{MESSAGES[0]},"tools":[{value}]}}' for value in JSON),
        f'{{"api":"responses","stream":true,"truncated":true,"messages":{MESSAGES[0]}}}', "{}", "[]",
        f'{{"api":"other","messages":{MESSAGES[0]}}}', f'{{"messages":{MESSAGES[0]},"new_field":1}}',
    ],
    "answers": [
        "[]", "{}", "[{}]", '[{"text":"no id"}]', f"[{ANSWER}]", f"[{ANSWER},{ANSWER}]",
        "[" + ",".join([ANSWER] * 128) + "]", "[" + ",".join([ANSWER] * 129) + "]",
        *(f'[{{"prediction_id":"a","finish_reason":{value}}}]' for value in ('"stop"', '"no"', "null", "1")),
        *(f'[{{"prediction_id":"a","tool_calls":[{value}]}}]' for value in TOOL_CALLS),
        *(f'[{{"prediction_id":"a","confidence":{value}}}]' for value in CONFIDENCES),
    ],
    "usage": ["{}", '{"prompt_tokens":4,"cached_tokens":2}', '{"prompt_tokens":-1}', "null", "[]"],
    "metadata": [
        "{}", '{"a":"b"}', '{"a":1}', '{"a":null}', "[]", json.dumps({"k" * 64: "v" * 512}),
        json.dumps({"k" * 65: ""}), json.dumps({"": "v" * 513}), json.dumps({str(n): "" for n in range(16)}),
        json.dumps({str(n): "" for n in range(17)}), '{"a":"b","a":"c"}',
    ],
    "variant": ['"base"', '"primary"', '"BASE"', '"\\u0062ase"', '""', "1"],
    "confidence": ["0.5", "2", "{}"],
    "kind": ['"thumbs"', '"label"', '"other"'],
    "positive": ["true", "false", '"true"', "1", '"no"'],
    "status": NUMBERS, "latency_ms": NUMBERS, "redactions": NUMBERS,
}  # fmt: skip
VALID = {
    "event_id": UUID, "occurred_at": TIME, "task": '"support-desk"', "call": TOKENS["call"][0], "kind": '"label"',
    "answers": f"[{ANSWER}]", "usage": "{}", "metadata": "{}", "variant": '"base"', "confidence": "null",
    "positive": "true", "status": "200", "latency_ms": "12.5", "redactions": "0",
}  # fmt: skip


@st.composite
def texts(draw: st.DrawFn, kind: type[Event]) -> str:
    """JSON that is nearly an event: fields in any order, some of them invalid, missing, unknown or repeated."""
    names = draw(st.permutations(list(kind.model_fields)))
    changed = draw(st.sets(st.sampled_from(names), max_size=3))
    pairs = [(name, VALID.get(name, '"a"')) for name in names if name not in changed]
    for name in changed:
        token = draw(st.sampled_from([*TOKENS.get(name, TEXTS), "null", "missing"]))
        if token != "missing":
            pairs.append((name, token))
    if draw(st.booleans()):
        pairs.insert(draw(st.integers(0, len(pairs))), draw(st.sampled_from([("new_field", "1"), ("task", '"b"')])))
    space = draw(st.sampled_from(["", " ", "\n"]))
    end = draw(st.sampled_from(["}"] * 10 + ["", "}}", ",}", "} x"]))
    return "{" + f",{space}".join(f'"{name}":{space}{token}' for name, token in pairs) + end


def all_fields(value: Any) -> Any:
    """Return a struct as a dictionary, fields with their default too."""
    if isinstance(value, msgspec.Struct):
        return {name: all_fields(getattr(value, name)) for name in value.__struct_fields__}
    return [all_fields(inner) for inner in value] if isinstance(value, tuple) else value


def expect_the_same(kind: type[Event], value: bytes) -> None:
    try:
        event = kind.model_validate_json(value)
    except ValidationError:
        with pytest.raises(InvalidMessage):
            DECODERS[kind](value)
        return
    plain = DECODERS[kind](value)
    made = {"event_id", "occurred_at"} - event.model_fields_set  # By chance, and by the clock.
    ours: dict[str, Any] = json.loads(msgspec.json.encode(all_fields(plain)))
    theirs: dict[str, Any] = json.loads(event.model_dump_json())
    for fields in (ours, theirs):
        for name in made | {"occurred_at"}:
            assert fields.pop(name)
    assert ours == theirs
    assert "occurred_at" in made or plain.occurred_at.astimezone(UTC) == event.occurred_at.astimezone(UTC)
    assert isinstance(plain.occurred_at, datetime)


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(data=st.data(), kind=st.sampled_from(list(DECODERS)))
def test_it_accepts_and_reads_what_the_class_does(data: st.DataObject, kind: type[Event]) -> None:
    expect_the_same(kind, data.draw(texts(kind)).encode("utf-8", "surrogatepass"))


@settings(max_examples=60)
@given(value=st.binary(max_size=60))
@example(b"")
@example(b"null")
@example(b"[" * 100_000)
@example(b'{"new_field":' + b"[" * 100_000)
def test_anything_but_json_is_refused(value: bytes) -> None:
    for kind in DECODERS:
        expect_the_same(kind, value)


def test_every_unusual_token_in_an_otherwise_valid_event() -> None:
    for kind in DECODERS:
        for field, token in [(name, token) for name in sorted(TOKENS) for token in TOKENS[name]]:
            if field not in kind.model_fields:
                continue
            pairs = {name: VALID.get(name, '"a"') for name in kind.model_fields} | {field: token}
            text = ",".join(f'"{name}":{value}' for name, value in pairs.items())
            expect_the_same(kind, f"{{{text}}}".encode())


def test_text_that_is_not_utf8_is_refused_in_unknown_fields_too() -> None:
    valid = FeedbackGiven(task="t", task_revision="r", prediction_id="p", kind="label").model_dump_json().encode()
    expect_the_same(FeedbackGiven, valid)
    for field in (b'"text":"\xff"', b'"new_field":"\xff"', b'"new_field":"\\ud800"', b'"new_field":"fine"'):
        expect_the_same(FeedbackGiven, valid[:-1] + b"," + field + b"}")


def written(**tokens: str | None) -> bytes:
    """Return the JSON of a prediction with these tokens; None: without the field."""
    pairs = {name: VALID.get(name, '"a"') for name in PredictionLogged.model_fields} | tokens
    fields = ",".join(f'"{name}":{token}' for name, token in pairs.items() if token is not None)
    return f"{{{fields}}}".encode()


def test_fields_that_a_producer_leaves_out_do_not_need_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class takes three times as long."""
    monkeypatch.setattr("shared.kafka.decoding.decode_event", None)
    value = written(usage=None, metadata=None)
    plain = DECODERS[PredictionLogged](value)
    assert (plain.metadata, plain.call.parameters, plain.usage.cached_tokens) == ({}, {}, 0)
    plain.metadata["a"] = "b"
    assert DECODERS[PredictionLogged](value).metadata == {}, "not shared"


def test_the_json_of_what_was_decoded_is_compact() -> None:
    call = '{"messages": [{"role": "user", "content": "é", "name": null, "tool_calls": []}], "parameters": {"n": 1.0}}'
    for value in (written(call=call), written(call=call, new_field="1")):  # Decoded by msgspec, and by the class.
        encoded = msgspec.json.encode(DECODERS[PredictionLogged](value).call)
        assert encoded.decode() == '{"messages":[{"role":"user","content":"é"}],"parameters":{"n":1.0}}'


def test_a_field_that_is_missing_is_named_and_one_that_is_unknown_ignored() -> None:
    assert decode_event(PredictionLogged, written(new_field="1"))
    for value in (written(model=None), written(model="1", new_field="1"), b'{"task":"a"}'):
        with pytest.raises(InvalidMessage, match="not a valid PredictionLogged: "):
            decode_event(PredictionLogged, value)


def test_the_names_in_an_error_are_bounded() -> None:
    with pytest.raises(InvalidMessage) as refused:
        decode_event(PredictionLogged, json.dumps({str(n) * 10_000: 1 for n in range(100)}).encode())
    assert len(refused.value.reason) < 1_000
