"""The writer against a model, driven at random: what was acknowledged is in the table, each fact once, and no other.

Two writers share the partitions of a topic, each at times a zombie to the other; records are delivered again, facts
are sent twice, processes die before, during and after a commit, with files half written, the store does not answer or
its answer is lost, files are compacted, people are forgotten, and the broker loses its topics.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from deltalake import DeltaTable
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from schemas.lake import PREDICTIONS
from services.prediction_log.erasure.erase import ErasureRequest, erase_subjects
from services.prediction_log.storage import DeltaLake
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from tests.unit.prediction_log.deliveries import NOON, TASK, TOPICS, delivery, prediction, stored_ids

WINDOW = 4
PARTITIONS = st.integers(0, 1)
SOME_PARTITIONS = st.sets(PARTITIONS, min_size=1)
FACTS = st.integers(0, 49)
WRITERS = st.integers(0, 1)
PLACES = [(TOPICS[PREDICTIONS], partition) for partition in (0, 1)]
FATES = st.sampled_from(
    [
        *[""] * 3, *["rival"] * 3,
        "dies before the file", "dies in the file", "dies before the commit", "dies after the commit",
        "no answer before the commit", "no answer after the commit",
    ]
)  # fmt: skip


class Crash(BaseException):
    """The process is gone."""


class Mortal(DeltaLake):
    """Meets its `fate` once, or waits for `rival` between reading the table and committing."""

    fate = ""
    rival: Callable[[], None] | None = None

    def _select(self, *arguments: Any) -> Any:
        self._meet("before the file")
        return super()._select(*arguments)

    def _commit(self, table: str, state: Any, batch: Any, written: Any) -> None:
        if self.fate == "dies in the file":
            for action in written.actions:
                file = Path(self._uri) / table / action.path
                file.write_bytes(file.read_bytes()[: action.size // 2])
            (Path(self._uri) / table / "_delta_log" / f"_commit_{uuid4()}.json.tmp").write_text('{"add":{"pa')
        self._meet("in the file")
        self._meet("before the commit")
        if self.rival is not None:
            rival, self.rival = self.rival, None
            rival()
        super()._commit(table, state, batch, written)
        self._meet("after the commit")

    def _meet(self, where: str) -> None:
        if self.fate == f"dies {where}":
            raise Crash
        if self.fate == f"no answer {where}":
            self.fate = ""
            raise OSError("the store does not answer")


def occurred_at(fact: int) -> datetime:
    return NOON + timedelta(hours=fact * 5 % 31)  # Over two days, in no order.


def user(fact: int) -> str:
    return "ann" if fact % 3 == 0 else "bob"


class Log(RuleBasedStateMachine):
    """`partitions`: what the broker has. `acknowledged`: facts that a writer took; `delivered`: ever given to one;
    `reached`: the last offset of each partition that was acknowledged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.incarnation = 0
        self.partitions: list[list[int]] = [[], []]
        self.acknowledged: set[int] = set()
        self.delivered: set[int] = set()
        self.forgotten_until: dict[str, datetime] = {}
        self.writers = [self._started(), self._started()]
        self.stands = [[0, 0], [0, 0]]
        self.reached = [-1, -1]

    def teardown(self) -> None:
        """After everything, a new process reads to the end: then the table is exactly what the model says."""
        self.start(0)
        for partition in (0, 1):
            self._deliver(0, [partition], 1_000)
        everything = {fact for log in self.partitions for fact in log} | self.acknowledged
        rows = self._rows()
        assert {f"p{fact}" for fact in everything if not self._forgotten(fact)} <= set(rows)
        self.nothing_is_doubled_lost_or_made_up()
        shutil.rmtree(self.folder)

    @rule(partition=PARTITIONS, facts=st.lists(FACTS, min_size=1, max_size=6))
    def send(self, partition: int, facts: list[int]) -> None:
        self.partitions[partition] += facts

    @rule(facts=st.lists(FACTS, min_size=1, max_size=3))
    def send_twice(self, facts: list[int]) -> None:
        for log in self.partitions:
            log += facts

    @rule(
        writer=WRITERS, partitions=SOME_PARTITIONS, rivals=SOME_PARTITIONS, count=st.integers(1, 8), fate=FATES
    )  # fmt: skip
    def deliver(self, writer: int, partitions: set[int], rivals: set[int], count: int, fate: str) -> None:
        self.writers[writer].fate = fate
        if fate == "rival":
            self.writers[writer].rival = lambda: self._deliver(1 - writer, sorted(rivals), count)
        try:
            self._deliver(writer, sorted(partitions), count)
        except Crash:
            self.start(writer)
        except DependencyUnavailable:
            pass  # The records are delivered again, to the same process.
        self.writers[writer].fate, self.writers[writer].rival = "", None

    @rule(writer=WRITERS, facts=st.lists(FACTS, min_size=1, max_size=3))
    def deliver_the_same_facts_to_both_at_the_same_moment(self, writer: int, facts: list[int]) -> None:
        self.send_twice(facts)
        self.writers[writer].rival = lambda: self._deliver(1 - writer, [1], 1_000)
        self._deliver(writer, [0], 1_000)
        self.writers[writer].rival = None

    @rule(writer=WRITERS, partition=PARTITIONS, back=st.integers(1, 10))
    def deliver_again(self, writer: int, partition: int, back: int) -> None:
        self.stands[writer][partition] = max(0, self.stands[writer][partition] - back)

    @rule(writer=WRITERS)
    def start(self, writer: int) -> None:
        """The process, or a rebalance: positions come from the lake."""
        self.writers[writer] = self._started()
        stored = self.writers[writer].stored_offsets(PREDICTIONS, PLACES)
        self.stands[writer] = [stored.get(place, -1) + 1 for place in PLACES]

    @precondition(lambda self: (self.folder / PREDICTIONS).exists())
    @rule()
    def compact(self) -> None:
        DeltaTable(self.folder / PREDICTIONS).optimize.compact()

    @rule(who=st.sampled_from(["ann", "bob"]), until=st.integers(0, 40))
    def forget(self, who: str, until: int) -> None:
        at = NOON + timedelta(hours=until)
        erase_subjects(str(self.folder), [ErasureRequest(TASK, who, at)])
        self.forgotten_until[who] = max(at, self.forgotten_until.get(who, at))

    @rule()
    def lose_the_topics(self) -> None:
        self.incarnation += 1
        self.partitions, self.reached = [[], []], [-1, -1]
        for writer in (0, 1):
            self.start(writer)

    @invariant()
    def nothing_is_doubled_lost_or_made_up(self) -> None:
        rows = self._rows()
        assert len(rows) == len(set(rows))
        assert {f"p{fact}" for fact in self.acknowledged if not self._forgotten(fact)} <= set(rows)
        assert set(rows) <= {f"p{fact}" for fact in self.delivered if not self._forgotten(fact)}

    @invariant()
    def every_process_knows_how_far_the_records_were_read(self) -> None:
        """And it is as far as was acknowledged at least, never back, and never further than was delivered."""
        for process in (self._started(), *self.writers):
            stored = process.stored_offsets(PREDICTIONS, PLACES)
            stands = [stored.get(place, -1) for place in PLACES]
            assert all(known >= read for known, read in zip(stands, self.reached, strict=True))
            assert all(known < len(log) for known, log in zip(stands, self.partitions, strict=True))
            self.reached = stands

    def _deliver(self, writer: int, partitions: list[int], count: int) -> None:
        stands = self.stands[writer]
        ends = {one: min(stands[one] + count, len(self.partitions[one])) for one in partitions}
        given = [(one, offset) for one in partitions for offset in range(stands[one], ends[one])]
        facts = {self.partitions[one][offset] for one, offset in given}
        self.delivered |= facts
        self.writers[writer].append(PREDICTIONS, [self._record(one, offset) for one, offset in given])
        self.acknowledged |= facts
        for one, end in ends.items():
            self.reached[one] = max(self.reached[one], end - 1)
            stands[one] = max(stands[one], end)

    def _record(self, partition: int, offset: int) -> Delivery[Any]:
        fact = self.partitions[partition][offset]
        return delivery(prediction(f"p{fact}", occurred_at(fact), user(fact)), offset, partition)

    def _rows(self) -> list[str]:
        return stored_ids(self.folder) if (self.folder / PREDICTIONS).exists() else []

    def _forgotten(self, fact: int) -> bool:
        until = self.forgotten_until.get(user(fact))
        return until is not None and occurred_at(fact) <= until

    def _started(self) -> Mortal:
        return Mortal(str(self.folder), str(self.incarnation), WINDOW)


TestLog = Log.TestCase
TestLog.settings = settings(
    max_examples=25, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
