"""A warning that many requests may cause: it is logged once a minute, with how often it was due since."""

from __future__ import annotations

import logging
import time

_SECONDS = 60.0


class RateLimitedWarning:
    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._logged_at: float | None = None
        self._unlogged = 0

    def log(self, message: str, *values: object) -> None:
        """Log `message % values`, unless a warning was logged within the last minute: then only count it."""
        now = time.monotonic()
        if self._logged_at is not None and now - self._logged_at < _SECONDS:
            self._unlogged += 1
            return
        self._logger.warning(f"{message} (%d more since the last such line)", *values, self._unlogged)
        self._logged_at, self._unlogged = now, 0
