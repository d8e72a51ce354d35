"""Which texts of an event are redacted, and that nothing else changes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Sequence
from typing import Any

import orjson
import pytest

from schemas.base import Variant
from schemas.conversation import MAX_SURROGATE, MAX_SURROGATES, Api, Call, Message, Part, Role
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.recording.event_log import encode_event
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from shared.conversation.requests import TOKEN_IDS, replay_request
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import TopicPartition
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import MAX_SLICE, RedactedSlice, Redactor, Rules, TextSlice, listed_surrogates
from shared.spool import Record
from tests.unit.gateway.conftest import HAIKU, SUPPORT
from tests.unit.gateway.redacting import OPEN, PLAIN, Blanks, Setup, Swaps, feedback, prediction, prediction_id, set_up
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
async def setup() -> Setup:
    return await set_up()


async def test_texts_are_redacted_and_counted_and_nothing_else_of_the_event_changes(setup: Setup) -> None:
    event = prediction(HAIKU, "I am Maria, Maria Gonzalez", "Dear Maria")
    (clean,) = await setup.redact(event)
    assert [message["content"] for message in clean["call"]["messages"]] == [
        "Write a haiku.",
        "I am Paula, Paula Gonzalez",
    ]
    assert (clean["answers"][0]["text"], clean["redactions"]) == ("Dear Paula", 3)
    before = orjson.loads(event.model_dump_json())
    changed = {"call", "answers", "redactions"}
    assert {k: v for k, v in clean.items() if k not in changed} == {k: v for k, v in before.items() if k not in changed}
    assert PredictionLogged.model_validate(clean).event_id == event.event_id
    assert setup.status.redactions == {"name": 3}


async def test_an_event_without_personal_data_stays_byte_for_byte(setup: Setup) -> None:
    record = encode_event(prediction(HAIKU, "no names here", "an old pond"))
    assert await setup.redactor.redact([record]) == [record]


async def test_the_tasks_own_prompt_and_labels_are_not_redacted(setup: Setup) -> None:
    await setup.redact(prediction(SUPPORT, "where is it", "refund"), feedback(SUPPORT, "card_lost"))
    assert setup.swaps.texts == ["where is it"]


async def test_a_number_that_an_answer_says_again_has_the_surrogate_that_it_has_in_the_question() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    asked, answered = "my account number is 55031877", "I have closed 55031877. Order 12345678 is on its way."
    (clean,) = await setup.redact(prediction(PLAIN, asked, answered))
    number = clean["call"]["messages"][1]["content"].removeprefix("my account number is ")
    assert number != "55031877"
    assert clean["answers"][0]["text"] == f"I have closed {number}. Order 12345678 is on its way."
    assert (clean["redactions"], clean["call"]["surrogates"]) == (2, [number])
    assert setup.status.redactions == {"account": 1, "repeat": 1}


async def test_a_number_of_a_long_question_is_replaced_in_its_answer() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    asked = "It is late. " * (MAX_SLICE // 6) + "\nmy account number is 55031877"
    (clean,) = await setup.redact(prediction(PLAIN, asked, '{"closed": 55031877}'))
    assert "55031877" not in str(clean)


async def test_an_applications_own_prompt_is_redacted(setup: Setup) -> None:
    (clean,) = await setup.redact(prediction(SUPPORT, "hello", "refund", system="The customer is Maria."))
    assert clean["call"]["messages"][0]["content"] == "The customer is Paula."


async def test_a_prompt_of_token_ids_is_left_out_where_a_task_redacts(setup: Setup) -> None:
    """Whoever has the model's tokenizer can read them; the redactor cannot."""
    prompt = Message(role=Role.USER, content=(Part(type=TOKEN_IDS, text="[84,22910]"),))
    for spec in (HAIKU, PLAIN):
        event = prediction(spec, "", "").model_copy(update={"call": Call(api=Api.COMPLETIONS, messages=(prompt,))})
        (clean,) = await setup.redact(event)
        assert b"22910" not in orjson.dumps(clean)
        call = PredictionLogged.model_validate(clean).call
        assert call.messages[0].content == (Part(type=TOKEN_IDS),)
        assert (call.truncated, call.is_whole) == (True, False)
        with pytest.raises(ValueError, match="a part that the event does not carry: token_ids"):
            replay_request(call)
    event = prediction(OPEN, "", "").model_copy(update={"call": Call(api=Api.COMPLETIONS, messages=(prompt,))})
    (kept,) = await setup.redact(event)
    assert replay_request(PredictionLogged.model_validate(kept).call) == ("/v1/completions", {"prompt": [84, 22910]})


async def test_the_text_of_a_correction_is_redacted(setup: Setup) -> None:
    (clean,) = await setup.redact(feedback(HAIKU, "Maria sits by the pond"))
    assert (clean["text"], clean["redactions"]) == ("Paula sits by the pond", 1)


