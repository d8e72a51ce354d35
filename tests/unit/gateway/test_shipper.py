"""The shipper on real spools, with a fake Kafka."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest

from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import ShipperStatus
from services.gateway.settings import GatewaySettings
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from services.gateway.shipper.shipper import Shipper
from services.gateway.shipper.window import LARGE
from shared.kafka.latest_by_key import LatestByKey
from shared.privacy.encryption import Cipher
from shared.privacy.redaction import RedactedSlice, Rules, TextSlice
from shared.spool import Record, Spool, SpoolReader, lock_for_shipping
from tests.waiting import PATIENCE_SECONDS, until

CIPHER = Cipher(b"k" * 32)
TOPIC = "requests.observed.v1"


@dataclass
class Kafka:
    """Takes what is published while it is open."""

    taken: list[Record | RefusedRecord] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)
    batches: int = 0

    async def publish(self, records: Sequence[Record | RefusedRecord]) -> None:
        await self.open.wait()
        self.taken.extend(records)
        self.batches += 1

    async def close(self) -> None:
        """There is nothing to close."""

    @property
    def names(self) -> list[str]:
        return names(self.taken)


def no_redactor() -> Any:
    raise AssertionError("these events have no text")


class Gate:
    """A redactor that waits, in its thread, until it is opened; what it has seen is one turn each."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.turns = 0

    def redact_slices(self, slices: Sequence[TextSlice], rules: Rules) -> list[RedactedSlice]:
        self.turns += 1
        self.open.wait(PATIENCE_SECONDS)
        return [RedactedSlice(part.text[part.start : part.end], 0, {}, part.end) for part in slices]


@dataclass
class Machine:
    """A machine with a spool folder, on which gateways and shippers start and end."""

    settings: GatewaySettings
    kafka: Kafka
    shippers: list[Shipper] = field(default_factory=list)
    spools: list[Spool] = field(default_factory=list)
    status: ShipperStatus = field(default_factory=ShipperStatus)

    def gateway(self) -> Spool:
        spool = Spool.open(self.settings.spool_folder, CIPHER, self.settings.spool_options)
        self.spools.append(spool)
        return spool

    async def shipper(
        self, own: Path | None, kafka: Kafka | None = None, build: Callable[[], Any] = no_redactor
    ) -> Shipper:
        tasks = LatestByKey[TaskChanged]("tasks.changed.v1")
        await tasks.read_to({})
        redactor = RecordRedactor(tasks, build, 10, self.status)
        publisher: Any = kafka or self.kafka
        shipper = Shipper(self.settings, own, CIPHER, redactor, lambda: publisher, self.status)
        await shipper.start()
        self.shippers.append(shipper)
        return shipper

    def left(self, slot: Path) -> list[str]:
        return names([item.record for item in SpoolReader(slot, CIPHER).read(1_000, 10**7)])


@pytest.fixture
async def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Machine]:
    kafka = Kafka()
    kafka.open.set()
    monkeypatch.setattr("services.gateway.shipper.shipper.MAX_RECORDS", 3)
    settings = GatewaySettings(home=tmp_path, gateway_shipper_stop_seconds=5.0)
    machine = Machine(settings, kafka)
    yield machine
    for shipper in machine.shippers:
        shipper.seconds_to_finish = 0.0
        await shipper.finish()
    for spool in machine.spools:
        spool.close()


def records(*names: str, size: int = 0) -> list[Record]:
    """An observation for each name, which is its key. `size`: bytes of a text that it has."""
    return [Record(TOPIC, name.encode(), orjson.dumps({"text": "x" * size} if size else {})) for name in names]


def names(records: Sequence[Record | RefusedRecord]) -> list[str]:
    return [record.key.decode() for record in records if isinstance(record, Record)]


