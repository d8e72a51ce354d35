"""The catalog's topics on a broker: creates what is missing, finds what differs, corrects what can be corrected.

Creating is idempotent and leaves existing topics unchanged: an operator may have had a reason. Differences are logged
at every start and shown by `ratchet topics list`; `ratchet topics correct` sets what the catalog says.
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
    PolicyViolationError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from schemas.catalog import COMPACTION_LAG, DEAD_LETTER_RETENTION, DEAD_LETTERS, TOPICS
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.clients import MAX_DEAD_LETTER_BYTES, open_admin
from shared.settings import Settings

EXISTENCE, PARTITIONS, REPLICATION = "existence", "partitions", "replication"


@dataclass(frozen=True)
class TopicSpec:
    """A topic as the catalog specifies it. `configs` has the broker's names and values."""

    name: str
    partitions: int
    configs: dict[str, str]


@dataclass(frozen=True)
class Drift:
    """One difference between a topic and the catalog. `setting`: a config's name, or one of the constants above.

    Partitions and replication cannot be corrected: keys would move to other partitions, replicas to other machines.
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
    """Create the missing topics and wait until they can be used; returns the names created.

    Raises DependencyUnavailable if no broker answers, ConfigurationError if it refuses to create one.
    """
    with open_admin(settings, "ratchet-topics", wait_seconds) as admin:
        existing = set(admin.list_topics())
        missing = [topic for topic in wanted_topics(settings) if topic.name not in existing]
        created = [topic.name for topic in missing if _create(admin, topic, settings)]
        admin.wait_for_topics([topic.name for topic in missing])
        return created


def find_drift(settings: Settings) -> list[Drift]:
    """Return what differs from the catalog, topic by topic.

    Raises DependencyUnavailable when the broker does not answer, or does not allow this user to read the settings.
    """
    with open_admin(settings, "ratchet-topics") as admin:
        return _compare(admin, settings)


def correct_topics(settings: Settings) -> list[Drift]:
    """Set the configs of existing topics as the catalog says; returns what was corrected.

    A shorter retention deletes records, so a person must ask for this. Raises DependencyUnavailable.
    """
    with open_admin(settings, "ratchet-topics") as admin:
        drifts = [drift for drift in _compare(admin, settings) if drift.correctable and drift.setting != EXISTENCE]
        for name in {drift.topic for drift in drifts}:
            configs = {drift.setting: drift.wanted for drift in drifts if drift.topic == name}
            response = admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, configs)])
            if (status := response["topic"][name]) != "OK":
                raise DependencyUnavailable(f"the broker did not set {sorted(configs)} of {name}: {status}")
        return drifts


def wanted_topics(settings: Settings) -> list[TopicSpec]:
    """Return the catalog's topics and the dead-letter topics, as this deployment specifies them."""
    common = {"max.message.bytes": str(MAX_DEAD_LETTER_BYTES)}
    if settings.kafka_replication > 1:
        # acks=all counts the replicas in sync only; without this, a single one would be enough.
        common["min.insync.replicas"] = str(settings.kafka_replication - 1)
    topics = [
        TopicSpec(topic.name, topic.partitions, common | _retention_configs(topic.retention, compacted=topic.compacted))
        for topic in TOPICS
    ]
    return topics + [TopicSpec(name, 1, common | _retention_configs(DEAD_LETTER_RETENTION)) for name in DEAD_LETTERS]


def _retention_configs(retention: timedelta, *, compacted: bool = False) -> dict[str, str]:
    milliseconds = int(retention / timedelta(milliseconds=1))
    if not compacted:
        return {"retention.ms": str(milliseconds), "cleanup.policy": "delete"}
    lag = int(COMPACTION_LAG / timedelta(milliseconds=1))
    return {"retention.ms": str(milliseconds), "cleanup.policy": "compact", "min.compaction.lag.ms": str(lag)}


def _create(admin: KafkaAdminClient, topic: TopicSpec, settings: Settings) -> bool:
    """Return True if this call created the topic, False if another process did at the same time."""
    replicas = settings.kafka_replication
    try:
        admin.create_topics([NewTopic(topic.name, topic.partitions, replicas, topic_configs=topic.configs)])
    except TopicAlreadyExistsError:
        return False
    except InvalidReplicationFactorError as error:
        raise ConfigurationError(
            f"the cluster cannot hold {replicas} replicas of {topic.name}: {error}", "Set RATCHET_KAFKA_REPLICATION"
        ) from error
    except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError, PolicyViolationError) as error:
        raise ConfigurationError(
            f"the broker does not let us create {topic.name}: {error}",
            "Allow it to this user, or create the topics as a user who may: ratchet topics correct",
        ) from error
    return True


def _compare(admin: KafkaAdminClient, settings: Settings) -> list[Drift]:
    existing = set(admin.list_topics())
    wanted = wanted_topics(settings)
    present = [topic for topic in wanted if topic.name in existing]
    missing = [Drift(topic.name, EXISTENCE, "missing", "there") for topic in wanted if topic not in present]
    if not present:
        return missing
    resources = [ConfigResource(ConfigResourceType.TOPIC, topic.name) for topic in present]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    described = admin.describe_topics([topic.name for topic in present])
    partitions = {topic["name"]: topic["partitions"] for topic in described}
    return missing + [
        drift
        for topic in present
        for drift in _compare_topic(topic, partitions[topic.name], configs[topic.name], settings)
    ]


def _compare_topic(
    topic: TopicSpec, partitions: list[dict[str, Any]], configs: dict[str, dict[str, Any]], settings: Settings
) -> list[Drift]:
    replicas = min((len(partition["replica_nodes"]) for partition in partitions), default=0)
    compared = [
        (PARTITIONS, str(len(partitions)), str(topic.partitions)),
        (REPLICATION, str(replicas), str(settings.kafka_replication)),
        # A broker that does not have a setting cannot differ in it.
        *((name, configs[name]["value"], wanted) for name, wanted in topic.configs.items() if name in configs),
    ]
    return [Drift(topic.name, name, found, wanted) for name, found, wanted in compared if found != wanted]
