"""No string of an event escapes redaction but those that are allowed. The places come from the contract's schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import schemas
from schemas.base import Variant
from schemas.conversation import Api, FinishReason, Role
from services.gateway.domain import PredictionIds, unsigned_id
from services.gateway.shipper.redaction.allowed import OWNERS, PLACES
from services.gateway.shipper.redaction.event_texts import TextFinder
from shared.identity import keyed_hash
from shared.privacy.redaction import Redactor
from shared.storage.media_files import MediaKey
from tests.unit.gateway.redacting import BLANK, Blanks, set_up

CONTRACT = Path(schemas.__file__).parent
TOPICS = ("predictions.logged.v1", "feedback.given.v1", "requests.observed.v1")
SENTENCE = "Write to maria.gonzalez@example.com, call +1 415-555-0132, pay into GB82 WEST 1234 5698 7654 32."
SEEDS = (SENTENCE, "maria.gonzalez@example.com", "+1 415-555-0132", "GB82WEST12345698765432")
CARD = 4_111_111_111_111_111
Step = str | int
Path_ = tuple[Step, ...]


def string_paths(schema: dict[str, Any], definitions: dict[str, Any], path: Path_ = ()) -> Iterator[Path_]:
    """Yield the path of each string of this schema: property names, 0 for an item, and KEY for a name that is free."""
    if (reference := schema.get("$ref")) is not None:
        name = reference.rpartition("/")[2]
        yield from free_paths(path) if name == "JsonValue" else string_paths(definitions[name], definitions, path)
    for alternative in (*schema.get("anyOf", ()), *schema.get("allOf", ()), *schema.get("oneOf", ())):
        yield from string_paths(alternative, definitions, path)
    if schema.get("type") == "string":
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from string_paths(inner, definitions, (*path, name))
    for inner in (schema.get("items"), *schema.get("prefixItems", ())):
        if isinstance(inner, dict):
            yield from string_paths(inner, definitions, (*path, 0))
    if isinstance(inner := schema.get("additionalProperties"), dict):
        yield (*path, KEY)
        yield from string_paths(inner, definitions, (*path, "some_field"))


KEY = "\x00key"


def free_paths(path: Path_) -> Iterator[Path_]:
    yield path
    yield (*path, "some_field")
    yield (*path, "some_field", 0, "other", 0)
    yield (*path, 0, 0, "other")
    yield (*path, "some_field", KEY)


def planted(event: dict[str, Any], path: Path_, seed: Any) -> dict[str, Any]:
    """A copy of the event with the seed at this path."""
    root: dict[str, Any] = {"event": copy.deepcopy(event)}
    holder: Any = root
    step: Step = "event"
    for following in path:
        inner = holder[step]
        if isinstance(following, int):
            inner = inner if isinstance(inner, list) and inner else [None]
        else:
            inner = inner if isinstance(inner, dict) else {}
            if following != KEY:
                inner.setdefault(following, None)
        holder[step] = inner
        holder, step = inner, following
    holder[seed if step == KEY else step] = "x" if step == KEY else seed
    planted_event: dict[str, Any] = root["event"]
    return planted_event


def golden(topic: str) -> Iterator[dict[str, Any]]:
    for path in sorted((CONTRACT / "examples" / topic).glob("*.json")):
        yield orjson.loads(path.read_bytes())


def places() -> list[tuple[str, Path_]]:
    found = []
    for topic in TOPICS:
        schema = orjson.loads((CONTRACT / "json" / f"{topic}.json").read_bytes())
        paths = dict.fromkeys(string_paths(schema, schema.get("$defs", {})))
        found += [(topic, path) for path in paths]
    return found


PATHS = places()


def test_the_schema_has_the_places_that_the_next_tests_are_about() -> None:
    found = {path for topic, path in PATHS if topic == TOPICS[0]}
    assert len(found) > 60
    assert found >= {
        ("call", "messages", 0, "content"), ("call", "messages", 0, "content", 0, "text"),
        ("call", "messages", 0, "tool_calls", 0, "arguments"),
        ("call", "tools", 0, "some_field", "some_field", 0, "other", 0),
        ("answers", 0, "reasoning"), ("answers", 0, "tool_calls", 0, "id"), ("metadata", KEY),
        ("metadata", "some_field"), ("call", "messages", 0, "content", 0, "media", "media_type"),
    }  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
async def test_personal_data_survives_at_no_place_of_the_schema(seed: str) -> None:
    setup = await set_up(lambda _: Blanks())
    events = {topic: list(golden(topic))[-1] for topic in TOPICS}
    survivors = []
    for topic, path in PATHS:
        published = await setup.redact_json(planted(events[topic], path, seed), topic)
        if seed in json.dumps(published):
            survivors.append((topic, path))
    assert survivors == []


async def test_the_real_redactor_finds_it_at_each_place_too() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    task = {"task": "plain"}  # Its names are not redacted, so that no language model is loaded.
    events = {topic: list(golden(topic))[-1] | task for topic in TOPICS}
    survivors = []
    for topic, path in PATHS:
        if path == ("task",):
            continue
        published = json.dumps(await setup.redact_json(planted(events[topic], path, SENTENCE), topic))
        if any(part in published for part in ("gonzalez@example.com", "415-555-0132", "1234 5698 7654 32")):
            survivors.append((topic, path))
    assert survivors == []


@pytest.mark.parametrize("field", ["note", "call", "answers"])
async def test_a_field_that_is_added_later_is_redacted(field: str) -> None:
    setup = await set_up(lambda _: Blanks())
    path: Path_ = {"note": ("note",), "call": ("call", "note"), "answers": ("answers", 0, "note")}[field]
    for value in (SENTENCE, [SENTENCE], {"inner": [{"more": SENTENCE}]}, {SENTENCE: 1}):
        published = await setup.redact_json(planted(next(golden(TOPICS[0])), path, value))
        assert "maria" not in json.dumps(published)


async def test_a_card_number_in_free_json_is_replaced_by_a_number_of_its_type() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    for value in (CARD, float(CARD)):
        event = planted(next(golden(TOPICS[0])) | {"task": "plain"}, ("call", "parameters", "card", "number"), value)
        published = await setup.redact_json(event)
        replaced = published["call"]["parameters"]["card"]["number"]
        assert (type(replaced), len(str(int(replaced)))) == (type(value), 16)
        assert int(replaced) != CARD
        assert published["redactions"] == 1


async def test_a_phone_number_of_free_json_is_known_by_its_name() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    parameters = {"customer": {"phoneNumber": 4155550132, "phone_number": "4155550132"}, "count": 4155550139}
    event = planted(next(golden(TOPICS[0])) | {"task": "plain"}, ("call", "parameters"), parameters)
    published = (await setup.redact_json(event))["call"]["parameters"]
    assert 4155550132 not in published["customer"].values()
    assert "4155550132" not in published["customer"].values()
    assert published["count"] == 4155550139


async def test_two_names_that_become_one_are_still_two_entries() -> None:
    setup = await set_up(lambda _: Blanks())
    event = planted(next(golden(TOPICS[0])), ("metadata",), {"a b": "1", "channel": "mail", "c d": "3"})
    metadata = (await setup.redact_json(event))["metadata"]
    assert list(metadata) == [BLANK, "channel", f"{BLANK}_2"]


@pytest.mark.parametrize("topic", TOPICS)
async def test_the_golden_messages_are_published_byte_for_byte(topic: str) -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    for event in golden(topic):
        event["task"] = "plain"
        value = orjson.dumps(event)
        assert orjson.loads(value) == await setup.redact_json(event, topic)


HEX = "0123456789abcdef"
ADAPTERS = st.builds(
    "support-desk-{}-{}".format, st.text(HEX, min_size=12, max_size=12), st.text(HEX, min_size=12, max_size=12)
)
MODELS = st.one_of(
    ADAPTERS,
    st.sampled_from((
        "Qwen/Qwen2.5-7B-Instruct", "gpt-4o-2024-08-06", "claude-3-5-sonnet-20241022", "ft:gpt-4o:my-org::abc123",
        "anthropic.claude-3-5-sonnet-20241022-v2:0", "accounts/fireworks/models/llama-v3p1-8b", "external", "gpt-x",
    )),
)  # fmt: skip
CALL_IDS = st.one_of(
    st.builds("chatcmpl-tool-{}".format, st.text(HEX, min_size=32, max_size=32)),
    st.builds("call_{}".format, st.text("abcXYZ0123456789", min_size=1, max_size=24)),
    st.builds("toolu_{}".format, st.text("abcXYZ0123456789", min_size=24, max_size=24)),
    st.sampled_from(("a1B2c3D4e", "call_1", "functions.get_weather:0".replace(".", "_").replace(":", "_"))),
)  # fmt: skip
HASHES = st.text(HEX, min_size=24, max_size=24)


@given(
    data=st.data(), role=st.sampled_from(list(Role)), api=st.sampled_from(list(Api)),
    reason=st.sampled_from(list(FinishReason)), variant=st.sampled_from(list(Variant)),
)  # fmt: skip
def test_ids_enums_and_names_of_models_and_tools_are_never_redacted(
    data: st.DataObject, role: str, api: str, reason: str, variant: str
) -> None:
    ids, key = PredictionIds(b"k" * 32), b"s" * 32
    prediction_id = data.draw(st.sampled_from((ids.new("support-desk"), ids.derive("support-desk", str(uuid4())))))
    call_id, hashed = data.draw(CALL_IDS), keyed_hash(key, str(uuid4()))
    tool_call = {"name": data.draw(st.sampled_from(("find_order", "search.web", "mcp__crm__get-customer"))),
                 "arguments": "{}", "id": call_id, "type": "function"}  # fmt: skip
    message = {"role": role, "content": None, "tool_calls": [tool_call], "tool_call_id": call_id}
    tools = [{"type": "function", "function": {"name": "find_order"}}, {"type": "web_search", "name": "x"}]
    media: dict[str, Any] = {"kind": "image", "hash": data.draw(HASHES), "media_type": "image/svg+xml", "size": 10**12}
    media["key"] = str(MediaKey("support-desk", date(2026, 11, 23), data.draw(HASHES), data.draw(HASHES)))
    adapter = data.draw(ADAPTERS)
    event = {
        "event_id": str(uuid4()), "occurred_at": "2026-11-23T03:00:00.123456Z", "task": "support-desk",
        "task_revision": "16110516f106", "cycle_id": "support-desk-20261123-030000",
        "request_id": data.draw(st.sampled_from((prediction_id, unsigned_id(prediction_id), f"{uuid4().hex}-12"))),
        "call": {"api": api, "tools": tools, "tool_choice": tools[0],
                 "messages": [message, {"role": "user", "content": [{"type": "image_url", "media": media}]}],
                 "parameters": {"seed": 2**53, "temperature": 0.123456789, "max_tokens": 99_999}},
        "answers": [{"text": "", "tool_calls": [tool_call], "prediction_id": prediction_id, "finish_reason": reason,
                     "confidence": {"logprob": -123456.7, "calibration": f"{adapter}-0a1b2c", "threshold": 1234567.8},
                     "tokens": 1234567}],
        "model": data.draw(MODELS), "adapter": adapter, "variant": variant, "user_hash": hashed,
        "session_hash": hashed, "subject": hashed, "app": "shop", "gateway_version": "0.1.0", "latency_ms": 1234567.8,
        "redactions": 0,
        "usage": {"prompt_tokens": 1234567},
    }  # fmt: skip
    finder = TextFinder(frozenset())
    finder.find(event, TOPICS[0])
    assert [text.text for text in finder.texts] == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("answers", 0, "tool_calls", 0, "id"), "maria@example.com"), (("app",), "maria.gonzalez@example.com"),
        (("model",), "4155550132"), (("user_hash",), "maria"), (("adapter",), "GB82WEST12345698765432"),
        (("answers", 0, "prediction_id"), "support-desk.maria"),
        (("call", "messages", 0, "tool_call_id"), "4111111111111111"), (("gateway_version",), "192.168.10.17"),
        (("call", "messages", 0, "name"), "Maria"), (("call", "parameters", "seed"), ["maria@example.com"]),
    ],
)  # fmt: skip
async def test_what_does_not_match_the_pattern_of_its_place_is_redacted_as_a_text(path: Path_, value: Any) -> None:
    setup = await set_up(lambda _: Blanks())
    published: Any = await setup.redact_json(planted(next(golden(TOPICS[0])), path, value))
    for step in path:
        published = published[step]
    assert published == ([BLANK] if isinstance(value, list) else BLANK)


def test_each_allowed_place_is_in_the_schema() -> None:
    """What is no longer in the contract is not allowed any more."""

    def leaves(places: Any, path: Path_ = ()) -> Iterator[Path_]:
        for name, place in places.items():
            if isinstance(place, dict):
                yield from leaves(place, (*path, name))
            elif callable(place):
                yield (*path, name)

    for topic in TOPICS:
        known = {tuple(step for step in path if isinstance(step, str)) for name, path in PATHS if name == topic}
        free = {path[: path.index("some_field")] for path in known if "some_field" in path}
        owned = {(name, *path) for name, places in OWNERS.get(topic, {}).items() for path in leaves(places)}
        for path in (*leaves(PLACES[topic]), *owned):
            assert path in known or any(path[: len(prefix)] == prefix for prefix in free), (topic, path)
