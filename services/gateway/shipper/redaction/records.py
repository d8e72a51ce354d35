"""Redacts batches of records between the spool and Kafka, and makes each fit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from schemas.output_schema import texts_of
from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.shipper.redaction.event_texts import TextFinder, leave_out_unreadable
from services.gateway.shipper.redaction.fitting import MAX_EVENT, PREDICTIONS, fitted, read_event
from services.gateway.shipper.redaction.texts import DEFAULT_RULES, Query, Results, TextQueue
from shared.errors import InvalidMessage
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.redaction import Redacted, Redactor, Rules, listed_surrogates, replace_repeats
from shared.spool import Record

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class RefusedRecord:
    """A record that can never be published, and the reason."""

    record: Record
    error: Exception


@dataclass(frozen=True)
class _TaskRules:
    """A task's redaction rules. `own_texts`: its prompt, labels and schema's words, which have no personal data.

    `number`: of the rules, in the queue.
    """

    change: TaskChanged | None
    rules: Rules
    number: int
    own_texts: frozenset[str]


class _Draft:
    """A record's event while its texts are replaced."""

    __slots__ = ("data", "finder", "queries", "record")

    def __init__(self, record: Record, data: dict[str, Any], task: _TaskRules) -> None:
        """Raises InvalidMessage for an event whose texts cannot be found: it is never passed on with them."""
        self.record = record
        self.data = data
        self.finder = TextFinder(task.own_texts)
        self.queries: list[Query] = []
        if not task.rules.enabled:
            return
        try:
            if record.topic == PREDICTIONS:
                self.finder.left_out = leave_out_unreadable(data["call"])
            self.finder.find(data, record.topic)
        except Exception as error:
            raise InvalidMessage(f"redaction failed: {error!r}") from error
        self.queries = [(task.number, text.text, text.cue_length) for text in self.finder.texts]


class RecordRedactor:
    """Redacts records by the rules of their tasks."""

    def __init__(
        self,
        tasks: LatestByKey[TaskChanged],
        build: Callable[[], Redactor],
        cache_size: int,
        status: ShipperStatus,
    ) -> None:
        """`tasks`: events wait until it is read to its end, since an older version of a task may redact less."""
        self._tasks = tasks
        self._texts = TextQueue(build, cache_size, status)
        self._status = status
        self._rules: dict[str, _TaskRules] = {}

    async def load(self) -> None:
        """Build the redactor and warm it up before the first event, once a task redacts."""
        while not any(change.spec.redaction.enabled for change in self._tasks):
            await asyncio.sleep(_POLL_SECONDS)
        await self._texts.warm_up()

    async def redact(self, records: Sequence[Record]) -> list[Record | RefusedRecord]:
        """Return the records without personal data, in order. An invalid event, or one that fails, is refused."""
        drafts = [await self._draft(record) for record in records]
        results = await self._texts.redact(
            query for draft in drafts if isinstance(draft, _Draft) for query in draft.queries
        )
        return [self._finished(draft, results) if isinstance(draft, _Draft) else draft for draft in drafts]

    async def _draft(self, record: Record) -> _Draft | RefusedRecord:
        try:
            data = read_event(record)
            return _Draft(record, data, await self._task_rules(data.get("task")))
        except InvalidMessage as error:
            return RefusedRecord(record, error)

    async def _task_rules(self, name: Any) -> _TaskRules:
        """A task's rules. A task that is unknown once the topic is read gets the defaults: redact everything."""
        change = await self._tasks.latest(str(name))
        task = self._rules.get(str(name))
        if task is None or task.change is not change:
            rules, own_texts = _rules_of(change)
            task = _TaskRules(change, rules, self._texts.number_of(rules), own_texts)
            self._rules[str(name)] = task
        return task

    def _finished(self, draft: _Draft, results: Results) -> Record | RefusedRecord:
        """The record with its texts replaced; unchanged, byte for byte, if nothing was found and it fits."""
        record, count = draft.record, 0
        surrogates: set[str] = set()
        redacted: list[Redacted] = []
        for query in draft.queries:
            result = results[query]
            if isinstance(result, Exception):
                return RefusedRecord(record, InvalidMessage(f"redaction failed: {result!r}"))
            redacted.append(result)
        numbers = {number: surrogate for result in redacted for number, surrogate in result.numbers.items()}
        for result, text in zip(redacted, draft.finder.texts, strict=False):
            written, repeats = replace_repeats(result.text, numbers) if numbers else (result.text, [])
            if result.count or repeats:
                count += result.count + len(repeats)
                surrogates.update(result.surrogates, repeats)
                text.put(written)
                self._status.redactions.update(result.kinds)
                self._status.redactions.update("repeat" for _ in repeats)
        try:
            value = self._encoded(draft, count, surrogates)
        except InvalidMessage as error:
            return RefusedRecord(record, error)
        return record if value is record.value else Record(record.topic, record.key, value, record.headers)

    def _encoded(self, draft: _Draft, count: int, surrogates: set[str]) -> bytes:
        """The draft as JSON that fits, with the surrogates that are in it. Raises InvalidMessage."""
        value, data, left_out = draft.record.value, draft.data, draft.finder.left_out
        if count or left_out:
            draft.finder.finish()
            data["redactions"] = data.get("redactions", 0) + count
            if (place := _place_of_surrogates(draft)) is not None:
                place["surrogates"] = listed_surrogates(surrogates)
            try:
                value = orjson.dumps(data)
            except TypeError as error:  # What can be decoded may be nested too deeply to be encoded.
                raise InvalidMessage(f"a redacted event cannot be encoded: {error}") from error
        is_too_large = len(value) > MAX_EVENT
        self._status.truncated += left_out or is_too_large
        return fitted(draft.record, data) if is_too_large else value


def _place_of_surrogates(draft: _Draft) -> dict[str, Any] | None:
    """The object that lists the event's surrogates: what they stand in, wherever it goes. None without texts."""
    if draft.record.topic == PREDICTIONS:
        call: dict[str, Any] = draft.data["call"]
        return call
    return draft.data if "text" in draft.data else None


def _rules_of(change: TaskChanged | None) -> tuple[Rules, frozenset[str]]:
    """A task's rules, and the texts that are its own."""
    if change is None:
        return DEFAULT_RULES, frozenset()
    spec = change.spec
    words = texts_of(spec.output_schema or {})
    for tool in spec.tools:
        words |= {tool.description, *texts_of(tool.parameters)}
    return Rules.of(spec.redaction), frozenset((spec.system_prompt, *spec.labels, *words, *spec.output_fields))
