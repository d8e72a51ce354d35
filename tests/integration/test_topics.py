"""The catalog's topics on a real broker: made as the catalog says, compared with it, corrected when asked."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, NewPartitions
from typer.testing import CliRunner

from deploy.cli.app import app
from schemas.catalog import DEAD_LETTERS, TOPICS, topic_named
from shared.errors import ConfigurationError, DependencyUnavailable
from shared.kafka.clients import MAX_DEAD_LETTER_BYTES, connect_admin
from shared.kafka.topics import Drift, correct_topics, create_topics, find_drift, wanted_topics
from shared.settings import Settings

pytestmark = pytest.mark.stack
CHANGED = "steps.progressed.v1"


@pytest.fixture
def changed(stack_settings: Settings) -> Iterator[Settings]:
    """A topic that an operator keeps for an hour, and a broker as it was afterwards."""
    _set(stack_settings, "retention.ms", "3600000")
    yield stack_settings
    _set(stack_settings, "retention.ms", str(int(topic_named(CHANGED).retention.total_seconds() * 1000)))


def _set(settings: Settings, name: str, value: str) -> None:
    admin = connect_admin(settings, "test")
    try:
        told = admin.alter_configs([ConfigResource("TOPIC", CHANGED, {name: value})])
    finally:
        admin.close()
    assert told == {"topic": {CHANGED: "OK"}}


def _delete(admin: KafkaAdminClient, name: str) -> None:
    admin.delete_topics([name])
    deadline = time.monotonic() + 30
    while name in admin.list_topics():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_topics_are_as_the_catalog_says_and_creating_them_again_changes_nothing(stack_settings: Settings) -> None:
    assert create_topics(stack_settings) == []
    assert find_drift(stack_settings) == []
    admin = connect_admin(stack_settings, "test")
    try:
        made = {one["name"]: len(one["partitions"]) for one in admin.describe_topics()}
        told = admin.describe_configs([ConfigResource("TOPIC", t.name) for t in TOPICS], config_filter="all")["topic"]
    finally:
        admin.close()
    assert {topic.name: made[topic.name] for topic in TOPICS} == {topic.name: topic.partitions for topic in TOPICS}
    assert set(DEAD_LETTERS) <= set(made)
    assert told["tasks.changed.v1"]["cleanup.policy"]["value"] == "compact"
    assert told["predictions.logged.v1"]["cleanup.policy"]["value"] == "delete"
    assert told["predictions.submitted.v1"]["retention.ms"]["value"] == "86400000"
    assert told["corrections.submitted.v1"]["retention.ms"]["value"] == "-1"
    assert told["feedback.given.v1"]["max.message.bytes"]["value"] == str(MAX_DEAD_LETTER_BYTES)


def test_what_was_changed_on_the_broker_is_found_kept_at_a_start_and_corrected_when_asked(changed: Settings) -> None:
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


def test_a_topic_with_other_partitions_or_replicas_is_told_and_left(stack_settings: Settings) -> None:
    asked_for_three = stack_settings.model_copy(update={"kafka_replication": 3})
    drift = [one for one in find_drift(asked_for_three) if one.setting == "replication"]
    assert Drift("predictions.logged.v1", "replication", "1", "3") in drift
    assert not any(one.correctable for one in drift)


def test_a_topic_that_the_broker_lost_is_missing_until_it_is_made_again(stack_settings: Settings) -> None:
    admin = connect_admin(stack_settings, "test")
    try:
        _delete(admin, CHANGED)
    finally:
        admin.close()
    missing = [Drift(CHANGED, "existence", "missing", "there")]
    assert find_drift(stack_settings) == missing
    assert correct_topics(stack_settings) == [], "that is not a setting"
    assert create_topics(stack_settings) == [CHANGED]
    assert find_drift(stack_settings) == []


@pytest.mark.apache_kafka("tansu keeps one replica whatever is asked for")
def test_more_replicas_than_there_are_brokers_are_refused_by_the_name_of_the_setting(stack_settings: Settings) -> None:
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
def test_partitions_that_an_operator_added_are_told_and_left(stack_settings: Settings) -> None:
    name = "deadletters.trainer.v1"
    admin = connect_admin(stack_settings, "test")
    try:
        admin.create_partitions({name: NewPartitions(2)})
        assert find_drift(stack_settings) == [Drift(name, "partitions", "2", "1")]
        _delete(admin, name)
    finally:
        admin.close()
    assert create_topics(stack_settings) == [name]


def test_with_three_replicas_two_must_have_a_record_before_it_counts_as_kept() -> None:
    configs = {topic.configs.get("min.insync.replicas") for topic in wanted_topics(Settings(kafka_replication=3))}
    assert configs == {"2"}
    alone = {topic.configs.get("min.insync.replicas") for topic in wanted_topics(Settings(kafka_replication=1))}
    assert alone == {None}, "the broker's own default"


def test_without_a_broker_there_is_no_comparison() -> None:
    with pytest.raises(DependencyUnavailable, match="no Kafka broker answers"):
        find_drift(Settings(kafka="127.0.0.1:1"))
