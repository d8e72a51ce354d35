"""Rules for retrying a request that failed at one replica. Pure."""

from __future__ import annotations

from services.gateway.upstreams.pool import ModelReplica
from services.gateway.upstreams.upstream import ModelNotServed, UpstreamFailed


class RetryBudget:
    """A retry budget: retries after an error may be at most `share` of the requests, plus a small reserve.

    So an outage in which every replica answers with errors adds `share` to the load instead of multiplying it.
    """

    def __init__(self, share: float, reserve: float = 10.0) -> None:
        self._share = share
        self._max_tokens = max(reserve, 1.0)
        self._tokens = reserve

    def record_request(self) -> None:
        if self._tokens < self._max_tokens:
            self._tokens += self._share

    def try_spend(self) -> bool:
        """Take one retry from the budget; return False if it is used up."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class Attempts:
    """The attempts of one request so far."""

    def __init__(self, retries: int) -> None:
        self.tried: list[ModelReplica] = []
        self.failure: UpstreamFailed | None = None
        self._retries_left = retries
        self._lost: ModelReplica | None = None

    def take_lost(self) -> ModelReplica | None:
        """Return, once, the replica whose connection was lost: an idle connection may just have been closed."""
        replica, self._lost = self._lost, None
        return replica

    def should_retry(self, replica: ModelReplica, error: UpstreamFailed, budget: RetryBudget) -> bool:
        """Return True to try another replica after this failure. `failure` is the one to raise if none answers.

        A replica's answer wins over a connection error: it is there. ModelNotServed does first: another arm may answer.
        """
        if self.failure is None or self.failure.down or isinstance(error, ModelNotServed):
            self.failure = error
        if not error.another_may_answer and error.status != 429:
            self.failure = error
            return False
        if error.reason == "lost" and replica not in self.tried:
            self._lost = replica
        self.tried.append(replica)
        if isinstance(error, ModelNotServed):  # Costs the replica no work, so every replica may be tried.
            return True
        self._retries_left -= 1
        return self._retries_left >= 0 and (error.reason in ("away", "lost") or budget.try_spend())
