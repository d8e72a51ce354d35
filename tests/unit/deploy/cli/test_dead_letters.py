"""`ratchet dlq replay`: what was not redacted yet goes through the spool; what is skipped is counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.cli.app import app
from deploy.cli.dead_letters import to_spool
from schemas import catalog
from services.gateway.settings import GatewaySettings
from shared.errors import InvalidMessage
from shared.kafka import dead_letters
from shared.kafka.dead_letters import DeadLetter, send_again
from shared.privacy.encryption import DecryptionFailed, load_cipher
from shared.spool import Record, SpoolReader, list_slots, lock_for_shipping
from shared.spool.slots import has_owner, take_slot

PARENT = "00-" + "1" * 32 + "-" + "2" * 16 + "-01"


@dataclass
class Producer:
    sent: list[str] = field(default_factory=list)

    async def send_and_wait(self, topic: str, value: bytes, **_: Any) -> None:
        self.sent.append(topic)


class Broker(Producer):
    """Takes what is sent, and what is committed."""

    async def commit(self, offsets: Any) -> None:
        pass


def letter(topic: str) -> DeadLetter:
    return DeadLetter(7, b"k", b"raw text", "no JSON", {catalog.HEADER_TOPIC: topic, "traceparent": PARENT})


async def test_a_dead_letter_that_never_reached_its_topic_is_not_sent_there() -> None:
    producer, taken = Producer(), list[DeadLetter]()
    logged, submitted = letter("predictions.logged.v1"), letter("predictions.submitted.v1")
    await send_again(producer, submitted, "gateway", taken.append)
    await send_again(producer, logged, "gateway", taken.append)
    assert (producer.sent, taken) == (["predictions.submitted.v1"], [logged])
    with pytest.raises(InvalidMessage, match="dead letter 7 never reached"):
        await send_again(producer, logged, "gateway")
    await send_again(producer, logged, "prediction_log")
    assert producer.sent[1:] == ["predictions.logged.v1"]


def test_the_gateways_own_events_are_shipped_again_by_way_of_its_spool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(tmp_path))
    settings = GatewaySettings.load()
    with pytest.raises(InvalidMessage, match="no gateway has a spool"):
        to_spool(letter("feedback.given.v1"))
    assert not list_slots(settings.spool_folder), "nobody would ship it from here"
    take_slot(settings.spool_folder).close()
    to_spool(letter("feedback.given.v1"))
    (slot,) = list_slots(settings.spool_folder)
    assert not has_owner(slot)  # So a shipper adopts it.
    with lock_for_shipping(slot) or pytest.fail():
        reader = SpoolReader(slot, load_cipher(settings.secrets_folder, "spool"))
        records = [spooled.record for spooled in reader.read(10, 10_000)]
    assert records == [Record("feedback.given.v1", b"k", b"raw text", (("traceparent", PARENT.encode()),))]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (2, "1 dead letters sent again to prediction_log; 2 that no key decrypts skipped for good"),
        (0, "1 dead letters sent again to prediction_log"),
    ],
)
def test_a_replay_says_how_many_dead_letters_it_skipped_for_good(
    monkeypatch: pytest.MonkeyPatch, broken: int, said: str
) -> None:
    good = letter("predictions.logged.v1")
    read = [*[replace(good, broken=DecryptionFailed("another key"))] * broken, good]

    async def pending(*_: Any) -> AsyncIterator[DeadLetter]:
        for found in read:
            yield found

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[Broker]:
        yield Broker()

    for name, fake in (("_read", pending), ("_consumer", opened), ("open_producer", opened)):
        monkeypatch.setattr(dead_letters, name, fake)
    result = CliRunner().invoke(app, ["dlq", "replay", "prediction_log", "--skip-broken"], env={"COLUMNS": "200"})
    assert (result.exit_code, result.output.strip()) == (0, said)
