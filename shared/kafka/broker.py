"""The FastStream broker that a service consumes and publishes with: its start, its halt, and how it reads records."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

from aiokafka import ConsumerRecord
from faststream.kafka import KafkaBroker, KafkaMessage

from shared.errors import MustStop
from shared.kafka.clients import broker_options, open_producer, stop_client
from shared.settings import Settings
from shared.tracing import consumer_middlewares, trace_headers_of


class Broker(KafkaBroker):
    """A broker that starts its subscribers concurrently and holds the problem that must stop the process.

    Concurrently, because each subscriber may wait for its consumer group (tansu: five seconds).
    """

    problem: MustStop | None = None
    settings: Settings

    def halt(self, problem: MustStop) -> None:
        """Make `halted` return. The first problem is kept: a later one may be its consequence."""
        self.problem = self.problem or problem
        self._halted.set()

    async def halted(self) -> MustStop:
        """Wait until a handler or a store reports that continuing would lose or duplicate data."""
        while self.problem is None:
            await self._halted.wait()
        return self.problem

    @cached_property
    def _halted(self) -> asyncio.Event:
        return asyncio.Event()

    async def start(self) -> None:
        """Connect and subscribe. After a failure it may be called again: subscribers that run stay running.

        Raises DependencyUnavailable when no broker answers, ConfigurationError when the broker refuses the connection.
        """
        async with open_producer(self.settings, "ratchet-start"):
            pass  # FastStream keeps no reference to a producer whose start failed, so that nobody could stop it.
        await self.connect()
        starting = [_start_or_stop(subscriber) for subscriber in self.subscribers if not subscriber.running]
        for outcome in await asyncio.gather(*starting, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome
        self.running = True


async def _start_or_stop(subscriber: Any) -> None:
    """Start a subscriber, or stop what has started of its consumer: FastStream makes another one at the next start."""
    try:
        await subscriber.start()
    except Exception:
        if subscriber.consumer is not None:
            await stop_client(subscriber.consumer, ", ".join(subscriber.topic_names))
        raise


def build_broker(settings: Settings, service: str) -> Broker:
    """Return a broker whose producer waits for all replicas. It connects on `start()`, not here."""
    broker = Broker(
        client_id=f"ratchet-{service}",
        **broker_options(settings),
        allow_auto_create_topics=False,
        logger=None,
        middlewares=consumer_middlewares(settings, service),
    )
    broker.settings = settings
    return broker


async def parse_without_headers(raw: Any, original: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """Return FastStream's message without headers, with the record (or the batch) in `raw_message` as it came.

    FastStream expects every header to be UTF-8 text. Tracers write others, for which it would skip the whole batch,
    neither handled nor dead-lettered. Ratchet reads headers with `delivery.record_headers` instead.
    """
    batch = isinstance(raw, tuple | list)
    first = replace(raw[0] if batch else raw, headers=())
    message = await original((first,) if batch else first)
    message.raw_message = raw
    return message


async def parse_with_trace(raw: Any, original: Callable[[Any], Awaitable[KafkaMessage]]) -> KafkaMessage:
    """`parse_without_headers`, plus the headers FastStream's tracing looks for: of a record, or of each in a batch."""
    message = await parse_without_headers(raw, original)
    message.correlation_id = message.message_id
    if isinstance(raw, tuple | list):
        traces = filter(None, (_trace_of(record) for record in raw))
        message.batch_headers = [{"correlation_id": trace["traceparent"], **trace} for trace in traces]
    else:
        message.headers = _trace_of(raw)
    return message


def _trace_of(record: ConsumerRecord) -> dict[str, str]:
    return {name: value.decode("ascii") for name, value in trace_headers_of(record.headers)}


async def leave_undecoded(message: KafkaMessage) -> Any:
    """Return the body as it came: `Consumers` decodes it, so that malformed JSON reaches the dead letters too."""
    return message.body
