"""When a request that failed at one replica is tried again. Pure."""

from __future__ import annotations

from services.gateway.upstreams.pool import Replica
from services.gateway.upstreams.upstream import NotServed, UpstreamFailed


class RetryBudget:
    """Retries of what a replica has worked on and refused: at most `share` of the requests, beside a few to begin with.

    So an outage in which every replica answers with errors adds `share` to the load, and does not multiply it.
    """

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self._share = share
        self._most = max(reserve, 1.0)
        self._left = reserve

    def asked(self) -> None:
        """A request came."""
        if self._left < self._most:
            self._left += self._share

    def spend(self) -> bool:
        """Whether one more retry is within the budget; it is taken from it."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Tries:
    """What one request has been through."""

    def __init__(self, retries: int) -> None:
        self.tried: list[Replica] = []
        self.failure: UpstreamFailed | None = None
        self._left = retries
        self._lost: Replica | None = None

    def again(self) -> Replica | None:
        """The replica whose connection was lost, once more, when there is no other: it had been idle for too long."""
        again, self._lost = self._lost, None
        return again

    def goes_on(self, replica: Replica, error: UpstreamFailed, budget: RetryBudget) -> bool:
        """Whether to try again after this failure. `failure` is what to raise if nobody answers.

        A replica that is up and lacks the model says more than one that is away: another arm can answer.
        """
        if not isinstance(self.failure, NotServed) or isinstance(error, NotServed):
            self.failure = error
        if not error.elsewhere and error.status != 429:
            self.failure = error
            return False
        if error.reason == "lost" and replica not in self.tried:
            self._lost = replica
        self.tried.append(replica)
        if isinstance(error, NotServed):  # Said at once, without work: all may be asked.
            return True
        self._left -= 1
        return self._left >= 0 and (error.reason in ("away", "lost") or budget.spend())
