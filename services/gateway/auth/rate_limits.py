"""Token buckets shared by all workers of a gateway.

A bucket is one number, the time at which it is full again (the generic cell rate algorithm), so workers share it as an
eight-byte file that each maps into memory. There is no lock: of two takes in the same microsecond one may go
uncounted, and a shared bucket costs a request no more than a private one.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
from pathlib import Path

_CELL_BYTES = 8
_ROUNDING_ERROR = 1e-9

logger = logging.getLogger(__name__)


class TokenBucket:
    """Refilled with `rate` tokens a second up to `burst`; full at first. `cell`: seconds of a monotonic clock."""

    __slots__ = ("_full_at", "burst", "rate")

    def __init__(self, rate: float, burst: float, cell: memoryview[float]) -> None:
        self.rate = rate
        self.burst = burst
        self._full_at = cell

    def take(self, amount: float, now: float) -> float:
        """Take `amount` and return 0.0, or take nothing and return the seconds to wait.

        An amount over `burst` is granted when the bucket is full and paid back afterwards; else it never would be.
        """
        full_at = max(self._full_at[0], now)
        shortage = min(amount, self.burst) - (self.burst - (full_at - now) * self.rate)
        if shortage > _ROUNDING_ERROR:
            return shortage / self.rate
        self._full_at[0] = full_at + amount / self.rate
        return 0.0


class TokenBuckets:
    """The buckets of all apps. They outlive a change of keys, and overlapping keys of an app share its limits.

    `folder` is shared by the workers; None: this process is alone. Whoever starts the workers clears it first with
    `clear_buckets`, because the monotonic clock may have restarted since it was written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._by_name: dict[str, TokenBucket] = {}

    def bucket(self, app: str, kind: str, rate: float, burst: float) -> TokenBucket:
        """Return an app's bucket of this `kind` (requests or bytes). `app` is part of a file name. Blocks."""
        name = f"{app} {kind} {rate!r} {burst!r}"
        if name not in self._by_name:
            self._by_name[name] = TokenBucket(rate, burst, self._cell(name))
        return self._by_name[name]

    def _cell(self, name: str) -> memoryview[float]:
        if self._folder is not None:
            try:
                return _mapped(self._folder / name)
            except OSError as error:
                logger.error("rate limit of %s is not shared between workers: %s", name.split()[0], error)
        return memoryview(bytearray(_CELL_BYTES)).cast("d")


def clear_buckets(folder: Path) -> None:
    """Reset the buckets in a folder: all will be full. Raises OSError."""
    if folder.exists():
        shutil.rmtree(folder)


def _mapped(path: Path) -> memoryview[float]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Reserves the disk space now; on a full disk the first write would otherwise kill the process.
        os.posix_fallocate(descriptor, 0, _CELL_BYTES)
        return memoryview(mmap.mmap(descriptor, _CELL_BYTES)).cast("d")
    finally:
        os.close(descriptor)
