"""Removes personal data from batches of events between the spool and Kafka."""

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
_MAX_CACHED_LENGTH = 2_000
_SAMPLE_TEXT = "Does it work?"
_DEFAULT_RULES = Rules.of(RedactionSettings())


@dataclass(frozen=True)
class RefusedRecord:
    """A record that can never be published, and the reason."""

    record: Record
    error: Exception


@dataclass(frozen=True)
class _TaskRules:
    """A task's redaction rules. `own_texts`: its prompt and labels, which have no personal data."""

    change: TaskChanged | None
    rules: Rules
    own_texts: frozenset[str]


@dataclass
class _Text:
    """A text inside an event: `holder[name]`."""

    holder: dict[str, Any]
    name: str
    rules: Rules

    @property
    def text(self) -> str:
        value = self.holder[self.name]
        assert isinstance(value, str)  # noqa: S101 - `_texts` yields nothing else
        return value


class RecordRedactor:
    """Redacts records. The text redactor loads a language model, so it is built in a thread when first needed."""

    def __init__(
        self, tasks: TaskTable, build: Callable[[], TextRedactor], cache_size: int, status: ShipperStatus
    ) -> None:
        self._tasks = tasks
        self._build = build
        self._redactor: TextRedactor | None = None
        self._lock = asyncio.Lock()
        self._cache: dict[tuple[Rules, str], Redacted] = {}
        self._cache_size = cache_size
        self._status = status
        self._rules: dict[str, _TaskRules] = {}

    async def load(self) -> None:
        """Build the redactor and warm it up before the first event, once a task redacts."""
        await self._tasks.wait_until_one_redacts()
        async with self._lock:
            await asyncio.to_thread((await self._loaded()).redact, [_SAMPLE_TEXT], _DEFAULT_RULES)

    async def redact(self, records: Sequence[Record]) -> list[Record | RefusedRecord]:
        """Return the records without personal data, in order. An invalid event, or one that fails, is refused."""
        events = [_parse(record) for record in records]
        found: list[list[_Text]] = []
        for event in events:
            found.append(
                list(self._texts(event, await self._task_rules(event.get("task"))) if isinstance(event, dict) else ())
            )
        results = await self._redact_texts([text for texts in found for text in texts])
        return [
            _rewritten(record, event, texts, results)
            for record, event, texts in zip(records, events, found, strict=True)
        ]

    def _texts(self, data: dict[str, Any], task: _TaskRules) -> Iterator[_Text]:
        """The texts of an event that may contain personal data."""
        if not task.rules.enabled:
            return
        holders = [(message, "content") for message in data.get("messages", ())]
        holders += [(data, name) for name in ("answer", "text") if data.get(name)]
        for holder, name in holders:
            if holder[name] not in task.own_texts:
                yield _Text(holder, name, task.rules)

    async def _task_rules(self, name: Any) -> _TaskRules:
        """A task's rules. A task that is unknown once the topic is read gets the defaults: redact everything."""
        change = await self._tasks.latest(str(name))
        task = self._rules.get(str(name))
        if task is None or task.change is not change:
            task = self._rules[str(name)] = _rules_of(change)
        return task

    async def _redact_texts(self, texts: Sequence[_Text]) -> dict[tuple[Rules, str], Redacted | Exception]:
        """Redact the texts. A repeated text, in this call or in the cache, is redacted once."""
        results: dict[tuple[Rules, str], Redacted | Exception] = {}
        uncached: dict[Rules, dict[str, None]] = {}
        for text in texts:
            key = (text.rules, text.text)
            if key in results:
                continue
            if (cached := self._cache.pop(key, None)) is not None:
                results[key] = self._cache[key] = cached  # Moved to the end: the least recently used is dropped first.
            else:
                uncached.setdefault(text.rules, {})[text.text] = None
        if uncached:
            async with self._lock:
                redactor = await self._loaded()
                started = time.perf_counter()
                for rules, values in uncached.items():
                    redacted = await asyncio.to_thread(_redact_all, redactor, list(values), rules)
                    results |= {(rules, value): result for value, result in zip(values, redacted, strict=True)}
                self._status.redaction_seconds += time.perf_counter() - started
            self._add_to_cache(uncached, results)
        for text in texts:
            if isinstance(result := results[text.rules, text.text], Redacted):
                self._status.redactions.update(result.kinds)
        return results

    def _add_to_cache(
        self, uncached: dict[Rules, dict[str, None]], results: dict[tuple[Rules, str], Redacted | Exception]
    ) -> None:
        for rules, texts in uncached.items():
            self._status.redacted_texts += len(texts)
            for text in texts:
                result = results[rules, text]
                if len(text) <= _MAX_CACHED_LENGTH and isinstance(result, Redacted):
                    self._cache[rules, text] = result
        while len(self._cache) > self._cache_size:
            del self._cache[next(iter(self._cache))]

    async def _loaded(self) -> TextRedactor:
        if self._redactor is None:
            self._redactor = await asyncio.to_thread(self._build)
        return self._redactor


