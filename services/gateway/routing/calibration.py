"""The adapters' calibrations, from the artifact store. Off the request path: a request only looks into a dict.

An adapter that is asked for and not known yet is looked for in the background; until it is found, and where it has
none (the base model, an adapter from before calibration), answers keep their raw score. What was found stays: the
store never changes it. Neither Kafka nor a database is needed, so a gateway that starts while they are away has them.
"""

from __future__ import annotations

import asyncio
import logging
import time

from schemas.adapters import CALIBRATION_FILE, CALIBRATIONS, Calibration
from shared.errors import DependencyUnavailable
from shared.storage.artifacts import ArtifactStore

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 30.0
"""An adapter without a calibration is looked for again after so long: its evaluation may just have ended."""
_MOST = 1_000
"""Adapters looked for: names come from flags, so more than this is a mistake somewhere."""

logger = logging.getLogger(__name__)


class CalibrationCache:
    def __init__(self, store: ArtifactStore, again_seconds: float = _AGAIN_SECONDS) -> None:
        self._store = store
        self._again_seconds = again_seconds
        self._known: dict[str, Calibration] = {}
        self._look_at: dict[str, float] = {}
        """Adapters to look for, and when next (monotonic seconds)."""

    def of(self, adapter: str | None) -> Calibration | None:
        """The adapter's calibration, if it is known. No I/O, no lock."""
        if adapter is None:
            return None
        found = self._known.get(adapter)
        if found is None and adapter not in self._look_at and len(self._look_at) < _MOST:
            self._look_at[adapter] = 0.0
        return found

    async def watch_forever(self) -> None:
        """Background: look for what was asked for."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def look(self) -> None:
        """Look once for each adapter whose time it is. A store that is away, or a damaged file, is a later look."""
        now = time.monotonic()
        for adapter in [name for name, at in self._look_at.items() if at <= now]:
            self._look_at[adapter] = now + self._again_seconds
            try:
                found = await asyncio.to_thread(self._read, adapter)
            except DependencyUnavailable:
                continue  # It has none, or none yet.
            except (OSError, ValueError) as error:
                logger.warning("the calibration of %s cannot be read, its scores stay raw: %s", adapter, error)
                continue
            self._known[adapter] = found
            del self._look_at[adapter]
            logger.info("%s is calibrated by %s (%s)", adapter, found.name, found.kind)

    def _read(self, adapter: str) -> Calibration:
        folder = self._store.fetch(self._store.address(CALIBRATIONS, adapter))
        return Calibration.model_validate_json((folder / CALIBRATION_FILE).read_bytes())
