"""Personal data out of events, many at once, on their way from the spool to Kafka."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.catalog import topic_of
from schemas.predictions import FeedbackGiven, PredictionLogged, RequestObserved
from schemas.tasks import RedactionSettings, TaskChanged, TaskKind
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.tasks.snapshot import TaskTable
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.privacy.redaction import Redacted, Rules, TextRedactor
from shared.spool import Record

_PREDICTIONS = topic_of(PredictionLogged).name
_FEEDBACK = topic_of(FeedbackGiven).name
_OBSERVATIONS = topic_of(RequestObserved).name
_LONGEST_REMEMBERED = 2_000
_PAUSE_SECONDS = 0.2
_SAMPLE = "Does it work?"
_DEFAULT = Rules.of(RedactionSettings())


@dataclass(frozen=True)
class RefusedRecord:
    """A record that cannot be shipped, ever, and why."""

    record: Record
    error: Exception


@dataclass(frozen=True)
class _Task:
    """What the rules of one task come to. `known`: texts that are the task's own, and hold nobody's data."""

    change: TaskChanged | None
    rules: Rules
    known: frozenset[str]


@dataclass
class _Text:
    """A text inside an event: where it is and what it says."""

    holder: dict[str, Any]
    name: str
    rules: Rules

    @property
    def text(self) -> str:
        value = self.holder[self.name]
        assert isinstance(value, str)  # noqa: S101 - `_texts` gives no other
        return value


class RecordRedactor:
    """Redacts records. The redactor loads a language model, so it is built in a thread and when first needed."""

    def __init__(
        self, tasks: TaskTable, build: Callable[[], TextRedactor], remembered: int, status: ShipperStatus
    ) -> None:
        self._tasks = tasks
        self._build = build
        self._redactor: TextRedactor | None = None
        self._one_at_a_time = asyncio.Lock()
        self._seen: dict[tuple[Rules, str], Redacted] = {}
        self._remembered = remembered
        self._status = status
        self._rules: dict[str, _Task] = {}

    async def load(self) -> None:
        """Build the redactor and warm it up before the first event needs it; not at all while no task does."""
        await self._tasks.wait_until_one_redacts()
        async with self._one_at_a_time:
            await asyncio.to_thread((await self._loaded()).redact, [_SAMPLE], _DEFAULT)

    async def clean(self, records: Sequence[Record]) -> list[Record | RefusedRecord]:
        """The records without personal data, in order; refused is what is no event of ours, or cannot be redacted."""
        parsed = [_parse(record) for record in records]
        found: list[list[_Text]] = []
        for one in parsed:
            found.append(list(self._texts(one, await self._task(one.get("task"))) if isinstance(one, dict) else ()))
        answers = await self._redact([text for texts in found for text in texts])
        return [
            _rewritten(record, one, texts, answers) for record, one, texts in zip(records, parsed, found, strict=True)
        ]

    def _texts(self, data: dict[str, Any], task: _Task) -> Iterator[_Text]:
        """The texts of an event that may hold personal data."""
        if not task.rules.enabled:
            return
        holders = [(message, "content") for message in data.get("messages", ())]
        holders += [(data, name) for name in ("answer", "text") if data.get(name)]
        for holder, name in holders:
            if holder[name] not in task.known:
                yield _Text(holder, name, task.rules)

    async def _task(self, name: Any) -> _Task:
        """The task's rules. One that is not known once the topic was read gets the defaults: everything is redacted."""
        while (change := self._tasks.get(str(name))) is None and not self._tasks.is_missing(str(name)):
            await asyncio.sleep(_PAUSE_SECONDS)
        task = self._rules.get(str(name))
        if task is None or task.change is not change:
            task = self._rules[str(name)] = _task_of(change)
        return task

    async def _redact(self, texts: Sequence[_Text]) -> dict[tuple[Rules, str], Redacted | Exception]:
        """What each of the texts becomes. Repeated texts, of this call or an earlier one, are redacted once."""
        answers: dict[tuple[Rules, str], Redacted | Exception] = {}
        wanted: dict[Rules, dict[str, None]] = {}
        for one in texts:
            key = (one.rules, one.text)
            if key in answers:
                continue
            if (seen := self._seen.pop(key, None)) is not None:
                answers[key] = self._seen[key] = seen  # Put last: the first to be forgotten is the least used.
            else:
                wanted.setdefault(one.rules, {})[one.text] = None
        if wanted:
            async with self._one_at_a_time:
                redactor = await self._loaded()
                started = time.perf_counter()
                for rules, fresh in wanted.items():
                    results = await asyncio.to_thread(_redact_all, redactor, list(fresh), rules)
                    answers |= {(rules, text): result for text, result in zip(fresh, results, strict=True)}
                self._status.redaction_seconds += time.perf_counter() - started
            self._remember(wanted, answers)
        for one in texts:
            if isinstance(result := answers[one.rules, one.text], Redacted):
                self._status.redactions.update(result.kinds)
        return answers

    def _remember(
        self, wanted: dict[Rules, dict[str, None]], answers: dict[tuple[Rules, str], Redacted | Exception]
    ) -> None:
        for rules, texts in wanted.items():
            self._status.redacted_texts += len(texts)
            for text in texts:
                result = answers[rules, text]
                if len(text) <= _LONGEST_REMEMBERED and isinstance(result, Redacted):
                    self._seen[rules, text] = result
        while len(self._seen) > self._remembered:
            del self._seen[next(iter(self._seen))]

    async def _loaded(self) -> TextRedactor:
        if self._redactor is None:
            self._redactor = await asyncio.to_thread(self._build)
        return self._redactor