def _rules_of(change: TaskChanged | None) -> _TaskRules:
    if change is None:
        return _TaskRules(None, _DEFAULT_RULES, frozenset())
    spec = change.spec
    labels = spec.labels if spec.kind is TaskKind.CLASSIFICATION else ()
    return _TaskRules(change, Rules.of(spec.redaction), frozenset((spec.system_prompt, *labels)))


def _parse(record: Record) -> dict[str, Any] | Exception | None:
    """The event of a record, or an error; None for an event without texts, which is not decoded."""
    if record.topic == _OBSERVATIONS:
        return None
    if record.topic not in (_PREDICTIONS, _FEEDBACK):
        return InvalidMessage(f"{record.topic} is not a topic that the gateway writes")
    try:
        data = orjson.loads(record.value)
    except orjson.JSONDecodeError as error:
        return InvalidMessage(f"not JSON: {error}")
    if not isinstance(data, dict) or not all(_checks(data)):
        return InvalidMessage(f"not an event of {record.topic}")
    return data


def _checks(data: dict[str, Any]) -> Iterator[bool]:
    messages = data.get("messages", [])
    yield isinstance(messages, list)
    yield all(isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages)
    for name in ("answer", "text"):
        yield isinstance(data.get(name), str | None)


def _redact_all(redactor: TextRedactor, texts: list[str], rules: Rules) -> list[Redacted | Exception]:
    """In a thread: return each text's result or error. Raises DependencyUnavailable if the redactor itself fails."""
    results = _redact_by_halves(redactor, texts, rules)
    if all(isinstance(result, Exception) for result in results):
        try:
            redactor.redact([_SAMPLE_TEXT], _DEFAULT_RULES)
        except Exception as error:
            raise DependencyUnavailable(
                f"the redactor fails: {error!r}", "Events wait in the spool. See the gateway's log."
            ) from error
    return results


def _redact_by_halves(redactor: TextRedactor, texts: list[str], rules: Rules) -> list[Redacted | Exception]:
    """Redact the texts; if the redactor fails, split them in halves until only the failing texts have an error."""
    try:
        return list(redactor.redact(texts, rules))
    except Exception as error:  # noqa: BLE001 - an error of one text must not stop the others
        if len(texts) == 1:
            return [error]
        half = len(texts) // 2
        return _redact_by_halves(redactor, texts[:half], rules) + _redact_by_halves(redactor, texts[half:], rules)


def _rewritten(
    record: Record,
    data: dict[str, Any] | Exception | None,
    texts: Sequence[_Text],
    results: dict[tuple[Rules, str], Redacted | Exception],
) -> Record | RefusedRecord:
    """The record with its texts replaced; unchanged, byte for byte, if nothing was found."""
    if isinstance(data, Exception):
        return RefusedRecord(record, data)
    count = 0
    for text in texts:
        result = results[text.rules, text.text]
        if isinstance(result, Exception):
            return RefusedRecord(record, InvalidMessage(f"redaction failed: {result!r}"))
        text.holder[text.name] = result.text
        count += result.count
    if data is None or not count:
        return record
    data["redactions"] = data.get("redactions", 0) + count
    return Record(record.topic, record.key, orjson.dumps(data), record.headers)
