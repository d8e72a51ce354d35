"""A broker that answers, and that no service can start with: one that knows of no broker yet, or refuses a topic."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, ClassVar

import pytest
from aiokafka import client
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.protocol.metadata import MetadataResponse_v1

from schemas.predictions import FeedbackGiven
from shared.errors import DependencyUnavailable
from shared.kafka import diagnostics
from shared.kafka.broker import build_broker
from shared.kafka.consumers import Consumers
from shared.settings import Settings

ADDRESS = "127.0.0.1:9"


class Connection:
    """Answers every request for metadata with the brokers that are known now."""

    brokers: ClassVar[list[tuple[int, str, int, None]]] = []
    topics: ClassVar[list[tuple[int, str, bool, list[Any]]]] = []
    opened = closed = 0

    async def send(self, request: object) -> Any:
        return MetadataResponse_v1(brokers=list(self.brokers), controller_id=-1, topics=list(self.topics))

    def connected(self) -> bool:
        return True

    def close(self, reason: object = None) -> asyncio.Future[None]:
        type(self).closed += 1
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> type[Connection]:
    class Fresh(Connection):
        pass

    async def connect(*_: object, **__: object) -> Connection:
        Fresh.opened += 1
        return Fresh()

    monkeypatch.setattr(client, "create_conn", connect)
    monkeypatch.setattr(diagnostics, "create_conn", connect)
    return Fresh


async def test_no_service_starts_on_a_broker_that_knows_no_broker(broker: type[Connection]) -> None:
    starting = build_broker(Settings(kafka=ADDRESS, kafka_idempotence=False), "log")
    with pytest.raises(DependencyUnavailable, match="still starting"):
        await starting.start()
    assert broker.opened == broker.closed
    broker.brokers = [(1, "127.0.0.1", 9, None)]
    await starting.start()
    assert starting.running
    await starting.stop()


async def test_a_service_that_tries_again_leaves_no_producer_behind_whose_start_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = build_broker(Settings(kafka=ADDRESS), "log")
    with pytest.raises(DependencyUnavailable):
        await broker.start()
    gc.collect()
    assert "Unclosed" not in caplog.text
    await broker.stop()


async def test_a_service_that_tries_again_leaves_no_consumer_behind_whose_start_failed(
    broker: type[Connection],
) -> None:
    """The gateway tries for ever: connections to a broker that refuses it a topic would become thousands."""
    broker.brokers = [(1, "127.0.0.1", 9, None)]
    broker.topics = [(TopicAuthorizationFailedError.errno, "feedback.given.v1", False, [])]
    settings = Settings(kafka=ADDRESS, kafka_idempotence=False)
    refused = build_broker(settings, "prediction_log")

    async def handle(event: FeedbackGiven) -> None: ...

    Consumers(refused, "prediction_log", settings).on(FeedbackGiven, handle)
    for _ in range(3):
        with pytest.raises(TopicAuthorizationFailedError):
            await refused.start()
        assert broker.opened == broker.closed
    await refused.stop()
