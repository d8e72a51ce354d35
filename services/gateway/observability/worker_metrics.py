"""The metrics of all workers of a gateway, each with a label `worker`, whichever worker Prometheus scrapes.

They are not summed here: a restarted worker would make the sum fall, which Prometheus would read as a counter reset.
Sum in the query: `sum without (worker) (rate(…))`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

_WRITE_SECONDS = 5.0
_STALE_SECONDS = 30.0


class WorkerMetrics(Collector):
    """Each worker writes its metrics to a file and collects all files, its own too: so no counter goes backwards from
    one scrape to the next, of another worker."""

    def __init__(self, registry: CollectorRegistry, folder: Path, number: int) -> None:
        self._registry = registry
        self._folder = folder
        self._own_file = folder / f"{number}.prom"

    def write(self) -> None:
        """Write this worker's file atomically; without fsync, since counters restart after a crash of the machine."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._own_file.with_name(f".{self._own_file.name}")
        temporary.write_bytes(generate_latest(self._registry))
        temporary.replace(self._own_file)

    async def write_forever(self) -> None:
        """Background: write this worker's file, so that the other workers have it."""
        while True:
            self.write()
            await asyncio.sleep(_WRITE_SECONDS)

    def collect(self) -> Iterator[Metric]:
        self.write()
        families: dict[str, Metric] = {}
        for path in sorted(self._folder.glob("*.prom")):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                continue  # Of a worker that no longer runs.
            for family in text_string_to_metric_families(path.read_text()):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    labels = {**sample.labels, "worker": path.stem}
                    merged.add_sample(sample.name, labels, sample.value)
        yield from families.values()
