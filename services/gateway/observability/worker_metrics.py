"""What all workers of a gateway count, whichever of them Prometheus happens to ask: under a label `worker` each.

Summing them here would be wrong: when one worker is started anew the sum falls, and Prometheus would take the rest of
it for new. It sums itself: `sum without (worker) (rate(…))`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

WRITE_SECONDS = 5.0
_STALE_SECONDS = 30.0


class WorkerMetrics(Collector):
    """Each worker writes what it counts to a file; what is told are the files, so that no counter ever goes back."""

    def __init__(self, registry: CollectorRegistry, folder: Path, number: int) -> None:
        self._registry = registry
        self._folder = folder
        self._own = folder / f"{number}.prom"

    def write(self) -> None:
        """Whole or not at all; without fsync, since a machine that crashed counts anew."""
        self._folder.mkdir(parents=True, exist_ok=True)
        fresh = self._own.with_name(f".{self._own.name}")
        fresh.write_bytes(generate_latest(self._registry))
        fresh.replace(self._own)

    def collect(self) -> Iterator[Metric]:
        self.write()
        families: dict[str, Metric] = {}
        for path in sorted(self._folder.glob("*.prom")):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                continue  # Of a worker that there is no more.
            for family in text_string_to_metric_families(path.read_text()):
                known = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {**sample.labels, "worker": path.stem}
                    known.add_sample(sample.name, labels, sample.value)
        yield from families.values()
