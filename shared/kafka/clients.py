"""The options of every Kafka client (FastStream, aiokafka, kafka-python), made from `Settings`, and clients with them.

Every connection to the broker takes its options from here, so that a managed Kafka (TLS, passwords, client
certificates) works everywhere once it works anywhere. An error in the settings names the variable to set.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.conn import get_ip_port_afi
from aiokafka.errors import KafkaConnectionError, KafkaError
from faststream.kafka import KafkaBroker
from faststream.security import BaseSecurity, SASLPlaintext, SASLScram256, SASLScram512
from kafka import KafkaAdminClient
from kafka.errors import KafkaError as AdminError

from shared.errors import ConfigurationError, RatchetError
from shared.kafka.diagnostics import diagnose, diagnose_sync
from shared.settings import Settings

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# A dead letter is an encrypted message with the reason of its failure: the largest message must fit too.
MAX_DEAD_LETTER_BYTES = MAX_MESSAGE_BYTES + 64 * 1024
# aiokafka compresses LZ4 at its slowest level: zstd takes a quarter of its time, and makes text a quarter smaller.
COMPRESSION = "zstd"
T = TypeVar("T")
logger = logging.getLogger(__name__)
_END_OFFSETS_SECONDS = 10.0
_STOP_SECONDS = 20.0
"""With the seconds of a service's requests it fits into the half minute after which supervisors kill a service."""
# How long a client may not know that a topic was made anew. A group's leader that does not know assigns it to no
# member; with the default of five minutes nothing would be read for as long.
_METADATA_MS = 10_000
# While a broker is away every client retries in several loops and logs each attempt: not ten lines a second.
_RETRY_MS = 500
_ADMIN_LIMITS = {"request_timeout_ms": 10_000, "bootstrap_timeout_ms": 5_000}


def servers(settings: Settings) -> list[str]:
    """Return the bootstrap servers, `host:port` each; clients take 9092 where the port is left out.

    Raises ConfigurationError if there is none, or one that clients cannot read.
    """
    names = [server.strip() for server in settings.kafka.split(",") if server.strip()]
    if not names:
        raise ConfigurationError("no Kafka broker is configured", "Set RATCHET_KAFKA=host:port")
    for name in names:
        try:
            get_ip_port_afi(name)
        except ValueError as error:
            raise ConfigurationError(
                f"no broker's address in RATCHET_KAFKA: {name}", "Set RATCHET_KAFKA=host:port"
            ) from error
    return names


def broker_options(settings: Settings) -> dict[str, Any]:
    """Return keyword arguments of FastStream's KafkaBroker: servers, security, and a producer that loses nothing.

    Raises ConfigurationError.
    """
    return {
        "bootstrap_servers": servers(settings), "security": _security(settings), "metadata_max_age_ms": _METADATA_MS,
        **producer_options(settings),
    }  # fmt: skip


def client_options(settings: Settings) -> dict[str, Any]:
    """Return keyword arguments of any client of aiokafka or kafka-python. Raises ConfigurationError."""
    _check(settings)
    options: dict[str, Any] = {"bootstrap_servers": servers(settings), "security_protocol": settings.kafka_security}
    if context := _ssl_context(settings):
        options["ssl_context"] = context
    return options | _sasl(settings)


def producer_options(settings: Settings) -> dict[str, Any]:
    """Return the options of a safe producer: all replicas acknowledge, and a retry does not add a second record.

    (The latter where the broker supports idempotence.) Without it too, order within a partition holds: aiokafka sends
    a partition's next batch only after the previous one was acknowledged.
    """
    return {
        "acks": "all",
        "enable_idempotence": settings.kafka_idempotence,
        "compression_type": COMPRESSION,
        "max_request_size": MAX_DEAD_LETTER_BYTES,
        "retry_backoff_ms": _RETRY_MS,
    }


def build_producer(settings: Settings, client_id: str) -> AIOKafkaProducer:
    """Return a producer that is not started yet. Needs a running event loop."""
    return AIOKafkaProducer(client_id=client_id, **client_options(settings), **producer_options(settings))


def connect_admin(settings: Settings, client_id: str, wait_seconds: float = 0.0, **options: Any) -> KafkaAdminClient:
    """Return a connected kafka-python admin client; the caller closes it.

    Raises DependencyUnavailable when no broker answers for `wait_seconds`, ConfigurationError when the broker refuses
    the connection.
    """
    connection = client_options(settings)
    deadline = time.monotonic() + wait_seconds
    while True:
        try:
            return KafkaAdminClient(client_id=client_id, **{**_ADMIN_LIMITS, **connection, **options})
        except (AdminError, OSError) as error:
            reason = diagnose_sync(connection, error)
            if isinstance(reason, ConfigurationError) or time.monotonic() >= deadline:
                raise reason from error
            time.sleep(0.5)


