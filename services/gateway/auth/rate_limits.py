"""Token buckets that all workers of a gateway dip into.

A bucket is one number, the moment when it is full again (the generic cell rate algorithm), so the workers of a machine
share it as eight bytes of a file that each of them maps into its memory. No lock: of two takes in the same microsecond
one may go uncounted, and a request pays what it pays for a bucket of its own.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
from pathlib import Path

_CELL = 8
_OVERDRAFT = 1e-9

logger = logging.getLogger(__name__)


class TokenBucket:
    """`rate` a second flow in, at most `burst` lie in it. Full at first. In its cell: seconds of a monotonic clock."""

    __slots__ = ("_full_at", "burst", "rate")

    def __init__(self, rate: float, burst: float, cell: memoryview[float]) -> None:
        self.rate = rate
        self.burst = burst
        self._full_at = cell

    def take(self, amount: float, now: float) -> float:
        """Take `amount`, or nothing; returns how many seconds to wait: 0.0, it was taken.

        More than the whole bucket is given when it is full, and owed afterwards: else it would never be given.
        """
        full_at = max(self._full_at[0], now)
        lacking = min(amount, self.burst) - (self.burst - (full_at - now) * self.rate)
        if lacking > _OVERDRAFT:
            return lacking / self.rate
        self._full_at[0] = full_at + amount / self.rate
        return 0.0


class TokenBuckets:
    """The buckets of all apps. They outlive a change of the keys: two keys of an app that overlap share its limits.

    `folder`: what the workers share; None: this process is alone. Whoever starts the workers clears the folder first
    (`clear`): the clock may have begun anew since it was written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._known: dict[str, TokenBucket] = {}

    def bucket(self, app: str, kind: str, rate: float, burst: float) -> TokenBucket:
        """That of an app's requests or bytes; `app` is fit for a file's name. Blocks."""
        name = f"{app} {kind} {rate!r} {burst!r}"
        if name not in self._known:
            self._known[name] = TokenBucket(rate, burst, self._cell(name))
        return self._known[name]

    def _cell(self, name: str) -> memoryview[float]:
        if self._folder is not None:
            try:
                return _mapped(self._folder / name)
            except OSError as error:
                logger.error("each worker limits %s for itself: %s", name.split()[0], error)
        return _own()


def clear_buckets(folder: Path) -> None:
    """Forget what the buckets in it hold: all will be full. Raises OSError."""
    if folder.exists():
        shutil.rmtree(folder)


def _own() -> memoryview[float]:
    """A number that nobody shares."""
    return memoryview(bytearray(_CELL)).cast("d")


def _mapped(path: Path) -> memoryview[float]:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Its place on the disk is taken now: a full disk would otherwise kill the process at the first write.
        os.posix_fallocate(descriptor, 0, _CELL)
        return memoryview(mmap.mmap(descriptor, _CELL)).cast("d")
    finally:
        os.close(descriptor)
