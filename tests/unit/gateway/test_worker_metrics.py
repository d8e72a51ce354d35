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


def test_any_worker_tells_what_all_count_each_under_its_own_label(tmp_path: Path) -> None:
    one, requests, seconds = worker(tmp_path, 0)
    requests.labels("200").inc(3)
    seconds.observe(0.5)
    one.write()
    other, requests, _ = worker(tmp_path, 1)
    requests.labels("200").inc(4)
    told = generate_latest(other).decode().splitlines()
    assert 'ratchet_requests_total{status="200",worker="0"} 3.0' in told
    assert 'ratchet_requests_total{status="200",worker="1"} 4.0' in told
    assert 'ratchet_seconds_bucket{le="1.0",worker="0"} 1.0' in told
    types = [line for line in told if line.startswith("# TYPE")]
    assert len(types) == len(set(types))
    requests.labels("200").inc()
    assert 'ratchet_requests_total{status="200",worker="1"} 5.0' in generate_latest(other).decode()


def test_a_worker_that_is_no_more_is_not_told_of(tmp_path: Path) -> None:
    one, requests, _ = worker(tmp_path, 0)
    gone, _, _ = worker(tmp_path, 1)
    requests.labels("200").inc()
    gone.write()
    old = time.time() - 60
    os.utime(tmp_path / "1.prom", (old, old))
    told = generate_latest(one).decode()
    assert 'worker="0"' in told
    assert 'worker="1"' not in told
