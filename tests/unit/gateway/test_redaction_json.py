"""Tool arguments stay valid JSON when they are redacted; base64 is left out; what has grown too large is cut."""

from __future__ import annotations

import base64
import json
import os
import time
import tracemalloc
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.conversation import Answer, Call, Message, Part, ToolCall
from schemas.predictions import LoggedAnswer, PredictionLogged
from services.gateway.recording.event_log import encode_event
from services.gateway.shipper.redaction import RefusedRecord
from services.gateway.shipper.redaction.binary import MARK, without_base64
from shared.kafka.clients import MAX_MESSAGE_BYTES
from shared.privacy.redaction import Redactor
from shared.privacy.redaction.json_texts import literals, with_replacements
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU
from tests.unit.gateway.redacting import OPEN, PLAIN, Setup, feedback, prediction, prediction_id, set_up

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
SPELLINGS: tuple[dict[str, Any], ...] = (
    {"separators": (",", ":")}, {"indent": 2}, {"ensure_ascii": False, "separators": (" , ", " : ")}, {},
)  # fmt: skip
PICTURE = base64.b64encode(os.urandom(3_000)).decode()


def with_call(arguments: str, **more: Any) -> PredictionLogged:
    answer = LoggedAnswer(
        prediction_id=prediction_id(PLAIN.name), tool_calls=(ToolCall(name="find", arguments=arguments, **more),)
    )
    return prediction(PLAIN, "hello", "").model_copy(update={"answers": (answer,)})


async def redacted(arguments: str, setup: Setup | None = None, **more: Any) -> str:
    setup = setup or await set_up()
    (event,) = await setup.redact(with_call(arguments, **more))
    text: str = event["answers"][0]["tool_calls"][0]["arguments"]
    return text


@given(value=JSON, spelling=st.sampled_from(SPELLINGS))
def test_arguments_without_a_finding_stay_byte_for_byte(value: Any, spelling: dict[str, Any]) -> None:
    text = json.dumps(value, **spelling)
    found = literals(text)
    assert found is not None
    assert with_replacements(text, found) == text


@given(value=JSON, spelling=st.sampled_from(SPELLINGS), said=st.text())
def test_arguments_stay_valid_json_whatever_replaces_what_they_say(
    value: Any, spelling: dict[str, Any], said: str
) -> None:
    found = literals(text := json.dumps(value, **spelling))
    assert found is not None
    for literal in found:
        literal.put(said)
    replaced = json.loads(with_replacements(text, found))
    assert shape(replaced) == shape(value)
    assert all(leaf in ("", said) for leaf in strings(replaced))


def shape(value: Any) -> Any:
    """Lists and types of a value; names may have become one."""
    if isinstance(value, list):
        return [shape(item) for item in value]
    return "object" if isinstance(value, dict) else type(value)


def strings(value: Any) -> list[str]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] if isinstance(value, str) else [text for item in items for text in strings(item)]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"to":"Maria","n":1}', '{"to":"Paula","n":1}'),
        ('{ "to" : [ "Maria" , {"cc": "x\\n\\"Maria\\""} ] }', '{ "to" : [ "Paula" , {"cc": "x\\n\\"Paula\\""} ] }'),
        ('{"Maria Lopez": 1, "to": "x"}', '{"Paula Lopez": 1, "to": "x"}'),
        ('{"a": 1, "a": "Maria"}', '{"a": 1, "a": "Paula"}'),
        ('"Maria"', '"Paula"'), ("Maria {not json", "Paula {not json"), ("", ""),
        ('{"to": "\\u004daria"}', '{"to": "Paula"}'), ('{"to": "\\ud800Maria"}', '{"to": "?Paula"}'),
    ],
)  # fmt: skip
async def test_arguments_are_redacted_leaf_by_leaf_as_they_are_spelled(arguments: str, expected: str) -> None:
    assert await redacted(arguments) == expected


async def test_the_name_of_an_argument_says_what_it_is() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    clean = json.loads(
        await redacted('{"phoneNumber": "4155550132", "mobile": 4155550132, "order": "4155550139"}', setup)
    )
    assert clean["order"] == "4155550139"
    assert clean["phoneNumber"] != "4155550132"
    assert isinstance(clean["mobile"], int) and clean["mobile"] != 4155550132


async def test_the_input_of_a_custom_tool_is_redacted_as_a_text() -> None:
    assert await redacted("SELECT * FROM t WHERE name = 'Maria'", type="custom") == (
        "SELECT * FROM t WHERE name = 'Paula'"
    )


