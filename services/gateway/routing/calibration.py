"""A cache of the adapters' confidence calibrations, which are in the artifact store. A request only looks into a dict.

An adapter that is not in the cache is looked up in the background. Until it is found, and where an adapter has no
calibration (the base model, an adapter older than calibration), answers have their raw score. Entries never expire,
since the store never changes an artifact. Neither Kafka nor a database is needed to fill the cache.
"""

from __future__ import annotations

import asyncio
import logging
import time

from shared.errors import DependencyUnavailable
from shared.storage.artifacts import ArtifactStore
from shared.storage.calibrations import AdapterCalibration, read_calibration

_POLL_SECONDS = 0.5
_RETRY_SECONDS = 30.0
"""Time until an adapter without a calibration is looked up again: its evaluation may just have ended."""
_MAX_PENDING = 1_000
"""The most adapters to look up: names come from flags, so more are an error in a flag."""

logger = logging.getLogger(__name__)


class CalibrationCache:
    def __init__(self, store: ArtifactStore, retry_seconds: float = _RETRY_SECONDS) -> None:
        self._store = store
        self._retry_seconds = retry_seconds
        self._cached: dict[str, AdapterCalibration] = {}
        self._look_up_at: dict[str, float] = {}
        """Adapters to look up, and when to do so next, in monotonic seconds."""

    def get(self, adapter: str | None) -> AdapterCalibration | None:
        """The adapter's calibration, if it is in the cache. No I/O, no lock."""
        if adapter is None:
            return None
        found = self._cached.get(adapter)
        if found is None and adapter not in self._look_up_at and len(self._look_up_at) < _MAX_PENDING:
            self._look_up_at[adapter] = 0.0
        return found

    async def watch_forever(self) -> None:
        """Background: look up the adapters that were asked for."""
        while True:
            await self.look_up()
            await asyncio.sleep(_POLL_SECONDS)

    async def look_up(self) -> None:
        """Look up each adapter that is due. One whose look-up fails (store down, file damaged) is due again later."""
        now = time.monotonic()
        for adapter in [name for name, at in self._look_up_at.items() if at <= now]:
            self._look_up_at[adapter] = now + self._retry_seconds
            try:
                found = await asyncio.to_thread(read_calibration, self._store, adapter)
            except DependencyUnavailable:
                continue  # It has no calibration, or not yet.
            except (OSError, ValueError) as error:
                logger.warning("the calibration of %s cannot be read, its scores stay raw: %s", adapter, error)
                continue
            self._cached[adapter] = found
            del self._look_up_at[adapter]
            logger.info("%s is calibrated by %s (%s)", adapter, found.calibration.name, found.calibration.kind)
