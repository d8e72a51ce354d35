"""How busy the engine is, by vLLM's own metrics: shadow waits while production's requests do."""

from __future__ import annotations

import asyncio
import logging
import time

from prometheus_client.parser import text_string_to_metric_families

from shared.addresses import without_credentials
from shared.errors import DependencyUnavailable, InvalidMessage
from shared.model.inference import InferenceClient

logger = logging.getLogger(__name__)

_READ_SECONDS = 1.0
"""A reading holds so long: each replay asks."""
_AWAY_SECONDS = 10.0
"""A replica that did not answer is not read for so long: all replays would wait for one that hangs, each time."""
_MAX_CACHE_USAGE = 0.8
"""Share of a replica's KV cache in use above which no replay starts: production's requests come first."""
_WAITING = "vllm:num_requests_waiting"
_CACHE_USAGE = "vllm:kv_cache_usage_perc"
"""From 0 to 1, despite its name."""


class VllmLoad:
    """Reads the replicas' `/metrics`, all at once. One busy replica is enough: any of them may get the next replay.

    A replica that does not answer, or that has no such metrics, is not known to be busy.
    """

    def __init__(self, inference: InferenceClient) -> None:
        self._inference = inference
        self._reading = asyncio.Lock()
        self._read_at: float | None = None
        self._away_until: dict[str, float] = {}
        self._busy_since: float | None = None
        self._without_metrics: set[str] = set()

    async def is_busy(self) -> bool:
        """Return True while requests wait in a replica, or its cache is almost full. Logged when it begins and ends."""
        async with self._reading:
            now = time.monotonic()
            if self._read_at is None or now - self._read_at >= _READ_SECONDS:
                there = [url for url in self._inference.in_turn() if now >= self._away_until.get(url, 0.0)]
                reasons = await asyncio.gather(*map(self._reason, there))
                self._read_at = time.monotonic()
                self._note([reason for reason in reasons if reason])
            return self._busy_since is not None

    async def _reason(self, url: str) -> str | None:
        try:
            metrics = await self._inference.metrics(url)
        except DependencyUnavailable:
            self._away_until[url] = time.monotonic() + _AWAY_SECONDS
            return None
        except InvalidMessage:
            metrics = ""
        values = _largest(metrics)
        if not values and url not in self._without_metrics:
            self._without_metrics.add(url)
            logger.warning("%s has no metrics of vLLM: shadow cannot see when it is busy", without_credentials(url))
        if values.get(_WAITING, 0) > 0:
            return f"{values[_WAITING]:.0f} requests wait in {without_credentials(url)}"
        if values.get(_CACHE_USAGE, 0) > _MAX_CACHE_USAGE:
            return f"{values[_CACHE_USAGE]:.0%} of the cache of {without_credentials(url)} is in use"
        return None

    def _note(self, reasons: list[str]) -> None:
        if reasons and self._busy_since is None:
            self._busy_since = time.monotonic()
            logger.warning("shadow waits while the engine is busy: %s", reasons[0])
        elif not reasons and self._busy_since is not None:
            logger.warning("shadow goes on after %.0f s", time.monotonic() - self._busy_since)
            self._busy_since = None


def _largest(metrics: str) -> dict[str, float]:
    """Return the two metrics, each with the largest of its values: an engine may have several."""
    lines = [line for line in metrics.splitlines() if line.startswith((f"{_WAITING}{{", f"{_CACHE_USAGE}{{"))]
    values: dict[str, float] = {}
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        for sample in family.samples:
            values[sample.name] = max(sample.value, values.get(sample.name, 0.0))
    return values
