"""The shipper process beside each gateway: moves events from the spool to Kafka, redacted and in order.

consumes  the spool's slots · predictions.submitted · tasks.changed (as a table)
does      redacts, publishes, and advances a slot's cursor when Kafka has acknowledged everything before it; uploads
          kept media to the artifact store (media.py)
produces  predictions.logged · feedback.given · requests.observed

A crash between acknowledgement and cursor ships a record twice, with the same event id. A shipper ships its own
gateway's slot and adopts the slots of gateways that died. It exits when its gateway is gone; the next gateway's shipper
adopts what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvloop

from schemas.tasks import TaskChanged
from services.gateway.observability.shipper_status import STATUS_SECONDS, ShipperStatus
from services.gateway.processes.supervisor import exit_with_parent
from services.gateway.recording.external import ExternalPredictions, load_identifiers
from services.gateway.settings import GatewaySettings
from services.gateway.shipper.media import MediaUploader
from services.gateway.shipper.publisher import BatchPublisher
from services.gateway.shipper.redaction import RecordRedactor
from services.gateway.shipper.submitted import SubmittedPredictions
from services.gateway.shipper.window import Window
from shared.identity import load_or_create_key
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.kafka.publisher import DeadLetterPublisher
from shared.privacy.encryption import Cipher, load_cipher
from shared.privacy.redaction import Redactor
from shared.service import Service, run
from shared.spool import Record, SpoolPosition, SpoolReader, list_slots, lock_for_shipping
from shared.spool.slots import has_owner
from shared.storage.media import MediaStore
from shared.tasks import end_tasks

NAME = "gateway"
_POLL_SECONDS = 0.05
_GATHER_SECONDS = 0.1
"""Between two batches while the spool is nearly empty. Larger batches cost less: at 1,700 requests/s this takes a third
less processor time than 0.02, and delays fewer answers."""
_NICENESS = 10
"""Answers have priority over shipping where processors are short."""
_ADOPT_SECONDS = 2.0
_MAX_BACKOFF_SECONDS = 15.0
_ORPHAN_STOP_SECONDS = 2.0
MAX_RECORDS, MAX_BYTES = 2_000, 8 * 1024**2
"""Shipped at once: more would hold up the redaction of what follows."""
_REDACTIONS_REMEMBERED = 20_000
"""Texts; the same system prompt comes with each request."""

logger = logging.getLogger(__name__)


class Shipper:
    """Ships slots until `finish`."""

    def __init__(
        self,
        settings: GatewaySettings,
        own_slot: Path | None,
        cipher: Cipher,
        redactor: RecordRedactor,
        new_publisher: Callable[[], BatchPublisher],
        status: ShipperStatus,
    ) -> None:
        self._settings = settings
        self._own_slot = own_slot
        self._cipher = cipher
        self._redactor = redactor
        self._new_publisher = new_publisher
        self._status = status
        self._finishing = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self.seconds_to_finish = settings.gateway_shipper_stop_seconds

    async def start(self) -> None:
        """Start shipping. Idempotent."""
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._adopt_orphaned_slots())]
            if self._own_slot is not None:
                self._tasks.append(asyncio.create_task(self._ship_own()))

    async def finish(self) -> None:
        """Ship the backlog for at most `seconds_to_finish`. The rest stays in the spool."""
        self._finishing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=self.seconds_to_finish)
        await end_tasks(self._tasks)

    async def _ship_own(self) -> None:
        """Ship the own gateway's slot until `finish`; waits while another shipper has its lock."""
        assert self._own_slot is not None  # noqa: S101 - `start` checked
        publisher = self._new_publisher()
        backoff = 0.5
        while True:
            try:
                if (lock := lock_for_shipping(self._own_slot)) is not None:
                    with lock:
                        await self._ship(self._own_slot, publisher, self._finishing.is_set)
                    break
                await self._sleep(_POLL_SECONDS)
            except Exception as error:  # Shipping continues after any error; it is logged, and reported by /readyz.
                self._status.error = repr(error)
                logger.exception("shipping failed; retrying in %.1f s", backoff)
                await self._sleep(backoff)
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            if self._finishing.is_set():
                break
        await publisher.close()

    async def _adopt_orphaned_slots(self) -> None:
        """Ship the slots of gateways that died, each until it is empty."""
        publisher = self._new_publisher()
        while not self._finishing.is_set():
            try:
                for slot in list_slots(self._settings.spool_folder):
                    if slot == self._own_slot or has_owner(slot) or (lock := lock_for_shipping(slot)) is None:
                        continue
                    with lock:
                        await self._ship(slot, publisher, lambda: True)
            except Exception as error:  # As above.
                self._status.error = repr(error)
                logger.exception("shipping an orphaned slot failed; retrying in %.0f s", _MAX_BACKOFF_SECONDS)
                await self._sleep(_MAX_BACKOFF_SECONDS)
            await self._sleep(_ADOPT_SECONDS)
        await publisher.close()

    async def _ship(self, slot: Path, publisher: BatchPublisher, ends_when_empty: Callable[[], bool]) -> None:
        """Ship a slot from its cursor on, until it is empty and `ends_when_empty` returns True.

        The next batch is read and redacted while the previous one is being published.
        """
        reader = SpoolReader(slot, self._cipher)
        window = Window(reader, self._redactor.redact, publisher.publish)
        after: SpoolPosition | None = None
        try:
            while True:
                window.advance()
                spooled = reader.read(MAX_RECORDS, MAX_BYTES, after)
                self._update_status(slot, reader)
                if spooled:
                    await window.add(spooled)
                    after = spooled[-1].position
                    size = sum(len(item.record.value) for item in spooled)
                    if 2 * len(spooled) < MAX_RECORDS and 2 * size < MAX_BYTES:
                        await self._sleep(_GATHER_SECONDS)
                elif window:
                    await window.wait(_POLL_SECONDS)
                elif after is not None:
                    after = None  # The cursor has caught up, so it may move past damaged records.
                elif ends_when_empty():
                    return
                else:
                    await self._sleep(_POLL_SECONDS)
        finally:
            await window.close()

    def _update_status(self, slot: Path, reader: SpoolReader) -> None:
        if slot == self._own_slot:
            status, backlog = self._status, reader.backlog
            status.oldest, status.waiting_bytes = backlog.oldest, backlog.bytes
            status.incomplete_bytes, status.quarantined = reader.incomplete_bytes, reader.quarantined_segments

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake at once on `finish`."""
        if self._finishing.is_set():
            await asyncio.sleep(min(seconds, _POLL_SECONDS))
            return
        with contextlib.suppress(TimeoutError):  # `wait_for` would swallow a cancellation that comes with the event.
            async with asyncio.timeout(seconds):
                await self._finishing.wait()


def build(settings: GatewaySettings | None = None, own_slot: Path | None = None, parent: int | None = None) -> Service:
    """Wire the process without starting it. `own_slot`: its gateway's slot; `parent`: its gateway's process id."""
    settings = settings or GatewaySettings.load()
    status = ShipperStatus(pid=os.getpid())
    broker = build_broker(settings, NAME)
    consumers = Consumers(broker, NAME, settings)
    tasks = consumers.table(TaskChanged)
    cipher = load_cipher(settings.secrets_folder, "spool")
    surrogates = load_or_create_key(settings.secrets_folder, "surrogates")
    redactor = RecordRedactor(tasks, lambda: Redactor(surrogates), _REDACTIONS_REMEMBERED, status)

    dead_letters = DeadLetterPublisher(broker, NAME, settings)

    async def dead_letter(record: Record, error: Exception) -> None:
        await dead_letters.publish(record.topic, record.key, record.value, error, record.headers)

    def new_publisher() -> BatchPublisher:
        return BatchPublisher(settings, dead_letter, status)

    submitted_publisher = new_publisher()
    external = ExternalPredictions(load_identifiers(settings.secrets_folder), settings.gateway_event_bytes)
    submitted = SubmittedPredictions(tasks, redactor, submitted_publisher, external, status)
    submitted.subscribe(consumers)
    shipper = Shipper(settings, own_slot, cipher, redactor, new_publisher, status)
    media = MediaUploader(settings.media_folder, MediaStore(settings.artifacts_uri), status)

    async def write_status_forever() -> None:
        while own_slot is not None:
            with contextlib.suppress(OSError):  # On a full disk the gateway notices the old file.
                status.write(own_slot)
            await asyncio.sleep(STATUS_SECONDS)

    async def watch_parent() -> None:
        """Exit after the current batch when the gateway is gone."""
        await exit_with_parent(parent, "the gateway is gone: the next gateway's shipper continues", shorten_finish)

    async def finish() -> None:
        await asyncio.gather(shipper.finish(), media.finish(shipper.seconds_to_finish))

    def shorten_finish() -> None:
        shipper.seconds_to_finish = _ORPHAN_STOP_SECONDS

    return Service(
        NAME,
        broker,
        prepare=[shipper.start],
        background=[redactor.load, media.upload_forever, write_status_forever, watch_parent],
        connected=[partial(tasks.read_to_end, settings)],
        drain=[finish],  # It redacts by the tasks, which a consumer may still be reading.
        close=[submitted_publisher.close],
        serves_before_broker=True,
    )


def _lower_priority() -> None:
    os.nice(_NICENESS)
    # Linux gives every session the same share whatever its niceness, except for its autogroup's: sched(7).
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(_NICENESS))


def main() -> None:
    """Entry point: `python -m services.gateway.shipper.shipper [SLOT PARENT]`.

    Without a slot it ships the slots that died gateways left behind.
    """
    _lower_priority()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    slot, parent = (Path(sys.argv[1]), int(sys.argv[2])) if len(sys.argv) == 3 else (None, None)
    uvloop.run(run([build(own_slot=slot, parent=parent)]))


if __name__ == "__main__":
    main()
