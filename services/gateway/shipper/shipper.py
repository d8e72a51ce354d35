"""The shipper: a process beside each gateway that brings the spool to Kafka, redacted, in order, and only once acked.

consumes  the spool's slots · predictions.submitted · tasks.changed (as a table)
does      redacts, publishes, and moves a slot's cursor when Kafka has everything before it
produces  predictions.logged · feedback.given · requests.observed

A crash between acknowledgement and cursor ships a record twice, with the same event id. It ships its own gateway's
slot, and those of gateways that died. When its gateway is gone it ends too; the next gateway's shipper goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import uvloop

from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import STATUS_SECONDS, ShipperStatus
from services.gateway.processes.supervisor import exit_with_parent
from services.gateway.settings import GatewaySettings
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RecordRedactor, RefusedRecord
from services.gateway.shipper.submitted import SubmittedPredictions
from services.gateway.tasks.snapshot import TaskTable
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import DeadLetterPublisher
from shared.privacy.encryption import Cipher, load_cipher
from shared.privacy.redaction import Redactor
from shared.service import Service, run
from shared.spool import Position, Record, SpoolReader, lock_for_shipping, slots
from shared.spool.slots import has_owner

NAME = "gateway"
_POLL_SECONDS = 0.05
_GATHER_SECONDS = 0.1
"""Between two batches while there is little: what a batch costs by itself, it costs for more records then. At 1,700
requests/s this is a third less of the processor than 0.02, and answers that a batch holds up are held up less often."""
_NICER = 10
"""Where processors are short, answers come first: what is in the spool can wait."""
_LOOK_SECONDS = 2.0
_LONGEST_PAUSE = 15.0
_ORPHAN_SECONDS = 2.0

logger = logging.getLogger(__name__)


class Shipper:
    """Ships slots until it is told to finish."""

    def __init__(
        self,
        settings: GatewaySettings,
        own: Path | None,
        cipher: Cipher,
        redaction: RecordRedactor,
        outlet: Callable[[], BatchPublisher],
        status: ShipperStatus,
    ) -> None:
        self._settings = settings
        self._own = own
        self._cipher = cipher
        self._redaction = redaction
        self._outlet = outlet
        self._status = status
        self._ending = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.seconds_to_finish = settings.gateway_shipper_stop_seconds

    async def start(self) -> None:
        """Begin to ship. Again: nothing more."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._adopt_forever())]
            if self._own is not None:
                self._tasks.append(asyncio.create_task(self._ship_own()))

    async def finish(self) -> None:
        """Ship what waits, as far as `seconds_to_finish` goes. The rest stays in the spool."""
        self._ending.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.seconds_to_finish)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ship_own(self) -> None:
        """Our gateway's slot, until the end; waits while another shipper is still emptying it."""
        assert self._own is not None  # noqa: S101 - `start` looked
        outlet = self._outlet()
        pause = 0.5
        while True:
            try:
                if (lock := lock_for_shipping(self._own)) is not None:
                    with lock:
                        await self._ship(self._own, outlet, self._ending.is_set)
                    break
                await self._sleep(_POLL_SECONDS)
            except Exception as error:  # It must go on after a bug; it is logged with its trace, and told by /readyz.
                self._status.error = repr(error)
                logger.exception("shipping failed, again in %.1f s", pause)
                await self._sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            if self._ending.is_set():
                break
        await outlet.close()

    async def _adopt_forever(self) -> None:
        """Slots of gateways that died, each until it is empty."""
        outlet = self._outlet()
        while not self._ending.is_set():
            try:
                for slot in slots(self._settings.spool_folder):
                    if slot == self._own or has_owner(slot) or (lock := lock_for_shipping(slot)) is None:
                        continue
                    with lock:
                        await self._ship(slot, outlet, lambda: True)
            except Exception as error:  # As above.
                self._status.error = repr(error)
                logger.exception("shipping an abandoned slot failed, again in %.0f s", _LONGEST_PAUSE)
                await self._sleep(_LONGEST_PAUSE)
            await self._sleep(_LOOK_SECONDS)
        await outlet.close()

    async def _ship(self, slot: Path, outlet: BatchPublisher, once_empty: Callable[[], bool]) -> None:
        """A slot from its cursor on, until it is empty and `once_empty` says that this is the end.

        The next batch is read and redacted while the one before it is on its way.
        """
        reader = SpoolReader(slot, self._cipher)
        after: Position | None = None
        on_its_way: asyncio.Task[None] | None = None
        try:
            while True:
                limits = self._settings.gateway_shipper_records, self._settings.gateway_shipper_bytes
                spooled = reader.read(*limits, after)
                self._tell(slot, reader)
                if not spooled:
                    if on_its_way is not None:
                        await on_its_way
                        on_its_way = after = None  # The cursor is there now; it may move on by itself.
                    elif once_empty():
                        return
                    else:
                        await self._sleep(_POLL_SECONDS)
                    continue
                little = 2 * len(spooled) < limits[0]
                clean = await self._redaction.clean([one.record for one in spooled])
                if on_its_way is not None:
                    await on_its_way
                after = spooled[-1].position
                on_its_way = asyncio.create_task(self._deliver(outlet, clean, reader, after))
                if little:
                    await self._sleep(_GATHER_SECONDS)
        finally:
            if on_its_way is not None:
                on_its_way.cancel()
                await asyncio.gather(on_its_way, return_exceptions=True)

    async def _deliver(
        self, outlet: BatchPublisher, records: list[Record | RefusedRecord], reader: SpoolReader, position: Position
    ) -> None:
        await outlet.deliver(records)
        reader.advance(position)

    def _tell(self, slot: Path, reader: SpoolReader) -> None:
        if slot == self._own:
            backlog = reader.backlog
            self._status.oldest, self._status.waiting_bytes = backlog.oldest, backlog.bytes
            self._status.torn_bytes, self._status.quarantined = reader.torn_bytes, reader.quarantined

    async def _sleep(self, seconds: float) -> None:
        """Sleep, or wake at once when it is time to finish."""
        if self._ending.is_set():
            await asyncio.sleep(min(seconds, _POLL_SECONDS))
            return
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ending.wait(), seconds)