async def test_the_surrogates_of_an_event_are_listed_once_each_beside_the_texts_that_have_them(setup: Setup) -> None:
    asked, given = await setup.redact(
        prediction(HAIKU, "I am Maria. Maria!", "Hello Maria"), feedback(HAIKU, "Dear Maria, thank you")
    )
    assert asked["call"]["surrogates"] == ["Paula"]
    assert PredictionLogged.model_validate(asked).call.surrogates == ("Paula",)
    assert FeedbackGiven.model_validate(given).surrogates == ("Paula",)


async def test_no_event_lists_more_surrogates_than_the_contract_allows() -> None:
    """Those that are left out are taken for personal data later, and replaced once more: nothing is revealed."""
    names = {f"{n:04d}" for n in range(2 * MAX_SURROGATES)} | {"", "x" * (MAX_SURROGATE + 1)}
    listed = listed_surrogates(names)
    assert len(listed) == MAX_SURROGATES
    assert listed == tuple(sorted(names - {""}))[:MAX_SURROGATES]


async def test_a_repeated_text_is_redacted_once_and_counted_each_time(setup: Setup) -> None:
    event = prediction(HAIKU, "I am Maria", "Dear Maria")
    for _ in range(3):
        assert [event["redactions"] for event in await setup.redact(event, event)] == [2, 2]
    assert sorted(setup.swaps.texts) == ["Dear Maria", "I am Maria"]
    assert setup.status.redactions == {"name": 12}


async def test_the_cache_is_bounded_and_drops_the_least_recently_used() -> None:
    setup = await set_up(lambda swaps: swaps, cache_size=2)
    for text in ("one", "two", "one", "three", "one", "two"):
        await setup.redact(feedback(HAIKU, text))
    assert setup.swaps.texts == ["one", "two", "three", "two"]


async def test_each_task_has_its_own_rules(setup: Setup) -> None:
    events = [feedback(HAIKU, "Maria"), feedback(PLAIN, "Maria"), feedback(OPEN, "Maria")]
    assert (await setup.redact(*events))[2]["text"] == "Maria"
    assert [rules.names for _, rules in setup.swaps.asked] == [True, False]


async def test_an_observation_has_no_text_so_the_redactor_is_not_asked(setup: Setup) -> None:
    observed = RequestObserved(
        task=HAIKU.name, task_revision=HAIKU.revision, prediction_id=prediction_id(HAIKU.name), variant=Variant.BASE,
        adapter="haiku-0123456789ab-0123456789ab", user_hash="a" * 24, subject="b" * 24,
        status=200, latency_ms=1,
    )  # fmt: skip
    record = encode_event(observed)
    assert await setup.redactor.redact([record]) == [record]
    assert setup.swaps.asked == []


async def test_the_default_rules_hold_for_events_of_an_unknown_task(setup: Setup) -> None:
    (clean,) = await setup.redact(prediction(HAIKU.model_copy(update={"name": "new"}), "Maria", "x"))
    assert clean["call"]["messages"][1]["content"] == "Paula"


async def test_an_older_version_of_a_task_lets_no_text_through_after_a_start() -> None:
    """The topic has a version without redaction, then one with it: both must be read before the first event."""
    table: LatestByKey[TaskChanged] = LatestByKey("tasks.changed.v1")
    tasks, partition = table, TopicPartition("tasks.changed.v1", 0)
    redactor = RecordRedactor(tasks, Swaps, 10, ShipperStatus())
    reading = asyncio.create_task(tasks.read_to({partition: 2}))
    waiting = asyncio.create_task(redactor.redact([encode_event(prediction(HAIKU, "Maria", "x"))]))
    off = HAIKU.model_copy(update={"redaction": RedactionSettings(enabled=False)})
    for offset, version in enumerate((off, HAIKU)):
        await asyncio.sleep(0.05)
        assert not waiting.done()
        await table.put(version.name, TaskChanged(task=version.name, task_revision=version.revision, spec=version))
        await table.advance(0, offset + 1)
    await reading
    (record,) = await waiting
    assert isinstance(record, Record) and orjson.loads(record.value)["call"]["messages"][1]["content"] == "Paula"


