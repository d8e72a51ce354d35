"""The writer against a model, driven at random: the table has every acknowledged answer once, and no other.

Two writers share the partitions of a topic, each at times a zombie to the other; records are redelivered, events are
sent twice, processes die before, during and after a commit, with files half written, the store is unavailable or its
response is lost, files are compacted, people are erased, and the broker loses its topics.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.lake import PREDICTIONS
from schemas.predictions import PredictionLogged
from services.prediction_log.erasure.erase import SubjectErasure, erase_subjects
from services.prediction_log.storage import DeltaLake
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log.deliveries import NOON, TASK, TOPICS, delivery, prediction, stored_ids

WINDOW = 4
PARTITIONS = st.integers(0, 1)
SOME_PARTITIONS = st.sets(PARTITIONS, min_size=1)
EVENTS = st.integers(0, 49)
WRITERS = st.integers(0, 1)
TOPIC_PARTITIONS = [(TOPICS[PREDICTIONS], partition) for partition in (0, 1)]
FAULTS = st.sampled_from(
    [
        *[""] * 3, *["conflict"] * 3,
        "dies before the file", "dies in the file", "dies before the commit", "dies after the commit",
        "no response before the commit", "no response after the commit",
    ]
)  # fmt: skip


class Crash(BaseException):
    """The process dies."""


class FaultyLake(DeltaLake):
    """Suffers its `fault` once, or lets another writer commit between reading the table and its own commit."""

    fault = ""
    other_writer: Callable[[], None] | None = None

    def _select(self, *arguments: Any) -> Any:
        self._suffer("before the file")
        return super()._select(*arguments)

    def _commit(self, table: str, state: Any, batch: Any, written: Any) -> None:
        if self.fault == "dies in the file":
            for action in written.actions:
                file = Path(self._uri) / table / action.path
                file.write_bytes(file.read_bytes()[: action.size // 2])
            (Path(self._uri) / table / "_delta_log" / f"_commit_{uuid4()}.json.tmp").write_text('{"add":{"pa')
        self._suffer("in the file")
        self._suffer("before the commit")
        if self.other_writer is not None:
            other_writer, self.other_writer = self.other_writer, None
            other_writer()
        super()._commit(table, state, batch, written)
        self._suffer("after the commit")

    def _suffer(self, where: str) -> None:
        if self.fault == f"dies {where}":
            raise Crash
        if self.fault == f"no response {where}":
            self.fault = ""
            raise OSError("the store is unavailable")


def occurred_at(event: int) -> datetime:
    return NOON + timedelta(hours=event * 5 % 31)  # Over two days, in no order.


def user(event: int) -> str:
    return "ann" if event % 3 == 0 else "bob"


def logged(event: int) -> PredictionLogged:
    """Return the event of this number: a request with up to three answers."""
    return prediction(f"p{event}", occurred_at(event), user(event), answers=1 + event % 4 % 3)


def rows_of(events: Iterable[int]) -> set[str]:
    return {answer.prediction_id for event in events for answer in logged(event).answers}


class Log(RuleBasedStateMachine):
    """`partitions`: the events on the broker. `acknowledged`: events that a writer appended; `delivered`: events that
    any writer got; `reached`: the last acknowledged offset of each partition.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.incarnation = 0
        self.partitions: list[list[int]] = [[], []]
        self.acknowledged: set[int] = set()
        self.delivered: set[int] = set()
        self.erased_until: dict[str, datetime] = {}
        self.writers = [self._started(), self._started()]
        self.next_offsets = [[0, 0], [0, 0]]
        self.reached = [-1, -1]

    def teardown(self) -> None:
        """At the end a new process reads all records: then the table is exactly as in the model."""
        self.start(0)
        for partition in (0, 1):
            self._deliver(0, [partition], 1_000)
        everything = {event for log in self.partitions for event in log} | self.acknowledged
        rows = self._rows()
        assert rows_of(event for event in everything if not self._is_erased(event)) <= set(rows)
        self.no_row_is_duplicated_lost_or_invented()
        shutil.rmtree(self.folder)

    @rule(partition=PARTITIONS, events=st.lists(EVENTS, min_size=1, max_size=6))
    def send(self, partition: int, events: list[int]) -> None:
        self.partitions[partition] += events

    @rule(events=st.lists(EVENTS, min_size=1, max_size=3))
    def send_twice(self, events: list[int]) -> None:
        for log in self.partitions:
            log += events

    @rule(
        writer=WRITERS, partitions=SOME_PARTITIONS, conflicting=SOME_PARTITIONS, count=st.integers(1, 8), fault=FAULTS
    )  # fmt: skip
    def deliver(self, writer: int, partitions: set[int], conflicting: set[int], count: int, fault: str) -> None:
        self.writers[writer].fault = fault
        if fault == "conflict":
            self.writers[writer].other_writer = lambda: self._deliver(1 - writer, sorted(conflicting), count)
        try:
            self._deliver(writer, sorted(partitions), count)
        except Crash:
            self.start(writer)
        except DependencyUnavailable:
            pass  # The records are redelivered to the same process.
        self.writers[writer].fault, self.writers[writer].other_writer = "", None

    @rule(writer=WRITERS, events=st.lists(EVENTS, min_size=1, max_size=3))
    def deliver_the_same_events_to_both_at_the_same_moment(self, writer: int, events: list[int]) -> None:
        self.send_twice(events)
        self.writers[writer].other_writer = lambda: self._deliver(1 - writer, [1], 1_000)
        self._deliver(writer, [0], 1_000)
        self.writers[writer].other_writer = None

    @rule(writer=WRITERS, partition=PARTITIONS, back=st.integers(1, 10))
    def deliver_again(self, writer: int, partition: int, back: int) -> None:
        self.next_offsets[writer][partition] = max(0, self.next_offsets[writer][partition] - back)

    @rule(writer=WRITERS)
    def start(self, writer: int) -> None:
        """Start a process, or rebalance: the offsets are read from the lake."""
        self.writers[writer] = self._started()
        stored = self.writers[writer].stored_offsets(PREDICTIONS, TOPIC_PARTITIONS)
        self.next_offsets[writer] = [stored.get(partition, -1) + 1 for partition in TOPIC_PARTITIONS]

    @precondition(lambda self: (self.folder / PREDICTIONS).exists())
    @rule()
    def compact(self) -> None:
        DeltaTable(self.folder / PREDICTIONS).optimize.compact()

    @rule(who=st.sampled_from(["ann", "bob"]), until=st.integers(0, 40))
    def erase(self, who: str, until: int) -> None:
        at = NOON + timedelta(hours=until)
        erase_subjects(str(self.folder), [SubjectErasure(TASK, who, at)])
        self.erased_until[who] = max(at, self.erased_until.get(who, at))

    @rule()
    def lose_the_topics(self) -> None:
        self.incarnation += 1
        self.partitions, self.reached = [[], []], [-1, -1]
        for writer in (0, 1):
            self.start(writer)

    @invariant()
    def no_row_is_duplicated_lost_or_invented(self) -> None:
        rows = self._rows()
        assert len(rows) == len(set(rows))
        assert rows_of(event for event in self.acknowledged if not self._is_erased(event)) <= set(rows)
        assert set(rows) <= rows_of(event for event in self.delivered if not self._is_erased(event))

    @invariant()
    def every_process_knows_the_stored_offsets(self) -> None:
        """They are at least as far as what was acknowledged, never go back, and never pass what was delivered."""
        for process in (self._started(), *self.writers):
            stored = process.stored_offsets(PREDICTIONS, TOPIC_PARTITIONS)
            next_offsets = [stored.get(partition, -1) for partition in TOPIC_PARTITIONS]
            assert all(offset >= read for offset, read in zip(next_offsets, self.reached, strict=True))
            assert all(offset < len(log) for offset, log in zip(next_offsets, self.partitions, strict=True))
            self.reached = next_offsets

    def _deliver(self, writer: int, partitions: list[int], count: int) -> None:
        next_offsets = self.next_offsets[writer]
        ends = {number: min(next_offsets[number] + count, len(self.partitions[number])) for number in partitions}
        given = [(number, offset) for number in partitions for offset in range(next_offsets[number], ends[number])]
        events = {self.partitions[number][offset] for number, offset in given}
        self.delivered |= events
        self.writers[writer].append(PREDICTIONS, [self._record(number, offset) for number, offset in given])
        self.acknowledged |= events
        for number, end in ends.items():
            self.reached[number] = max(self.reached[number], end - 1)
            next_offsets[number] = max(next_offsets[number], end)

    def _record(self, partition: int, offset: int) -> Delivery[Any]:
        event = self.partitions[partition][offset]
        return delivery(logged(event), offset, partition)

    def _rows(self) -> list[str]:
        return stored_ids(self.folder) if (self.folder / PREDICTIONS).exists() else []

    def _is_erased(self, event: int) -> bool:
        until = self.erased_until.get(user(event))
        return until is not None and occurred_at(event) <= until

    def _started(self) -> FaultyLake:
        return FaultyLake(str(self.folder), str(self.incarnation), WINDOW)


TestLog = Log.TestCase
TestLog.settings = settings(
    max_examples=6, stateful_step_count=25, suppress_health_check=list(HealthCheck), print_blob=True
)