async def test_records_are_shipped_in_order_and_then_removed_from_the_spool(machine: Machine) -> None:
    gateway = machine.gateway()
    await machine.shipper(gateway.slot)
    gateway.append(records("1", "2"))
    gateway.append(records("3", "4", "5", "6", "7"))
    await until(lambda: len(machine.kafka.taken) == 7)
    assert machine.kafka.names == ["1", "2", "3", "4", "5", "6", "7"]
    await until(lambda: machine.left(gateway.slot) == [])
    gateway.append(records("8"))
    await until(lambda: machine.kafka.names[-1] == "8")


async def test_nothing_is_removed_from_the_spool_before_kafka_acknowledges_it(machine: Machine) -> None:
    gateway = machine.gateway()
    machine.kafka.open.clear()
    first = await machine.shipper(gateway.slot)
    gateway.append(records("1", "2", "3", "4", "5"))
    await until(lambda: machine.status.oldest is not None)
    first.seconds_to_finish = 0.1
    await first.finish()  # As if it had died: Kafka acknowledged nothing.
    assert machine.left(gateway.slot) == ["1", "2", "3", "4", "5"]
    machine.kafka.open.set()
    await machine.shipper(gateway.slot)
    await until(lambda: machine.left(gateway.slot) == [])
    assert machine.kafka.names == ["1", "2", "3", "4", "5"]


async def test_a_batch_waits_for_the_one_before_it_that_kafka_has_not_taken(machine: Machine) -> None:
    class Retrying(Kafka):
        async def publish(self, records: Sequence[Record | RefusedRecord]) -> None:
            if "1" in names(records):
                await self.open.wait()
            self.taken.extend(records)

    gateway, kafka = machine.gateway(), Retrying()
    gateway.append(records("1", "2", "3"))
    gateway.append(records("4", "5", "6"))
    await machine.shipper(gateway.slot, kafka)
    await asyncio.sleep(0.3)
    assert kafka.names == []
    kafka.open.set()
    await until(lambda: machine.left(gateway.slot) == [])
    assert kafka.names == ["1", "2", "3", "4", "5", "6"]


async def test_the_slot_of_a_gateway_that_died_is_shipped_by_another_gateways_shipper(machine: Machine) -> None:
    dead, alive = machine.gateway(), machine.gateway()
    dead.append(records("left behind"))
    dead.close()
    await machine.shipper(alive.slot)
    await until(lambda: machine.kafka.names == ["left behind"])
    await until(lambda: machine.left(dead.slot) == [])