@pytest.mark.parametrize(
    ("topic", "value"),
    [
        ("predictions.logged.v1", b"{"), ("predictions.logged.v1", b"[]"),
        ("predictions.logged.v1", b"{}"), ("predictions.logged.v1", b'{"call": {"messages": ["x"]}, "answers": []}'),
        ("predictions.logged.v1", b'{"call": {"messages": []}, "answers": {}}'),
        ("feedback.given.v1", b'{"text": "x", "redactions": "1"}'), ("cycles.started.v1", b"{}"),
        ("feedback.given.v1", b'{"text": ' + b"[" * 300 + b'"Maria"' + b"]" * 300 + b"}"),
    ],
)  # fmt: skip
async def test_an_invalid_event_is_refused_and_its_neighbours_are_not(setup: Setup, topic: str, value: bytes) -> None:
    good = encode_event(feedback(HAIKU, "Maria"))
    invalid, valid = await setup.redactor.redact([Record(topic, b"k", value), good])
    assert isinstance(invalid, RefusedRecord)
    assert invalid.record.value == value
    assert isinstance(valid, Record)


async def test_a_text_that_breaks_the_redactor_refuses_its_own_event_only(setup: Setup) -> None:
    setup.swaps.breaks_on = "curse"
    events = [feedback(HAIKU, text) for text in ("Maria 1", "Maria 2", "a curse", "Maria 3")]
    results = await setup.redact(*events)
    assert isinstance(results.pop(2), RefusedRecord)
    assert [event["text"] for event in results] == ["Paula 1", "Paula 2", "Paula 3"]


async def test_a_redactor_that_always_fails_refuses_no_event(setup: Setup) -> None:
    setup.swaps.breaks_on = ""
    with pytest.raises(DependencyUnavailable, match="the redactor fails"):
        await setup.redact(feedback(HAIKU, "Maria"))


async def test_the_redactor_is_warmed_up_when_the_first_task_redacts() -> None:
    swaps, table = Swaps(), LatestByKey[TaskChanged]("tasks.changed.v1")
    redactor = RecordRedactor(table, lambda: swaps, 10, ShipperStatus())
    loading = asyncio.create_task(redactor.load())
    await table.put(OPEN.name, TaskChanged(task=OPEN.name, task_revision=OPEN.revision, spec=OPEN))
    await asyncio.sleep(0.1)
    assert swaps.asked == []
    await table.put(HAIKU.name, TaskChanged(task=HAIKU.name, task_revision=HAIKU.revision, spec=HAIKU))
    async with asyncio.timeout(PATIENCE_SECONDS):
        await loading
    assert len(swaps.asked) == 1


async def test_building_the_redactor_is_retried() -> None:
    builds: list[Swaps] = []

    def build(swaps: Swaps) -> Swaps:
        builds.append(swaps)
        if len(builds) == 1:
            raise OSError("no model")
        return swaps

    setup = await set_up(build)
    with pytest.raises(OSError, match="no model"):
        await setup.redact(feedback(HAIKU, "Maria"))
    (clean,) = await setup.redact(feedback(HAIKU, "Maria"))
    assert clean["text"] == "Paula"


