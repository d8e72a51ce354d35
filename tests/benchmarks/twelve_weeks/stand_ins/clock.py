"""A clock that the benchmark turns. While it is installed, every `utc_now` of this process tells its time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, tzinfo
from unittest.mock import patch


class Clock:
    """Stands in for the class `datetime` in `schemas.base`, whose `utc_now` all services call."""

    def __init__(self, start: datetime) -> None:
        self.time = start

    def now(self, zone: tzinfo | None = None) -> datetime:
        return self.time.astimezone(zone)

    def turn(self, by: timedelta) -> None:
        self.time += by

    @contextmanager
    def installed(self) -> Iterator[None]:
        with patch("schemas.base.datetime", self):
            yield
