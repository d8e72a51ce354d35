"""Erasure requests are applied, and their offsets are stored in the lake."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from schemas.catalog import topic_of
from schemas.lake import FORGOTTEN, PREDICTIONS
from schemas.predictions import SubjectForgotten
from services.prediction_log.erasure.subjects import ErasureRequests
from services.prediction_log.offsets.commit_offsets import last_offsets
from shared.errors import DependencyUnavailable
from shared.kafka.delivery import Delivery
from shared.storage.media import MediaStore
from tests.unit.prediction_log.lake_rows import NOON, TASK, ids, opened, prediction, write

TOPIC = topic_of(SubjectForgotten).name
PARTITION = (TOPIC, 0)


def requests_of(lake: Path, incarnation: str = "") -> ErasureRequests:
    return ErasureRequests(str(lake), MediaStore(str(lake / "artifacts")), incarnation)


def erasure(subject: str, offset: int) -> Delivery[SubjectForgotten]:
    event = SubjectForgotten(task=TASK, task_revision="r1", subject_hash=subject, occurred_at=NOON)
    return Delivery(event, TOPIC, 0, offset, {})


def test_a_batch_is_erased_and_its_offset_is_in_the_lake(tmp_path: Path) -> None:
    write(tmp_path, PREDICTIONS, [prediction(f"p-{who}", user_hash=who) for who in ("ann", "bob", "eve")])
    requests_of(tmp_path).apply([erasure("ann", 3), erasure("bob", 4)])
    assert ids(tmp_path, PREDICTIONS) == ["p-eve"]
    assert requests_of(tmp_path).stored_offsets(FORGOTTEN, [PARTITION, (TOPIC, 1)]) == {PARTITION: 4}
    requests_of(tmp_path).apply([erasure("ann", 3), erasure("bob", 4)])
    assert opened(tmp_path, FORGOTTEN).to_pyarrow_table().num_rows == 2


def test_a_lake_without_the_table_has_no_offsets(tmp_path: Path) -> None:
    assert requests_of(tmp_path).stored_offsets(FORGOTTEN, [PARTITION]) == {}


def test_requests_of_another_incarnation_of_the_broker_are_read_from_their_start(tmp_path: Path) -> None:
    requests_of(tmp_path, "first").apply([erasure("ann", 3)])
    assert requests_of(tmp_path, "second").stored_offsets(FORGOTTEN, [PARTITION]) == {}
    assert requests_of(tmp_path, "first").stored_offsets(FORGOTTEN, [PARTITION]) == {PARTITION: 3}


def test_a_recreated_topic_is_not_accepted(tmp_path: Path) -> None:
    first, second = uuid4(), uuid4()
    store = requests_of(tmp_path)
    assert store.accept_topic(FORGOTTEN, TOPIC, first)
    store.apply([erasure("ann", 0)])
    assert requests_of(tmp_path).accept_topic(FORGOTTEN, TOPIC, first)
    assert not requests_of(tmp_path).accept_topic(FORGOTTEN, TOPIC, second)


def test_a_crash_before_the_deletion_commits_no_offset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, PREDICTIONS, [prediction("hers", user_hash="ann")])
    store = requests_of(tmp_path)

    def unavailable(*_: object) -> None:
        raise DependencyUnavailable("unavailable")

    with monkeypatch.context() as patched, pytest.raises(DependencyUnavailable):
        patched.setattr("services.prediction_log.erasure.erase.delete", unavailable)
        store.apply([erasure("ann", 0)])
    assert store.stored_offsets(FORGOTTEN, [PARTITION]) == {}
    store.apply([erasure("ann", 0)])
    assert (ids(tmp_path, PREDICTIONS), store.stored_offsets(FORGOTTEN, [PARTITION])) == ([], {PARTITION: 0})


def test_the_last_offset_of_each_partition() -> None:
    positions = [("t", 0, 5), ("t", 1, 0), ("t", 0, 3), ("u", 0, 1)]
    assert last_offsets(positions) == {("t", 0): 5, ("t", 1): 0, ("u", 0): 1}


def test_a_later_request_of_the_same_person_erases_up_to_its_time(tmp_path: Path) -> None:
    store = requests_of(tmp_path)
    store.apply([erasure("ann", 0)])
    write(tmp_path, PREDICTIONS, [prediction("later", NOON + timedelta(hours=1), user_hash="ann")])
    repeated = erasure("ann", 1)
    later = repeated.event.model_copy(update={"occurred_at": NOON + timedelta(hours=2)})
    store.apply([Delivery(later, TOPIC, 0, 1, {})])
    assert ids(tmp_path, PREDICTIONS) == []


def test_a_person_is_forgotten_in_the_kept_media_too_and_before_the_offset_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[tuple[str, dict[str, datetime]]] = []
    store = requests_of(tmp_path)

    def unavailable(*_: object) -> None:
        raise DependencyUnavailable("the artifacts are away")

    with monkeypatch.context() as patched, pytest.raises(DependencyUnavailable):
        patched.setattr(MediaStore, "forget", unavailable)
        store.apply([erasure("ann", 0)])
    assert store.stored_offsets(FORGOTTEN, [PARTITION]) == {}  # So that it is delivered again, after a crash too.
    monkeypatch.setattr(MediaStore, "forget", lambda _, task, people: forgotten.append((task, people)))
    store.apply([erasure("ann", 0), erasure("bob", 1)])
    assert forgotten == [(TASK, {"ann": NOON, "bob": NOON})]
