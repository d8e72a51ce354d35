"""Least-outstanding-requests load balancing over replicas, with a circuit breaker each. Pure: no I/O, clock or locks.

The state belongs to one process: each worker balances its own share of the load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence


class ModelReplica:
    """A model server. `url`: as logs show it, without credentials.

    `outstanding`: its unanswered requests; `failures`: consecutive ones since its last answer; `erred`: the last of
    them was an answer, status 500.
    """

    __slots__ = ("circuit_open", "erred", "failures", "last_picked", "outstanding", "url")

    def __init__(self, url: str) -> None:
        self.url = url
        self.outstanding = 0
        self.failures = 0
        self.erred = False
        self.circuit_open = False
        self.last_picked = 0


class ReplicaPool:
    """The replicas, each with a circuit breaker.

    A circuit opens after `opens_after` consecutive failures, or at once if the connection is refused; then only the
    background probe reaches the replica. A successful probe half-opens it: requests are sent again, and the first
    failure opens it. With all circuits open, requests are sent to those that answered at least with an error, and with
    `last_resort` to all: where there is no fallback, failing without trying would help nobody.
    """

    def __init__(self, urls: Sequence[str], opens_after: int, *, last_resort: bool = True) -> None:
        self._replicas = tuple(ModelReplica(url) for url in urls)
        self._opens_after = opens_after
        self._last_resort = last_resort
        self._picks = 0

    def __iter__(self) -> Iterator[ModelReplica]:
        return iter(self._replicas)

    @property
    def all_open(self) -> bool:
        """True if every circuit is open."""
        return all(replica.circuit_open for replica in self._replicas)

    def pick(self, tried: Collection[ModelReplica] = ()) -> ModelReplica | None:
        """Return the replica with the fewest outstanding requests; among equals, the least recently picked.

        None if every replica was tried or is left out.
        """
        all_open = self.all_open
        left = [
            each
            for each in self._replicas
            if each not in tried and (not each.circuit_open or (all_open and (each.erred or self._last_resort)))
        ]
        if not left:
            return None
        best = min(left, key=_load)
        self._picks += 1
        best.last_picked = self._picks
        return best

    def record_success(self, replica: ModelReplica) -> None:
        replica.failures = 0
        replica.circuit_open = False

    def record_failure(self, replica: ModelReplica, *, refused: bool = False, erred: bool = False) -> None:
        """`refused`: the connection was refused, which opens the circuit at once. `erred`: it answered, with a 500."""
        replica.erred = erred
        replica.failures += 1
        if refused or replica.failures >= self._opens_after:
            replica.circuit_open = True

    def half_open(self, replica: ModelReplica) -> None:
        """Record that a replica with an open circuit answered a probe."""
        if replica.circuit_open:
            replica.circuit_open = False
            replica.failures = self._opens_after - 1


def _load(replica: ModelReplica) -> tuple[int, int]:
    return replica.outstanding, replica.last_picked
