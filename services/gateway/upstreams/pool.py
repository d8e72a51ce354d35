"""Which replica is asked next, and which are left alone for a while. Pure: no I/O, no clock of its own, no locks.

Everything is a plain number of one process's event loop: several workers each see their own share of the load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

_LONGEST_BUSY_SECONDS = 60.0


class Replica:
    """One model server. `outstanding`: requests that wait for it; `failures`: in a row, since its last answer."""

    __slots__ = ("busy_until", "failures", "is_open", "outstanding", "turn", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.outstanding = 0
        self.failures = 0
        self.is_open = False
        self.busy_until = 0.0
        self.turn = 0


class Pool:
    """The replicas, with a circuit each.

    A circuit opens after `opens_after` failures in a row, at once if nobody listens; then only the probe in the
    background asks the replica. When that gets an answer, the circuit is half open: requests go there again, and the
    first that fails opens it. If all circuits are open and `last_resort` is set, requests go to all of them as if
    none were: to fail without asking helps nobody where nobody else can answer.
    """

    def __init__(self, urls: Sequence[str], opens_after: int, *, last_resort: bool = True) -> None:
        self._replicas = tuple(Replica(url) for url in urls)
        self._opens_after = opens_after
        self._last_resort = last_resort
        self._turn = 0

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._replicas)

    def pick(self, now: float, tried: Collection[Replica] = ()) -> Replica | None:
        """The replica with the fewest outstanding requests, of equals the one that had none for longest.

        None if those that are left were tried, are open or asked to wait. `now`: seconds of a monotonic clock.
        """
        best = self._least(now, tried, False)
        if best is None and self._last_resort and all(one.is_open for one in self._replicas):
            best = self._least(now, tried, True)
        if best is not None:
            self._turn += 1
            best.turn = self._turn
        return best

    def _least(self, now: float, tried: Collection[Replica], open_too: bool) -> Replica | None:
        best = None
        for one in self._replicas:
            if (one.is_open and not open_too) or one.busy_until > now or one in tried:
                continue
            if (
                best is None
                or one.outstanding < best.outstanding
                or (one.outstanding == best.outstanding and one.turn < best.turn)
            ):
                best = one
        return best

    def seconds_busy(self, now: float) -> float:
        """How long until a replica that is there takes requests again; 0.0 if one does now, or none is there."""
        return max(0.0, min((one.busy_until - now for one in self._replicas if not one.is_open), default=0.0))

    def succeeded(self, replica: Replica) -> None:
        replica.failures = 0
        replica.is_open = False

    def failed(self, replica: Replica, *, gone: bool = False) -> None:
        """`gone`: nobody listens there, which needs no second opinion."""
        replica.failures += 1
        if gone or replica.failures >= self._opens_after:
            replica.is_open = True

    def busy(self, replica: Replica, until: float, now: float) -> None:
        """It asked for a pause: `until`, but no longer than a minute."""
        replica.busy_until = min(until, now + _LONGEST_BUSY_SECONDS)

    def probed(self, replica: Replica) -> None:
        """It answers again: half open."""
        if replica.is_open:
            replica.is_open = False
            replica.failures = self._opens_after - 1
