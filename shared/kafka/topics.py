"""The catalog's topics on a broker: create what is missing, find what differs, correct what can be.

Creating is idempotent and leaves existing topics as they are: an operator may have had a reason. What differs is
told at every start and by `ratchet topics list`; `ratchet topics correct` sets it as the catalog says.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaError,
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from schemas.catalog import DEAD_LETTER_RETENTION, DEAD_LETTERS, TOPICS
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.clients import MAX_DEAD_LETTER_BYTES, client_options, connect_admin
from shared.kafka.diagnostics import diagnose_sync
from shared.settings import Settings

EXISTENCE, PARTITIONS, REPLICATION = "existence", "partitions", "replication"


@dataclass(frozen=True)
class Wanted:
    """A topic as the catalog has it. `configs`: the broker's names and values."""

    name: str
    partitions: int
    configs: dict[str, str]


@dataclass(frozen=True)
class Drift:
    """One thing of a topic that is not as the catalog says: `setting` is a config's name or one of those below.

    Partitions and replication are not corrected: keys would move to other partitions, replicas to other machines.
    """

    topic: str
    setting: str
    found: str
    wanted: str

    @property
    def correctable(self) -> bool:
        return self.setting not in (PARTITIONS, REPLICATION)

    def __str__(self) -> str:
        return f"{self.topic}: {self.setting} is {self.found}, the catalog says {self.wanted}"


def create_topics(settings: Settings, wait_seconds: float = 30.0) -> list[str]:
    """Create what is missing, and wait until it can be used; returns the names created.

    Raises DependencyUnavailable if no broker answers, ConfigurationError if it may or can not create them.
    """
    admin = connect_admin(settings, "ratchet-topics", wait_seconds)
    try:
        existing = set(admin.list_topics())
        missing = [topic for topic in wanted_topics(settings) if topic.name not in existing]
        created = [topic.name for topic in missing if _create(admin, topic, settings)]
        admin.wait_for_topics([topic.name for topic in missing])
        return created
    except (KafkaError, OSError) as error:
        raise diagnose_sync(client_options(settings), error) from error
    finally:
        admin.close()


def find_drift(settings: Settings) -> list[Drift]:
    """What differs from the catalog, topic by topic.

    Raises DependencyUnavailable when the broker does not say, or may not tell us.
    """
    admin = connect_admin(settings, "ratchet-topics")
    try:
        return _compare(admin, settings)
    except (KafkaError, OSError) as error:
        raise diagnose_sync(client_options(settings), error) from error
    finally:
        admin.close()


def correct_topics(settings: Settings) -> list[Drift]:
    """Set existing topics' configs as the catalog says; returns what was corrected.

    A shorter retention deletes records: this is for a person to ask for. Raises DependencyUnavailable.
    """
    admin = connect_admin(settings, "ratchet-topics")
    try:
        drift = [one for one in _compare(admin, settings) if one.correctable and one.setting != EXISTENCE]
        for name in {one.topic for one in drift}:
            configs = {one.setting: one.wanted for one in drift if one.topic == name}
            told = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])
            if (answer := told["topic"][name]) != "OK":
                raise DependencyUnavailable(f"the broker did not set {sorted(configs)} of {name}: {answer}")
        return drift
    except (KafkaError, OSError) as error:
        raise diagnose_sync(client_options(settings), error) from error
    finally:
        admin.close()


def wanted_topics(settings: Settings) -> list[Wanted]:
    """The catalog's topics and the dead letters', as this deployment wants them."""
    common = {"max.message.bytes": str(MAX_DEAD_LETTER_BYTES)}
    if settings.kafka_replication > 1:
        # "All replicas acknowledged" counts those in sync only; without this, one that is alone would do.
        common["min.insync.replicas"] = str(settings.kafka_replication - 1)
    topics = [
        Wanted(topic.name, topic.partitions, common | _keeping(topic.retention, compacted=topic.compacted))
        for topic in TOPICS
    ]
    return topics + [Wanted(name, 1, common | _keeping(DEAD_LETTER_RETENTION)) for name in DEAD_LETTERS]


def _keeping(retention: timedelta, *, compacted: bool = False) -> dict[str, str]:
    milliseconds = int(retention / timedelta(milliseconds=1))
    return {"retention.ms": str(milliseconds), "cleanup.policy": "compact" if compacted else "delete"}


def _create(admin: KafkaAdminClient, topic: Wanted, settings: Settings) -> bool:
    """Whether it was us who created it, and not another process that starts as well."""
    replicas = settings.kafka_replication
    try:
        admin.create_topics([NewTopic(topic.name, topic.partitions, replicas, topic_configs=topic.configs)])
    except TopicAlreadyExistsError:
        return False
    except InvalidReplicationFactorError as error:
        raise ConfigurationError(
            f"the cluster cannot keep {replicas} replicas of {topic.name}: {error}", "Set RATCHET_KAFKA_REPLICATION"
        ) from error
    except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError, PolicyViolationError) as error:
        raise ConfigurationError(
            f"the broker does not let us create {topic.name}: {error}",
            "Allow it to this user, or have the topics created by who may: ratchet topics correct",
        ) from error
    return True


def _compare(admin: KafkaAdminClient, settings: Settings) -> list[Drift]:
    existing = set(admin.list_topics())
    wanted = wanted_topics(settings)
    there = [topic for topic in wanted if topic.name in existing]
    missing = [Drift(topic.name, EXISTENCE, "missing", "there") for topic in wanted if topic not in there]
    if not there:
        return missing
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in there]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    shapes = {one["name"]: one["partitions"] for one in admin.describe_topics([topic.name for topic in there])}
    return missing + [
        one for topic in there for one in _differing(topic, shapes[topic.name], configs[topic.name], settings)
    ]


def _differing(
    topic: Wanted, partitions: list[dict[str, Any]], configs: dict[str, dict[str, Any]], settings: Settings
) -> list[Drift]:
    replicas = min((len(one["replica_nodes"]) for one in partitions), default=0)
    compared = [
        (PARTITIONS, str(len(partitions)), str(topic.partitions)),
        (REPLICATION, str(replicas), str(settings.kafka_replication)),
        # A broker that does not have a setting cannot differ in it.
        *((name, configs[name]["value"], wanted) for name, wanted in topic.configs.items() if name in configs),
    ]
    return [Drift(topic.name, name, found, wanted) for name, found, wanted in compared if found != wanted]
