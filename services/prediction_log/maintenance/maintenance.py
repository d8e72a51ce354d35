"""The scheduled maintenance of the lake: retention, the erasure sweep, then compaction of every table."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime

from schemas.lake import FORGOTTEN
from services.prediction_log.erasure.erase import ErasureSweep
from services.prediction_log.maintenance.compaction import Compaction, MaintenancePolicy
from services.prediction_log.maintenance.retention import delete_expired
from services.prediction_log.tables import DROPPED, PARTITIONED, open_table
from shared.errors import DependencyUnavailable

logger = logging.getLogger(__name__)


class Maintenance:
    """Maintains the lake at `uri`."""

    def __init__(self, uri: str, policy: MaintenancePolicy) -> None:
        self._uri = uri.rstrip("/")
        self._sweep = ErasureSweep(self._uri)
        self._compaction = Compaction(self._uri, policy)

    def run(self, retention_days: Mapping[str, int | None], now: datetime) -> None:
        """Run one round over all tables. Blocks. Raises DependencyUnavailable.

        `retention_days`: how long each task's rows are kept; None: for ever.
        """
        failed: DependencyUnavailable | None = None
        try:
            delete_expired(self._uri, retention_days, now)
            if self._sweep.run():
                logger.warning("deleted rows of erased people that were appended after their erasure")
        except DependencyUnavailable as error:  # Commit conflicts here must not stop the compaction, round after round.
            failed = error
        for table in (*PARTITIONED, FORGOTTEN, DROPPED):
            delta = open_table(self._uri, table)
            if delta is not None:
                self._compaction.run(table, delta, now)
        if failed is not None:
            raise failed