@contextmanager
def open_admin(settings: Settings, client_id: str, wait_seconds: float = 0.0) -> Iterator[KafkaAdminClient]:
    """Connect an admin client for the length of a `with`. Raises as `connect_admin` does, for its requests too."""
    admin = connect_admin(settings, client_id, wait_seconds)
    try:
        yield admin
    except (AdminError, OSError) as error:
        raise diagnose_sync(client_options(settings), error) from error
    finally:
        admin.close()


async def connection_error(settings: Settings, error: BaseException) -> RatchetError:
    """Return the error to raise, with its way out, when a client failed to connect with `error`."""
    return await diagnose(client_options(settings), error)


@asynccontextmanager
async def open_consumer(settings: Settings, *topics: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """Start a consumer for the length of a `with`. Raises as `connect_admin` does when it cannot connect."""
    consumer = AIOKafkaConsumer(*topics, **client_options(settings), **{"enable_auto_commit": False, **options})
    try:
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            raise await connection_error(settings, error) from error
        yield consumer
    finally:
        await stop_client(consumer, str(options.get("group_id") or "a consumer without a group"))


async def start_producer(producer: AIOKafkaProducer, settings: Settings) -> None:
    """Start a producer, or stop what has started of it. Raises as `connect_admin` does when it cannot connect.

    A broker that is still starting may answer before it knows of any broker, itself included. aiokafka takes this for
    a cluster without topics and keeps its one connection; when that breaks, it never reconnects.
    """
    try:
        await producer.start()
        if not producer.client.cluster.brokers():
            raise KafkaConnectionError("the broker answers but knows of no broker yet: it is still starting")
    except BaseException as error:
        await producer.stop()
        if isinstance(error, KafkaError | OSError):
            raise await connection_error(settings, error) from error
        raise


@asynccontextmanager
async def open_producer(settings: Settings, client_id: str) -> AsyncIterator[AIOKafkaProducer]:
    """Start a producer for the length of a `with`. Raises as `start_producer`."""
    producer = build_producer(settings, client_id)
    await start_producer(producer, settings)
    try:
        yield producer
    finally:
        await stop_client(producer, client_id)


async def stop_client(client: AIOKafkaConsumer | AIOKafkaProducer | KafkaBroker, name: str) -> None:
    """Stop a client. What is not committed is delivered again.

    aiokafka may wait for ever for a member's heartbeat to end (its issue 773), so after a while it is left behind. Its
    group excludes a member that no longer polls.
    """
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await client.stop()
    except TimeoutError:
        logger.warning("%s: its Kafka clients did not stop within %.0f s", name, _STOP_SECONDS)
    except (KafkaError, OSError) as error:
        logger.info("%s: its Kafka clients stopped with %r", name, error)


async def end_offsets(settings: Settings, partitions: Sequence[TopicPartition]) -> Mapping[TopicPartition, int]:
    """Return the offset that each partition's next record will get. Exact on any broker.

    tansu answers ListOffsets with the first record of the last batch plus one; its fetches report the true end. A
    broker without idempotence is taken for tansu. Raises DependencyUnavailable when the broker does not answer.
    """
    try:
        async with asyncio.timeout(_END_OFFSETS_SECONDS), open_consumer(settings, group_id=None) as consumer:
            ends: dict[TopicPartition, int] = await consumer.end_offsets(list(partitions))
            unsure = [] if settings.kafka_idempotence else [partition for partition in partitions if ends[partition]]
            if unsure:
                ends |= await _fetched_ends(consumer, {partition: ends[partition] - 1 for partition in unsure})
            return ends
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connection_error(settings, error) from error


async def has_records(settings: Settings, partition: TopicPartition, start: int) -> bool:
    """Return whether a partition has a record from offset `start` on: up to its end there may be offsets without any.

    Raises DependencyUnavailable when the broker does not answer.
    """
    options = {"group_id": None, "auto_offset_reset": "earliest"}  # Where it begins behind `start` by now.
    try:
        async with asyncio.timeout(_END_OFFSETS_SECONDS), open_consumer(settings, **options) as consumer:
            consumer.assign([partition])
            consumer.seek(partition, start)
            answered: dict[int, int | None] = {}
            while not await consumer.getmany(timeout_ms=200):
                position, at = await consumer.position(partition), consumer.last_poll_timestamp(partition)
                if answered.setdefault(position, at) != at:  # A fetch at this position was answered.
                    return bool(await consumer.getmany(timeout_ms=0))
            return True
    except (KafkaError, OSError, TimeoutError) as error:
        raise await connection_error(settings, error) from error


@dataclass(frozen=True)
class TopicDescription:
    """What a broker reports of a topic. `topic_id`: given when the topic was made; a topic made anew has another."""

    topic_id: str
    partitions: tuple[int, ...]


async def describe_topics(settings: Settings, names: Sequence[str]) -> dict[str, TopicDescription]:
    """Describe topics by name, without those that are missing. Raises DependencyUnavailable."""
    return await asyncio.to_thread(_describe_topics, settings, names)


async def topic_ids(settings: Settings, names: Sequence[str]) -> dict[str, str]:
    """Return the ids of topics by name, without those that are missing. Raises DependencyUnavailable."""
    return {name: topic.topic_id for name, topic in (await describe_topics(settings, names)).items()}


def _describe_topics(settings: Settings, names: Sequence[str]) -> dict[str, TopicDescription]:
    with open_admin(settings, "ratchet-topic-ids") as admin:
        topics = admin.describe_topics(list(names))
    return {
        topic["name"]: TopicDescription(
            str(topic["topic_id"]), tuple(partition["partition_index"] for partition in topic["partitions"])
        )
        for topic in topics
        if not topic["error_code"]
    }


async def _fetched_ends(consumer: AIOKafkaConsumer, last: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
    consumer.assign(list(last))
    for partition, offset in last.items():
        consumer.seek(partition, offset)
    while True:
        await consumer.getmany(timeout_ms=200)
        ends = {partition: consumer.highwater(partition) for partition in last}
        if all(end is not None for end in ends.values()):
            return {partition: int(end) for partition, end in ends.items() if end is not None}


def _check(settings: Settings) -> None:
    """Raise ConfigurationError for settings that contradict each other: none may silently have no effect."""
    security = settings.kafka_security
    credentials = {
        "RATCHET_KAFKA_USERNAME": settings.kafka_username,
        "RATCHET_KAFKA_PASSWORD": settings.kafka_password.get_secret_value(),
    }
    files = {
        "RATCHET_KAFKA_CA_FILE": settings.kafka_ca_file,
        "RATCHET_KAFKA_CLIENT_CERTIFICATE": settings.kafka_client_certificate,
    }
    if security.startswith("SASL"):
        if missing := [name for name, value in credentials.items() if not value]:
            raise ConfigurationError(f"RATCHET_KAFKA_SECURITY={security} needs a user", f"Set {' and '.join(missing)}")
    elif unused := [name for name, value in credentials.items() if value]:
        raise ConfigurationError(
            f"{' and '.join(unused)} would not be used: RATCHET_KAFKA_SECURITY is {security}",
            "Set RATCHET_KAFKA_SECURITY=SASL_SSL",
        )
    if not security.endswith("SSL") and (unused := [name for name, value in files.items() if value]):
        raise ConfigurationError(
            f"{' and '.join(unused)} would not be used: RATCHET_KAFKA_SECURITY is {security}",
            "Set RATCHET_KAFKA_SECURITY=SSL, or SASL_SSL with a user",
        )


def _ssl_context(settings: Settings) -> ssl.SSLContext | None:
    if not settings.kafka_security.endswith("SSL"):
        return None
    context = ssl.create_default_context()
    if settings.kafka_ca_file:
        context = _with_file(
            "RATCHET_KAFKA_CA_FILE", settings.kafka_ca_file, lambda file: ssl.create_default_context(cafile=file)
        )
    if settings.kafka_client_certificate:
        _with_file("RATCHET_KAFKA_CLIENT_CERTIFICATE", settings.kafka_client_certificate, context.load_cert_chain)
    return context


def _with_file(variable: str, file: Path, use: Callable[[Path], T]) -> T:
    try:
        return use(file)
    except OSError as error:  # ssl.SSLError, for a file that is not PEM, is one too.
        raise ConfigurationError(
            f"{variable}={file} cannot be used: {error}", f"Set {variable} to a PEM file"
        ) from error


def _sasl(settings: Settings) -> dict[str, Any]:
    if not settings.kafka_security.startswith("SASL"):
        return {}
    return {
        "sasl_mechanism": settings.kafka_sasl_mechanism,
        "sasl_plain_username": settings.kafka_username,
        "sasl_plain_password": settings.kafka_password.get_secret_value(),
    }


def _security(settings: Settings) -> BaseSecurity:
    _check(settings)
    context = _ssl_context(settings)
    if not settings.kafka_security.startswith("SASL"):
        return BaseSecurity(ssl_context=context)
    mechanisms = {"PLAIN": SASLPlaintext, "SCRAM-SHA-256": SASLScram256, "SCRAM-SHA-512": SASLScram512}
    return mechanisms[settings.kafka_sasl_mechanism](
        settings.kafka_username, settings.kafka_password.get_secret_value(), ssl_context=context
    )