@pytest.mark.parametrize("text", [PICTURE, f"data:image/png;base64,{PICTURE}", "data:image/png;base64,AA=="])
async def test_base64_is_left_out_and_what_had_it_is_marked_as_truncated(text: str) -> None:
    setup = await set_up()
    event = prediction(HAIKU, f"look: {text} nice?", f"<img src='{text}'>")
    (clean,) = await setup.redact(event)
    assert clean["call"]["messages"][1]["content"] == f"look: {MARK} nice?"
    assert clean["answers"][0]["text"] == f"<img src='{MARK}'>"
    assert (clean["call"]["truncated"], clean["answers"][0]["truncated"]) == (True, True)
    assert not any("AA" in asked for asked in setup.swaps.texts)
    assert not PredictionLogged.model_validate(clean).call.is_whole
    assert setup.status.truncated == 1


async def test_base64_in_tool_arguments_is_left_out_and_the_call_is_not_truncated_for_an_answers_picture() -> None:
    setup = await set_up()
    (clean,) = await setup.redact(with_call(json.dumps({"picture": PICTURE, "to": "Maria"})))
    assert json.loads(clean["answers"][0]["tool_calls"][0]["arguments"]) == {"picture": MARK, "to": "Paula"}
    assert (clean["call"]["truncated"], clean["answers"][0]["truncated"]) == (False, True)


@pytest.mark.parametrize("text", ["x" * 30_000, "1234567890" * 1_000, "a/long/path/" * 200, "word\n" * 500])
def test_a_long_text_that_is_no_base64_stays(text: str) -> None:
    assert without_base64(text) is text


def test_base64_in_lines_is_left_out() -> None:
    lines = "\n".join(PICTURE[at : at + 76] for at in range(0, len(PICTURE), 76))
    assert without_base64(f"-----BEGIN-----\n{lines}\n-----END-----") == f"-----BEGIN-----\n{MARK}\n-----END-----"