async def test_the_slot_of_a_running_gateway_is_left_to_its_own_shipper(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.shipper.shipper._ADOPT_SECONDS", 0.01)
    other, own = machine.gateway(), machine.gateway()
    other.append(records("not yours"))
    await machine.shipper(own.slot)
    own.append(records("mine"))
    await until(lambda: machine.kafka.names == ["mine"])
    await asyncio.sleep(0.2)
    assert machine.left(other.slot) == ["not yours"]
    lock = lock_for_shipping(other.slot)
    assert lock is not None
    lock.close()


async def test_two_shippers_never_ship_one_slot_together(machine: Machine) -> None:
    gateway, slow = machine.gateway(), Kafka()
    await machine.shipper(gateway.slot, slow)
    gateway.append(records("1", "2"))
    await until(lambda: machine.status.oldest is not None)
    await machine.shipper(gateway.slot)
    await asyncio.sleep(0.2)
    assert machine.kafka.taken == []
    machine.shippers[0].seconds_to_finish = 0.0
    await machine.shippers[0].finish()
    await until(lambda: machine.kafka.names == ["1", "2"])


async def test_the_backlog_is_shipped_when_the_shipper_stops(machine: Machine) -> None:
    gateway = machine.gateway()
    shipper = await machine.shipper(gateway.slot)
    gateway.append(records(*map(str, range(20))))
    await shipper.finish()
    assert machine.kafka.names == [str(n) for n in range(20)]
    assert machine.left(gateway.slot) == []


async def test_an_error_in_shipping_is_reported_and_shipping_is_retried(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, broken = SpoolReader.read, [True]

    def read(*arguments: Any) -> Any:
        if broken:
            raise OSError("the disk says no")
        return original(*arguments)

    monkeypatch.setattr(SpoolReader, "read", read)
    gateway = machine.gateway()
    gateway.append(records("1"))
    await machine.shipper(gateway.slot)
    await until(lambda: "the disk says no" in machine.status.error)
    broken.clear()
    await until(lambda: machine.kafka.names == ["1"])


async def test_small_events_overtake_a_large_one_and_the_cursor_waits_for_it(machine: Machine) -> None:
    gateway, gate = machine.gateway(), Gate()
    await machine.shipper(gateway.slot, build=lambda: gate)
    gateway.append(records("large", size=10 * LARGE))
    gateway.append(records("1", "2", "3", "4", "5"))
    await until(lambda: gate.turns > 0)
    gateway.append(records("6", "7"))
    await until(lambda: machine.kafka.names == ["1", "2", "3", "4", "5", "6", "7"])
    assert machine.left(gateway.slot) == ["large", "1", "2", "3", "4", "5", "6", "7"]
    gate.open.set()
    await until(lambda: machine.left(gateway.slot) == [])
    assert machine.kafka.names[-1] == "large"


async def test_large_events_are_shipped_in_order_and_again_with_what_overtook_them_after_a_crash(
    machine: Machine,
) -> None:
    gateway, gate = machine.gateway(), Gate()
    first = await machine.shipper(gateway.slot, build=lambda: gate)
    gateway.append([*records("large 1", "large 2", size=2 * LARGE), *records("1", "2")])
    await until(lambda: machine.kafka.names == ["1", "2"])
    first.seconds_to_finish = 0.0
    await first.finish()  # As if it had died.
    gate.open.set()
    machine.kafka.taken.clear()
    await machine.shipper(gateway.slot, build=lambda: gate)
    await until(lambda: machine.left(gateway.slot) == [])
    assert sorted(machine.kafka.names) == ["1", "2", "large 1", "large 2"]
    assert machine.kafka.names.index("large 1") < machine.kafka.names.index("large 2")


async def test_large_events_of_a_batch_are_published_together(machine: Machine) -> None:
    gateway, gate = machine.gateway(), Gate()
    gate.open.set()
    gateway.append(records(*(f"large {number}" for number in range(5)), size=9 * LARGE))
    await machine.shipper(gateway.slot, build=lambda: gate)
    await until(lambda: machine.left(gateway.slot) == [])
    assert machine.kafka.names == [f"large {number}" for number in range(5)]
    assert machine.kafka.batches == 2, "three records are read at once here"


async def test_a_slot_waits_while_too_many_large_events_are_on_their_way(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.gateway.shipper.window._MAX_LARGE_BYTES", 3 * LARGE)
    gateway, gate = machine.gateway(), Gate()
    await machine.shipper(gateway.slot, build=lambda: gate)
    gateway.append(records("large 1", "large 2", size=2 * LARGE))
    await until(lambda: gate.turns > 0)
    gateway.append(records("1"))
    await asyncio.sleep(0.3)
    assert machine.kafka.names == []
    gate.open.set()
    await until(lambda: len(machine.kafka.names) == 3)
    assert machine.kafka.names[0] == "large 1"


async def test_a_large_event_whose_redaction_fails_for_now_is_shipped_later(machine: Machine) -> None:
    builds: list[Gate] = []

    def build() -> Gate:
        builds.append(gate := Gate())
        gate.open.set()
        if len(builds) == 1:
            raise OSError("no model")
        return gate

    gateway = machine.gateway()
    gateway.append([*records("large", size=2 * LARGE), *records("1")])
    await machine.shipper(gateway.slot, build=build)
    await until(lambda: machine.left(gateway.slot) == [])
    assert set(machine.kafka.names) == {"large", "1"}