def build(settings: GatewaySettings | None = None, own: Path | None = None, parent: int | None = None) -> Service:
    """The process, wired but not started. `own`: its gateway's slot; `parent`: its gateway's process id."""
    settings = settings or GatewaySettings.load()
    status = ShipperStatus(pid=os.getpid())
    broker = build_broker(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    tasks = TaskTable(consumers.table(TaskChanged))
    cipher = load_cipher(settings.secrets_folder, "spool")
    surrogates = load_or_create_key(settings.secrets_folder, "surrogates")
    redaction = RecordRedactor(tasks, lambda: Redactor(surrogates), settings.gateway_redaction_cache, status)

    dead_letters = DeadLetterPublisher(broker, NAME, settings)

    async def dead_letter(record: Record, error: Exception) -> None:
        await dead_letters.publish(record.topic, record.key, record.value, error, record.headers)

    def outlet() -> BatchPublisher:
        return BatchPublisher(
            settings, dead_letter, lambda record: quarantine_record(settings.spool_folder, cipher, record), status
        )

    taking_in = outlet()
    intake = SubmittedPredictions(
        tasks, redaction, taking_in, load_or_create_key(settings.secrets_folder, "subjects"), status
    )
    intake.subscribe(consumers, settings.gateway_intake_records)
    shipper = Shipper(settings, own, cipher, redaction, outlet, status)

    async def tell_forever() -> None:
        while own is not None:
            with contextlib.suppress(OSError):  # A full disk: the gateway sees how old the file is.
                status.write(own)
            await asyncio.sleep(STATUS_SECONDS)

    async def watch_parent() -> None:
        """Without its gateway a shipper ends after the batch that it holds."""
        if parent is not None:
            await exit_with_parent(parent, "the gateway is gone: the next one's shipper goes on", hurry)

    def hurry() -> None:
        shipper.seconds_to_finish = _ORPHAN_SECONDS

    return Service(
        NAME,
        broker,
        prepare=[shipper.start],
        background=[redaction.load, tell_forever, watch_parent],
        connected=[tasks.wait_until_read],
        close=[shipper.finish, taking_in.close],
        serves_before_broker=True,
    )


def quarantine_record(folder: Path, cipher: Cipher, record: Record) -> Path:
    """Keep a record that Kafka takes in no form, sealed, beside the slots. Returns where."""
    path = folder / "too-large" / f"{record.topic}-{time.time_ns()}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cipher.encrypt(record.value))
    return path


def _give_way() -> None:
    os.nice(_NICER)
    # Linux gives every session the same share, whatever its processes' niceness, but for this: sched(7), autogroup.
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICER))


def main() -> None:
    """Entry point: `python -m services.gateway.shipper.shipper [SLOT PARENT]`.

    Without a slot it empties those that were left behind.
    """
    _give_way()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    slot, parent = (Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) == 3 else (None, None)
    uvloop.run(run([build(own=slot, parent=parent)]))


if __name__ == "__main__":
    main()