@pytest.mark.parametrize(
    "unit",
    [
        "x", "Ab1" * 333 + " ", "data:", "data:image;", ("Ab1+" * 15 + "\n") * 11 + " ", "a" * 201 + "\n",
        "A" * 60 + " ",
    ],
)  # fmt: skip
def test_base64_is_searched_for_in_linear_time(unit: str) -> None:
    text = (unit * (2_000_000 // len(unit)))[:2_000_000]
    started = time.process_time()
    without_base64(f";base64, {text}")
    assert time.process_time() - started < 2.0  # It takes under 0.1 s; backtracking would take minutes.


def growing(setup: Setup) -> Setup:
    """Each Maria becomes a name that is ten times as long."""
    redact = setup.swaps.redact_slices

    def redact_slices(*arguments: Any) -> Any:
        return [
            type(r)(r.text.replace("Paula", "Paula" * 10), r.count, r.kinds, r.end) for r in redact(*arguments)
        ]  # fmt: skip

    setup.swaps.redact_slices = redact_slices
    return setup


async def test_an_event_that_has_grown_too_large_is_cut_and_marked_and_valid() -> None:
    setup = growing(await set_up())
    event = prediction(HAIKU, "Maria " * 120_000, "Dear Maria " * 60_000)
    (clean,) = await setup.redact(event)
    assert len(orjson.dumps(clean)) < MAX_MESSAGE_BYTES
    assert (clean["call"]["truncated"], clean["answers"][0]["truncated"]) == (True, True)
    assert "Maria" not in clean["call"]["messages"][1]["content"] + clean["answers"][0]["text"]
    assert "characters left out" in clean["call"]["messages"][1]["content"]
    assert PredictionLogged.model_validate(clean).event_id == event.event_id
    assert setup.status.truncated == 1


async def test_an_event_of_any_shape_is_cut_to_fit() -> None:
    setup = await set_up()
    mixed = "".join(chr(code) for code in (34, 92, 10, 0x1F600, 97)) * 200_000  # Escapes, and bytes per character.
    part = Part(type="text", text=mixed[:400_000])
    call = Call(
        messages=(Message(role="user", content=(part,) * 4), Message(role="user", content="x" * 700_000)),
        tools=({"description": "y" * 1_500_000},),
    )
    answers = tuple(
        LoggedAnswer(prediction_id=prediction_id(OPEN.name), tool_calls=(ToolCall(name="f", arguments=mixed[:90_000]),))
        for _ in range(40)
    )
    for spec in (OPEN, HAIKU):
        event = prediction(spec, "", "").model_copy(update={"call": call, "answers": answers})
        (clean,) = await setup.redact(event)
        assert len(orjson.dumps(clean)) < MAX_MESSAGE_BYTES
        assert PredictionLogged.model_validate(clean).call.truncated


async def test_the_text_of_feedback_is_cut_to_fit() -> None:
    setup = growing(await set_up())
    (clean,) = await setup.redact(feedback(HAIKU, "Maria" * 200_000))
    assert len(orjson.dumps(clean)) < MAX_MESSAGE_BYTES
    assert clean["text"].startswith("PaulaPaula")


async def test_what_is_too_large_beside_its_texts_is_refused() -> None:
    setup = await set_up()
    record = encode_event(prediction(OPEN, "x", "y"))
    data = orjson.loads(record.value) | {"unknown": ["1" * 20] * 250_000}
    (refused,) = await setup.redactor.redact([Record(record.topic, record.key, orjson.dumps(data))])
    assert isinstance(refused, RefusedRecord)
    assert "too large" in str(refused.error)


async def test_metadata_that_grows_stays_as_short_as_the_contract_wants_it() -> None:
    setup = growing(await set_up())
    metadata = {"Maria " * 10: "Maria " * 85}
    (clean,) = await setup.redact(prediction(HAIKU, "x", "y").model_copy(update={"metadata": metadata}))
    assert PredictionLogged.model_validate(clean).redactions == 95
    assert "Maria" not in str(clean["metadata"])


async def test_a_text_of_metadata_is_whole_if_what_replaces_a_name_is_longer() -> None:
    setup = growing(await set_up())
    ticket = "Hello, my name is Maria and my parcel has not arrived for weeks."
    (clean,) = await setup.redact(prediction(HAIKU, "x", "y").model_copy(update={"metadata": {"ticket": ticket}}))
    assert clean["metadata"]["ticket"].endswith(" and my parcel has not arrived for weeks.")


async def test_a_conversation_with_tools_keeps_its_structure() -> None:
    messages = (
        Message(role="user", content=(Part(type="text", text="I am Maria"), Part(type="text", text="find me"))),
        Message(role="assistant", tool_calls=(ToolCall(name="find", arguments='{"name":"Maria"}', id="call_1"),)),
        Message(role="tool", content='{"Maria": 1}', tool_call_id="call_1"),
        Message(role="assistant", content="Found", reasoning="Maria is there", name="Maria"),
    )
    setup = await set_up()
    event = prediction(HAIKU, "", "").model_copy(update={"call": Call(messages=messages)})
    (clean,) = await setup.redact(event)
    call = PredictionLogged.model_validate(clean).call
    assert call.messages[0].content == (Part(type="text", text="I am Paula"), Part(type="text", text="find me"))
    assert call.messages[1].tool_calls == (ToolCall(name="find", arguments='{"name":"Paula"}', id="call_1"),)
    assert (call.messages[2].text, call.messages[2].tool_call_id) == ('{"Paula": 1}', "call_1")
    assert (call.messages[3].reasoning, call.messages[3].name) == ("Paula is there", "Paula")
    assert clean["redactions"] == 5
    assert call.is_whole and Answer.model_validate(clean["answers"][0]).is_whole


@pytest.mark.parametrize("start", [0, 1, 350, 699, 700, 701, 1_399])
@pytest.mark.parametrize(
    "run",
    ["ABCDEFGHIJKLMNOPQRST" * 50, "\n".join(["ABCDEFGHIJKLMNOPQRST" * 3 + "C"] * 12) + "\n"],
    ids=["one word", "twelve lines"],
)
def test_the_shortest_base64_is_found_wherever_it_stands(run: str, start: int) -> None:
    before = ("word " * 400)[-start:] if start else ""
    for end in ('"', " ", ' more"'):
        assert MARK in without_base64(f'"{before}{run}{end}{"word " * 100}')
    whole = f'"{before}{run[:690]} {run[690:]}"'.replace("\n", " ")
    assert without_base64(whole) is whole


@pytest.mark.parametrize("name", ["customer:123-45-6789", "ssn.123-45-6789", "tel:555-123-4567"])
async def test_a_number_in_groups_in_the_name_of_a_value_is_redacted(name: str) -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    digits = name[-11:]
    assert digits not in await redacted(json.dumps({name: {"open": True}}), setup)
    call = Call(messages=(Message(role="user", content="hello"),), parameters={"chat_template_kwargs": {name: 1}})
    event = with_call("{}").model_copy(update={"call": call, "metadata": {name: "1"}})
    (published,) = await setup.redact(event)
    assert digits not in json.dumps(published)


async def test_a_result_of_a_tool_that_is_json_is_redacted_value_by_value_and_stays_json() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    result = {"phoneNumber": "9175550163", "date_of_birth": "1980-01-02", "accounts": [{"account_number": 12345678}]}
    part = Part(type="text", text=json.dumps([result]))
    messages = tuple(Message(role="tool", content=content) for content in (json.dumps(result), (part,)))
    event = with_call("{}").model_copy(update={"call": Call(messages=messages)})
    (published,) = await setup.redact(event)
    text, parts = [message["content"] for message in published["call"]["messages"]]
    for kept in (json.loads(text), *json.loads(parts[0]["text"])):
        assert kept.keys() == result.keys()
        assert kept["phoneNumber"] != result["phoneNumber"]
        assert kept["date_of_birth"] != result["date_of_birth"]
        assert kept["accounts"][0]["account_number"] != 12345678


def test_long_names_of_values_are_not_kept_in_memory() -> None:
    tracemalloc.start()
    try:
        for number in range(100):
            literals(json.dumps({f"{number} {'x' * 100_000}": "hello"}))
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()
