"""The scheduler's Prometheus metrics: how long the step of each running cycle is silent, and whether that is late."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from prometheus_client import CollectorRegistry, Gauge, generate_latest

from services.scheduler.domain import Cycle, is_late, silence


def step_metrics(running: Sequence[Cycle], now: datetime, listening_since: datetime) -> bytes:
    """Return the metrics in Prometheus' text format. A cycle that ended has none."""
    registry, labels = CollectorRegistry(), ("task", "cycle_id", "step")
    silent = Gauge(
        "ratchet_scheduler_step_silence_seconds",
        "Since the last progress of the cycle's step, or the scheduler's start if that was later.", labels,
        registry=registry,
    )  # fmt: skip
    late = Gauge(
        "ratchet_scheduler_step_late", "1 for a step without progress for longer than its task's step_timeout_minutes.",
        labels, registry=registry,
    )  # fmt: skip
    for cycle in running:
        place = (cycle.started.task, str(cycle.started.cycle_id), cycle.step)
        silent.labels(*place).set(silence(cycle, now, listening_since).total_seconds())
        late.labels(*place).set(is_late(cycle, now, listening_since))
    return generate_latest(registry)
