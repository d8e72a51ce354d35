"""Least-outstanding-requests load balancing over replicas, with a circuit breaker each. Pure: no I/O, clock or locks.

The state belongs to one process: each worker balances its own share of the load.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

_MAX_PAUSE_SECONDS = 60.0


class ModelReplica:
    """A model server. `url`: as logs show it, without credentials.

    `outstanding`: its unanswered requests; `failures`: consecutive ones since its last answer; `only_errs`: all of
    those were answers, status 500; `models`: those that it listed last, None if it is not known; `missing`: those that
    it refused since.
    """

    __slots__ = (
        "circuit_open", "failures", "last_picked", "missing", "models", "only_errs", "outstanding", "paused_until",
        "url",
    )  # fmt: skip

    def __init__(self, url: str) -> None:
        self.url = url
        self.outstanding = 0
        self.failures = 0
        self.only_errs = False
        self.circuit_open = False
        self.paused_until = 0.0
        self.last_picked = 0
        self.models: frozenset[str] | None = None
        self.missing: set[str] = set()

    def lacks(self, model: str) -> bool:
        """Return True if it is known not to serve the model. "" stands for any."""
        return bool(model) and (model in self.missing or (self.models is not None and model not in self.models))

    def set_models(self, models: frozenset[str] | None) -> None:
        """Record what it lists now. None: its list cannot be read."""
        self.models = models
        self.missing.clear()


class ReplicaPool:
    """The replicas, each with a circuit breaker.

    A circuit opens after `opens_after` consecutive failures, or at once if the connection is refused; then only the
    background probe reaches the replica. A successful probe half-opens it: requests are sent again, and the first
    failure opens it. With all circuits open and `last_resort` set, requests are sent to all replicas: with no other
    source of answers, failing without trying would help nobody.
    """

    def __init__(self, urls: Sequence[str], opens_after: int, *, last_resort: bool = True) -> None:
        self._replicas = tuple(ModelReplica(url) for url in urls)
        self._opens_after = opens_after
        self._last_resort = last_resort
        self._picks = 0

    def __iter__(self) -> Iterator[ModelReplica]:
        return iter(self._replicas)

    def pick(self, now: float, tried: Collection[ModelReplica] = (), model: str = "") -> ModelReplica | None:
        """Return the replica with the fewest outstanding requests; among equals, the least recently picked.

        One that lacks the `model` is picked only where no other is left: it may have got it meanwhile. None if every
        replica was tried, has an open circuit or asked for a pause. `now`: seconds, monotonic.
        """
        best = self._best(now, tried, model, False)
        if best is None and self._last_resort and all(replica.circuit_open for replica in self._replicas):
            best = self._best(now, tried, model, True)
        if best is not None:
            self._picks += 1
            best.last_picked = self._picks
        return best

    def _best(self, now: float, tried: Collection[ModelReplica], model: str, include_open: bool) -> ModelReplica | None:
        best, least = None, (True, 0, 0)
        for replica in self._replicas:
            if (replica.circuit_open and not include_open) or replica.paused_until > now or replica in tried:
                continue
            rank = (replica.lacks(model), replica.outstanding, replica.last_picked)
            if best is None or rank < least:
                best, least = replica, rank
        return best

    def may_answer(self, tried: Collection[ModelReplica]) -> bool:
        """Return True if a replica is there, as far as is known: not tried yet, or left out for its 500s alone."""
        untried = any(not replica.circuit_open and replica not in tried for replica in self._replicas)
        return untried or self.answers_with_errors

    def seconds_until_available(self, now: float) -> float:
        """Seconds until the first paused replica takes requests again; 0.0 if there is nothing to wait for."""
        pauses = (replica.paused_until - now for replica in self._replicas if not replica.circuit_open)
        return max(0.0, min(pauses, default=0.0))

    def record_success(self, replica: ModelReplica, model: str = "") -> None:
        """`model`: which it served; then it has it, even if it did not list it."""
        replica.failures = 0
        replica.circuit_open = False
        if replica.lacks(model):
            replica.missing.discard(model)
            if replica.models is not None:
                replica.models |= {model}

    def record_failure(self, replica: ModelReplica, *, refused: bool = False, erred: bool = False) -> None:
        """`refused`: the connection was refused, which opens the circuit at once. `erred`: it answered, with a 500."""
        replica.only_errs = erred and (replica.only_errs or not replica.failures)
        replica.failures += 1
        if refused or replica.failures >= self._opens_after:
            replica.circuit_open = True

    @property
    def answers_with_errors(self) -> bool:
        """Return True if some replica is left out for nothing but 500s: it is not away."""
        return any(replica.circuit_open and replica.only_errs for replica in self._replicas)

    def pause(self, replica: ModelReplica, until: float, now: float) -> None:
        """Send the replica nothing until then, but for a minute at most."""
        replica.paused_until = min(until, now + _MAX_PAUSE_SECONDS)

    def half_open(self, replica: ModelReplica) -> None:
        """Record that a replica with an open circuit answered a probe."""
        if replica.circuit_open:
            replica.circuit_open = False
            replica.failures, replica.only_errs = self._opens_after - 1, True
