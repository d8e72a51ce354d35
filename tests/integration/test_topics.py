"""The catalog's topics on a real broker: created as the catalog says, compared with it, corrected on request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, NewPartitions, NewTopic
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.catalog import DEAD_LETTERS, TOPICS, topic_named
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.clients import MAX_DEAD_LETTER_BYTES, connect_admin, has_records, open_producer
from shared.kafka.delivery import TopicPartition
from shared.kafka.topics import Drift, correct_topics, create_topics, find_drift, wanted_topics
from shared.settings import Settings
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.stack
CHANGED = "steps.progressed.v1"


@pytest.fixture
def changed(stack_settings: Settings) -> Iterator[Settings]:
    """A topic whose retention an operator set to an hour; reset afterwards."""
    _set(stack_settings, "retention.ms", "3600000")
    yield stack_settings
    _set(stack_settings, "retention.ms", str(int(topic_named(CHANGED).retention.total_seconds() * 1000)))


def _set(settings: Settings, name: str, value: str) -> None:
    admin = connect_admin(settings, "test")
    try:
        response = admin.alter_configs([ConfigResource("TOPIC", CHANGED, {name: value})])
    finally:
        admin.close()
    assert response == {"topic": {CHANGED: "OK"}}


def _delete(admin: KafkaAdminClient, name: str) -> None:
    admin.delete_topics([name])
    deadline = time.monotonic() + PATIENCE_SECONDS
    while name in admin.list_topics():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_topics_are_as_the_catalog_says_and_creating_them_is_idempotent(stack_settings: Settings) -> None:
    assert create_topics(stack_settings) == []
    assert find_drift(stack_settings) == []
    admin = connect_admin(stack_settings, "test")
    try:
        partitions = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics()}
        response = admin.describe_configs([ConfigResource("TOPIC", t.name) for t in TOPICS], config_filter="all")[
            "topic"
        ]
    finally:
        admin.close()
    assert {topic.name: partitions[topic.name] for topic in TOPICS} == {
        topic.name: topic.partitions for topic in TOPICS
    }
    assert set(DEAD_LETTERS) <= set(partitions)
    assert response["tasks.changed.v1"]["cleanup.policy"]["value"] == "compact"
    assert response["rollouts.changed.v1"]["min.compaction.lag.ms"]["value"] == str(92 * 86_400_000)
    assert response["predictions.logged.v1"]["cleanup.policy"]["value"] == "delete"
    assert response["predictions.submitted.v1"]["retention.ms"]["value"] == "86400000"
    assert response["corrections.submitted.v1"]["retention.ms"]["value"] == "-1"
    assert response["feedback.given.v1"]["max.message.bytes"]["value"] == str(MAX_DEAD_LETTER_BYTES)


def test_a_changed_topic_is_found_left_at_a_start_and_corrected_on_request(changed: Settings) -> None:
    found = [Drift(CHANGED, "retention.ms", "3600000", "604800000")]
    assert find_drift(changed) == found
    assert create_topics(changed) == []
    assert find_drift(changed) == found, "a start leaves it: an operator may have had a reason"
    assert correct_topics(changed) == found
    assert find_drift(changed) == []
    assert correct_topics(changed) == []


def test_the_command_lists_what_differs_and_corrects_it(changed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATCHET_HOME", str(changed.home))
    monkeypatch.setenv("COLUMNS", "160")
    command = CliRunner()
    listed = command.invoke(app, ["topics", "list"])
    assert (listed.exit_code, "retention.ms 3600000, not 604800000" in listed.output) == (1, True), listed.output
    corrected = command.invoke(app, ["topics", "correct"])
    assert f"{CHANGED}: retention.ms is 3600000, the catalog says 604800000: set" in corrected.output
    assert command.invoke(app, ["topics", "list"]).exit_code == 0


def test_other_replicas_are_reported_and_left(stack_settings: Settings) -> None:
    three_replicas = stack_settings.model_copy(update={"kafka_replication": 3})
    drifts = [drift for drift in find_drift(three_replicas) if drift.setting == "replication"]
    assert Drift("predictions.logged.v1", "replication", "1", "3") in drifts
    assert not any(drift.correctable for drift in drifts)


def test_a_topic_that_the_broker_lost_is_missing_until_it_is_created(stack_settings: Settings) -> None:
    admin = connect_admin(stack_settings, "test")
    try:
        _delete(admin, CHANGED)
    finally:
        admin.close()
    missing = [Drift(CHANGED, "existence", "missing", "there")]
    assert find_drift(stack_settings) == missing
    assert correct_topics(stack_settings) == [], "a missing topic is not a wrong setting"
    assert create_topics(stack_settings) == [CHANGED]
    assert find_drift(stack_settings) == []


async def test_a_partition_has_records_up_to_its_last_one_and_none_where_the_broker_deleted_them(
    stack_settings: Settings,
) -> None:
    topic = f"scratch.{uuid4().hex[:8]}"
    partition, admin = TopicPartition(topic, 0), connect_admin(stack_settings, "test")
    try:
        admin.create_topics([NewTopic(topic, 1, 1)])
        await until(lambda: topic in admin.list_topics())
        assert not await has_records(stack_settings, partition, 0)
        async with open_producer(stack_settings, "test") as producer:
            for _ in range(3):
                await producer.send_and_wait(topic, b"x")
        assert [await has_records(stack_settings, partition, start) for start in range(4)] == [True, True, True, False]
        if stack_settings.kafka_idempotence:  # tansu deletes no records on request.
            admin.delete_records({partition: 3})
            assert [await has_records(stack_settings, partition, start) for start in (0, 3)] == [False, False]
    finally:
        admin.delete_topics([topic])
        admin.close()


@pytest.mark.apache_kafka("tansu has one replica whatever is requested")
def test_more_replicas_than_brokers_are_refused_with_the_setting_to_change(stack_settings: Settings) -> None:
    admin = connect_admin(stack_settings, "test")
    try:
        _delete(admin, CHANGED)
    finally:
        admin.close()
    with pytest.raises(ConfigurationError) as refused:
        create_topics(stack_settings.model_copy(update={"kafka_replication": 3}))
    assert "RATCHET_KAFKA_REPLICATION" in refused.value.way_out
    assert create_topics(stack_settings) == [CHANGED]


@pytest.mark.apache_kafka("tansu cannot add partitions to a topic")
def test_partitions_that_an_operator_added_are_reported_and_left(stack_settings: Settings) -> None:
    name = "deadletters.trainer.v1"
    admin = connect_admin(stack_settings, "test")
    try:
        admin.create_partitions({name: NewPartitions(2)})
        assert find_drift(stack_settings) == [Drift(name, "partitions", "2", "1")]
        _delete(admin, name)
    finally:
        admin.close()
    assert create_topics(stack_settings) == [name]


def test_with_three_replicas_two_must_be_in_sync() -> None:
    configs = {topic.configs.get("min.insync.replicas") for topic in wanted_topics(Settings(kafka_replication=3))}
    assert configs == {"2"}
    single = {topic.configs.get("min.insync.replicas") for topic in wanted_topics(Settings(kafka_replication=1))}
    assert single == {None}, "the broker's own default"


def test_without_a_broker_the_comparison_is_unavailable() -> None:
    with pytest.raises(DependencyUnavailable, match="no Kafka broker answers"):
        find_drift(Settings(kafka="127.0.0.1:1"))
