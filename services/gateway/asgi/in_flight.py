"""Counts the bytes of request bodies that a worker holds, so that they, and what one application has of them, are
bounded. No I/O."""

from __future__ import annotations

from shared.http import HttpError

_SMALL_BYTES = 64 * 1024
_SHARE_OF_LARGE = 0.875
"""Bodies that are not small leave the rest of the limits to small ones, so that few large ones do not shut them out."""


class BytesInFlight:
    """`max_total` for all requests of this process, `max_per_app` for those of one application.

    A request that is alone is always let in, whatever its size: else it never could be.
    """

    def __init__(self, max_total: int, max_per_app: int) -> None:
        self.total = 0
        self._max_total = max_total
        self._max_per_app = max_per_app
        self._by_app: dict[str, int] = {}

    def add(self, app: str | None, size: int, held: int) -> None:
        """Count `size` more bytes of a request that has `held` so far. Raises HttpError 429, 503."""
        share = 1.0 if held + size <= _SMALL_BYTES else _SHARE_OF_LARGE
        if app is not None:
            of_app = self._by_app.get(app, 0)
            if of_app + size > self._max_per_app * share and of_app > held:
                message = (
                    f"the requests of {app} in flight have {of_app} bytes and may have {self._max_per_app}; try again"
                )
                raise HttpError(429, message, "too_many_bytes_in_flight")
        if self.total + size > self._max_total * share and self.total > held:
            message = f"the requests in flight have {self.total} bytes and may have {self._max_total}; try again"
            raise HttpError(503, message, "too_many_bytes_in_flight")
        self.total += size
        if app is not None:
            self._by_app[app] = of_app + size

    def remove(self, app: str | None, size: int) -> None:
        self.total -= size
        if app is not None:
            left = self._by_app[app] - size
            if left:
                self._by_app[app] = left
            else:
                del self._by_app[app]  # Else an application that is gone would stay for ever.


class HeldBytes:
    """The bytes of one request's body, counted until `release`. `app`: whose they are, set before the first."""

    __slots__ = ("_in_flight", "app", "size")

    def __init__(self, in_flight: BytesInFlight) -> None:
        self._in_flight = in_flight
        self.app: str | None = None
        self.size = 0

    def grow_to(self, size: int) -> None:
        """Count the body with `size` bytes, if it was counted with fewer. Raises HttpError 429, 503."""
        if size > self.size:
            self._in_flight.add(self.app, size - self.size, self.size)
            self.size = size

    def release(self) -> None:
        """Idempotent."""
        if self.size:
            self._in_flight.remove(self.app, self.size)
            self.size = 0
