"""The gateway's Prometheus metrics. Each application has a registry of its own, so that tests can build several."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from services.gateway.observability.shipper_status import ShipperStatus
from shared.spool import Backlog

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_MICROSECONDS = tuple(value * 1e-6 for value in (10, 20, 30, 50, 75, 100, 200, 500, 1_000, 10_000, 100_000))


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.exported: Collector = self.registry
        """What /metrics exports: with several workers the metrics of all (`worker_metrics.py`)."""
        self.requests = Counter(
            "ratchet_gateway_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "ratchet_gateway_seconds", "Seconds until the answer.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.body_bytes = Gauge(
            "ratchet_gateway_body_bytes", "Bytes of request bodies in flight.", registry=self.registry
        )
        self.answers = Counter(
            "ratchet_gateway_answers", "Answers by task and arm.", ["task", "variant"], registry=self.registry
        )
        self.upstream_errors = Counter(
            "ratchet_gateway_upstream_errors", "Failed tries at a replica.", ["reason"], registry=self.registry
        )
        self.fallbacks = Counter(
            "ratchet_gateway_fallbacks", "Arms whose adapter no replica served.", ["task", "variant"],
            registry=self.registry,
        )  # fmt: skip
        self.external_requests = Counter(
            "ratchet_gateway_external_requests",
            "Requests sent to the external API, outside the network, by task and by why no replica answered.",
            ["task", "reason"], registry=self.registry,
        )  # fmt: skip
        self.spool_seconds = Histogram(
            "ratchet_gateway_spool_append_seconds", "Seconds to encrypt and write what ended together.",
            buckets=_MICROSECONDS, registry=self.registry,
        )  # fmt: skip
        self.spool_refusals = Counter(
            "ratchet_gateway_spool_refusals", "Appends refused: the spool or its disk is full.", registry=self.registry
        )
        self.answers_unlogged = Counter(
            "ratchet_gateway_answers_unlogged", "Answers that left without a record: the spool was full.",
            registry=self.registry,
        )  # fmt: skip
        self.spans = Counter(
            "ratchet_gateway_spans", "Model calls reported by spans: logged, failed, known (answered here), rejected.",
            ["outcome"], registry=self.registry,
        )  # fmt: skip
        self.observations_dropped = Counter(
            "ratchet_gateway_observations_dropped", "Failed requests not recorded: the spool was full.",
            registry=self.registry,
        )  # fmt: skip


class SpoolCollector(Collector):
    """Metrics of the spool and the shipper, collected when Prometheus scrapes."""

    def __init__(
        self,
        backlog: Callable[[], Backlog | None],
        fullness: Callable[[], float],
        sync_failures: Callable[[], int],
        status: Callable[[], ShipperStatus | None],
    ) -> None:
        self._backlog = backlog
        self._fullness = fullness
        self._sync_failures = sync_failures
        self._status = status

    def collect(self) -> Iterator[Metric]:
        if (backlog := self._backlog()) is not None:
            age = max(0.0, time.time() - backlog.oldest) if backlog.oldest is not None else 0.0
            yield _gauge("spool_bytes", "Bytes that wait for the shipper.", backlog.bytes)
            yield _gauge("spool_oldest_seconds", "How long the oldest of them has waited.", age)
            yield _gauge("spool_full_ratio", "How near the size or age limit is; full at 1.", self._fullness())
            yield _count("spool_sync_failures", "Failed syncs to disk.", self._sync_failures())
        status = self._status()
        if status is None:
            return
        yield _gauge("shipper_status_age_seconds", "Age of the shipper's status.", time.time() - status.at)
        yield _gauge("shipper_failing", "1 while the shipper cannot ship.", float(bool(status.error)))
        yield _count("shipper_submitted_logged", "Predictions of direct producers logged.", status.submitted_logged)
        yield _count("shipper_dead_lettered", "Events that were dead-lettered.", status.dead_lettered)
        yield _count("shipper_truncated", "Events that were cut, or had base64, after redaction.", status.truncated)
        yield _count("redacted_texts", "Texts searched for personal data.", status.redacted_texts)
        yield _count("redaction_seconds", "Seconds spent on redaction.", status.redaction_seconds)
        media_age = max(0.0, time.time() - status.media_oldest) if status.media_oldest is not None else 0.0
        yield _gauge("media_bytes", "Bytes of media that wait for the artifact store.", status.media_bytes)
        yield _gauge("media_oldest_seconds", "How long the oldest of them have waited.", media_age)
        yield _count("media_uploaded", "Media that are in the artifact store.", status.media_uploaded)
        yield _count("media_forgotten", "Media not uploaded: their person was forgotten.", status.media_forgotten)
        yield _gauge("spool_incomplete_bytes", "Bytes of incomplete records after a crash.", status.incomplete_bytes)
        yield _gauge("spool_quarantined", "Damaged segments that were quarantined.", status.quarantined)
        shipped = CounterMetricFamily(
            "ratchet_gateway_shipped", "Events that Kafka has acknowledged.", labels=["topic"]
        )
        for topic, count in status.shipped.items():
            shipped.add_metric([topic], count)
        yield shipped
        redactions = CounterMetricFamily(
            "ratchet_gateway_redactions", "Pieces of personal data replaced.", labels=["kind"]
        )
        for kind, count in status.redactions.items():
            redactions.add_metric([kind], count)
        yield redactions


def _gauge(name: str, help_text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"ratchet_gateway_{name}", help_text, value=value)


def _count(name: str, help_text: str, value: float) -> Metric:
    return CounterMetricFamily(f"ratchet_gateway_{name}", help_text, value=value)