class _Slow(Swaps):
    """A redactor that is not done before it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.began, self.may_end = threading.Event(), threading.Event()

    def redact_slices(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice]:
        found = super().redact_slices(slices, rules)
        self.began.set()
        self.may_end.wait(PATIENCE_SECONDS)
        return found


async def test_a_redaction_that_is_cancelled_ends_before_the_next_one_begins() -> None:
    """Its thread goes on, and the redactor is for one thread at a time."""
    slow = _Slow()
    setup = await set_up(lambda _: slow)
    first = asyncio.create_task(setup.redact(feedback(HAIKU, "Maria one")))
    assert await asyncio.to_thread(slow.began.wait, PATIENCE_SECONDS)
    first.cancel()
    second = asyncio.create_task(setup.redact(feedback(HAIKU, "Maria two")))
    for _ in range(50):
        await asyncio.sleep(0)
    assert (first.done(), slow.texts) == (False, ["Maria one"])
    slow.may_end.set()
    with contextlib.suppress(asyncio.CancelledError):
        await first
    assert [event["text"] for event in await second] == ["Paula two"]
    assert first.cancelled()


async def test_a_redacted_record_keeps_its_headers(setup: Setup) -> None:
    record = encode_event(feedback(HAIKU, "Maria"), (("traceparent", b"00-a-b-01"),))
    (clean,) = await setup.redactor.redact([record])
    assert isinstance(clean, Record)
    assert (b"Paula" in clean.value, clean.headers) == (True, record.headers)


async def _published_roles(setup: Setup, *roles: str) -> list[str]:
    event = prediction(HAIKU, "x", "y").model_dump(mode="json")
    event["call"]["messages"] = [{"role": role, "content": "x"} for role in roles]
    published = await setup.redact_json(event)
    assert PredictionLogged.model_validate(published).call.truncated is any(map(_has_number, roles))
    return [message["role"] for message in published["call"]["messages"]]


def _has_number(role: str) -> bool:
    return sum(map(str.isdigit, role)) > 5


async def test_a_redacted_role_is_still_a_role() -> None:
    setup = await set_up(lambda _: Blanks())
    assert await _published_roles(setup, "maria", "tool", "developer") == ["other", "tool", "developer"]
    for surrogate in ("Björn O'Neill", "7", "Anna Maria von der Heydte-Schulenburg", " "):
        blanks = Blanks(surrogate)
        (role,) = await _published_roles(await set_up(lambda _, blanks=blanks: blanks), "maria")
        assert role[0].isascii()


ROLES = (
    "Maria", "Maria-Gonzalez", "Maria_Gonzalez", "John-Smith", "John_Smith", "john_smith", "agent_015112345678",
    "agent-0151-2345678", "user015112345678", "u-4915112345678", "tel_4915112345678", "customer-555-123-4567",
    "c5551234567", "customer_555_123_4567", "DE89370400440532013000", "card_4111111111111111", "born-1980-01-02",
    "card-4111-1111-1111-1111", "ssn-123-45-6789", "ssn_123_45_6789", "phone-2025550143", "Anna", "MariaGonzalez",
)  # fmt: skip


async def test_names_and_numbers_in_a_role_are_found_and_roles_of_templates_stay() -> None:
    setup = await set_up(lambda _: Redactor(b"k" * 32))
    for role, published in zip(ROLES, await _published_roles(setup, *ROLES), strict=True):
        assert not _has_number(published)
        left = set(published.lower().replace("-", "_").split("_")) & set(role.lower().replace("-", "_").split("_"))
        assert left <= {"agent", "u", "tel", "customer", "card", "born", "ssn", "phone"}, (role, published)
    known = ["user", "developer", "ipython", "moderator", "context", "observation", "agent7", "tool_2", "planner"]
    assert await _published_roles(setup, *known) == known


@pytest.mark.parametrize(
    ("topic", "fields"),
    [
        ("predictions.logged.v1", {"messages": [{"role": "user", "content": "x"}], "answer": "x"}),
        ("predictions.logged.v1", {"call": {"messages": ["x"]}, "answers": []}),
        ("predictions.logged.v1", {"call": {"messages": []}, "answers": {}}),
        ("predictions.logged.v1", {"call": {"messages": []}, "answers": [1]}),
        ("predictions.logged.v1", {"call": {"messages": []}, "answers": [], "redactions": "1"}),
        ("feedback.given.v1", {"text": "x", "redactions": "1"}),
        ("cycles.started.v1", {}),
    ],
)
async def test_an_invalid_event_of_a_task_without_redaction_is_refused_too(
    setup: Setup, topic: str, fields: dict[str, Any]
) -> None:
    good = Record("feedback.given.v1", b"k", orjson.dumps({"task": OPEN.name, "text": "Maria"}))
    invalid = Record(topic, b"k", orjson.dumps({"task": OPEN.name, **fields}))
    refused, passed = await setup.redactor.redact([invalid, good])
    assert isinstance(refused, RefusedRecord)
    assert passed is good, "byte for byte"


async def test_an_event_without_redaction_that_is_too_large_is_cut_all_the_same(setup: Setup) -> None:
    large = Record("feedback.given.v1", b"k", orjson.dumps({"task": OPEN.name, "text": "word " * 1_000_000}))
    (record,) = await setup.redactor.redact([large])
    assert isinstance(record, Record)
    assert len(record.value) < 4 * 1024**2 < len(large.value)


async def test_a_huge_text_takes_many_turns_and_a_small_event_has_the_next_one() -> None:
    setup = await set_up()
    huge = asyncio.create_task(setup.redact(feedback(HAIKU, "I am Maria. " * 100_000)))
    while not setup.swaps.asked:
        await asyncio.sleep(0)
    (small,) = await setup.redact(feedback(HAIKU, "Maria"))
    assert small["text"] == "Paula"
    assert not huge.done()
    assert len(setup.swaps.asked) <= 4
    (event,) = await huge
    assert event["text"] == "I am Paula. " * 100_000
    assert event["redactions"] == 100_000
    assert max(map(len, setup.swaps.texts)) <= MAX_SLICE
    assert len(setup.swaps.asked) >= 60


async def test_many_small_texts_are_redacted_in_turns_too() -> None:
    setup = await set_up()
    await setup.redact(*(feedback(HAIKU, f"{number} {'word ' * 200}") for number in range(100)))
    assert 4 <= len(setup.swaps.asked) <= 7


async def test_a_long_text_of_which_a_part_breaks_the_redactor_refuses_its_own_event_only(setup: Setup) -> None:
    setup.swaps.breaks_on = "curse"
    long = "Maria. " * 10_000
    results = await setup.redact(feedback(HAIKU, f"{long}a curse. {long}"), feedback(HAIKU, long))
    assert isinstance(results[0], RefusedRecord)
    assert results[1]["redactions"] == 10_000