def _task_of(change: TaskChanged | None) -> _Task:
    if change is None:
        return _Task(None, _DEFAULT, frozenset())
    spec = change.spec
    labels = spec.labels if spec.kind is TaskKind.CLASSIFICATION else ()
    return _Task(change, Rules.of(spec.redaction), frozenset((spec.system_prompt, *labels)))


def _parse(record: Record) -> dict[str, Any] | Exception | None:
    """The event, as far as it must be looked into. None: it has no text of anybody's."""
    if record.topic == _OBSERVATIONS:
        return None
    if record.topic not in (_PREDICTIONS, _FEEDBACK):
        return InvalidMessage(f"{record.topic} is no topic that the gateway writes")
    try:
        data = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        return InvalidMessage(f"no JSON: {error}")
    if not isinstance(data, dict) or not all(_sound(data)):
        return InvalidMessage(f"no event of {record.topic}")
    return data


def _sound(data: dict[str, Any]) -> Iterator[bool]:
    messages = data.get("messages", [])
    yield isinstance(messages, list)
    yield all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
    for name in ("answer", "text"):
        yield isinstance(data.get(name), str | None)


def _redact_all(redactor: TextRedactor, texts: list[str], rules: Rules) -> list[Redacted | Exception]:
    """In a thread: each text's result, or what it raised. Raises DependencyUnavailable if it is the redactor."""
    results = _halving(redactor, texts, rules)
    if all(isinstance(result, Exception) for result in results):
        try:
            redactor.redact([_SAMPLE], _DEFAULT)
        except Exception as error:
            raise DependencyUnavailable(
                f"the redactor fails: {error!r}", "Events wait in the spool. Read the gateway's log."
            ) from error
    return results


def _halving(redactor: TextRedactor, texts: list[str], rules: Rules) -> list[Redacted | Exception]:
    """A text that breaks the redactor is found by halving, so that it takes no other with it."""
    try:
        return list(redactor.redact(texts, rules))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that text's and must not stop the others
        if len(texts) == 1:
            return [error]
        half = len(texts) // 2
        return _halving(redactor, texts[:half], rules) + _halving(redactor, texts[half:], rules)


def _rewritten(
    record: Record,
    data: dict[str, Any] | Exception | None,
    texts: Sequence[_Text],
    answers: dict[tuple[Rules, str], Redacted | Exception],
) -> Record | RefusedRecord:
    """The record with its texts replaced; the very same bytes where nothing was found."""
    if isinstance(data, Exception):
        return RefusedRecord(record, data)
    count = 0
    for one in texts:
        result = answers[one.rules, one.text]
        if isinstance(result, Exception):
            return RefusedRecord(record, InvalidMessage(f"it cannot be redacted: {result!r}"))
        one.holder[one.name] = result.text
        count += result.count
    if data is None or not count:
        return record
    data["redactions"] = data.get("redactions", 0) + count
    return Record(record.topic, record.key, orjson.dumps(data), record.headers)
