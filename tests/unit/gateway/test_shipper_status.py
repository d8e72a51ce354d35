"""The shipper's status file, its problems and its metrics."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from services.gateway.observability.metrics import SpoolCollector
from services.gateway.observability.shipper_status import (
    STATUS_FILE,
    ShipperStatus,
    read_shipper_status,
    shipper_problems,
)
from shared.spool import Backlog


def test_a_status_is_read_as_it_was_written(tmp_path: Path) -> None:
    status = ShipperStatus(
        pid=7, shipped=Counter({"t": 3}), redactions=Counter({"name": 2}), oldest=5.0, error="connection refused"
    )
    status.write(tmp_path)
    assert read_shipper_status(tmp_path) == status
    assert status.at > 0


@pytest.mark.parametrize(
    "content", [None, b"", b"{", b"[]", b'{"pid": 1}', b'{"shipped": {}, "redactions": {}, "x": 1}']
)
def test_an_invalid_status_file_counts_as_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / STATUS_FILE).write_bytes(content)
    assert read_shipper_status(tmp_path) is None


def test_a_dead_or_late_shipper_is_a_problem() -> None:
    now = 1_000.0
    assert shipper_problems(ShipperStatus(at=now - 1, oldest=now - 5), 60.0, now) == []
    assert shipper_problems(ShipperStatus(at=now - 1), 60.0, now) == []
    assert "is not running" in shipper_problems(None, 60.0, now)[0]
    assert "is not running" in shipper_problems(ShipperStatus(at=now - 60), 60.0, now)[0]
    (behind,) = shipper_problems(ShipperStatus(at=now, oldest=now - 90, error="connection refused"), 60.0, now)
    assert "90 s" in behind
    assert "connection refused" in behind


def test_media_that_wait_for_the_artifact_store_for_long_are_a_problem() -> None:
    now = 1_000.0
    assert shipper_problems(ShipperStatus(at=now, media_oldest=now - 5), 60.0, now) == []
    late = ShipperStatus(at=now, media_oldest=now - 90, media_error="S3 is away")
    assert shipper_problems(late, 60.0, now) == ["media have waited for the artifact store for 90 s (S3 is away)"]


def test_the_spool_and_the_shipper_are_in_the_metrics() -> None:
    registry = CollectorRegistry()
    status = ShipperStatus(
        shipped=Counter({"predictions.logged.v1": 3}), redactions=Counter({"name": 2}), incomplete_bytes=9,
        truncated=4, media_bytes=7, media_uploaded=2, media_forgotten=1,
    )  # fmt: skip
    registry.register(SpoolCollector(lambda: Backlog(123, None), lambda: 0.25, lambda: 2, lambda: status))
    text = generate_latest(registry).decode()
    assert "ratchet_gateway_spool_bytes 123.0" in text
    assert "ratchet_gateway_media_bytes 7.0" in text
    assert "ratchet_gateway_media_oldest_seconds 0.0" in text
    assert "ratchet_gateway_media_uploaded_total 2.0" in text
    assert "ratchet_gateway_media_forgotten_total 1.0" in text
    assert "ratchet_gateway_spool_oldest_seconds 0.0" in text
    assert "ratchet_gateway_spool_full_ratio 0.25" in text
    assert "ratchet_gateway_spool_sync_failures_total 2.0" in text
    assert 'ratchet_gateway_shipped_total{topic="predictions.logged.v1"} 3.0' in text
    assert 'ratchet_gateway_redactions_total{kind="name"} 2.0' in text
    assert "ratchet_gateway_spool_incomplete_bytes 9.0" in text
    assert "ratchet_gateway_shipper_truncated_total 4.0" in text


def test_before_the_start_there_are_no_metrics() -> None:
    registry = CollectorRegistry()
    registry.register(SpoolCollector(lambda: None, lambda: 0.0, lambda: 0, lambda: None))
    assert generate_latest(registry) == b""
