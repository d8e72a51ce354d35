from __future__ import annotations

import os
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from services.gateway.observability.worker_metrics import WorkerMetrics


def worker(folder: Path, number: int) -> tuple[WorkerMetrics, Counter, Histogram]:
    registry = CollectorRegistry()
    requests = Counter("ratchet_requests", "Requests.", ["status"], registry=registry)
    seconds = Histogram("ratchet_seconds", "Seconds.", registry=registry, buckets=(1.0,))
    return WorkerMetrics(registry, folder, number), requests, seconds


def test_any_worker_exports_the_metrics_of_all_by_label(tmp_path: Path) -> None:
    first, requests, seconds = worker(tmp_path, 0)
    requests.labels("200").inc(3)
    seconds.observe(0.5)
    first.write()
    second, requests, _ = worker(tmp_path, 1)
    requests.labels("200").inc(4)
    exported = generate_latest(second).decode().splitlines()
    assert 'ratchet_requests_total{status="200",worker="0"} 3.0' in exported
    assert 'ratchet_requests_total{status="200",worker="1"} 4.0' in exported
    assert 'ratchet_seconds_bucket{le="1.0",worker="0"} 1.0' in exported
    types = [line for line in exported if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    requests.labels("200").inc()
    assert 'ratchet_requests_total{status="200",worker="1"} 5.0' in generate_latest(second).decode()


def test_a_dead_workers_metrics_are_not_exported(tmp_path: Path) -> None:
    first, requests, _ = worker(tmp_path, 0)
    dead, _, _ = worker(tmp_path, 1)
    requests.labels("200").inc()
    dead.write()
    old = time.time() - 60
    os.utime(tmp_path / "1.prom", (old, old))
    exported = generate_latest(first).decode()
    assert 'worker="0"' in exported
    assert 'worker="1"' not in exported
