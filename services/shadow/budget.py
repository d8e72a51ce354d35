"""What a task may spend on replays: requests a second, tokens a day, and the time of its places. The rules are pure.

So many replays of a task are under way at once, so in an hour it may have no more than take so many hours, by how long
production took: with more it would fall behind further and further, and tasks of the same partitions with it.

A request is within the budget while what was spent *before* it is below the limits, and costs what production's call
took. So nothing that either arm answers to it, its length included, decides whether it is replayed, and neither does
how long the candidate takes: the requests of a second are those that production answered then, whenever they are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged
from services.shadow.domain import Outcome, replays_per_pair
from shared.kafka.delivery import Delivery

BURST_SECONDS = 1.0
_CHARACTERS_PER_TOKEN = 4
_HOUR_MS = 3_600_000.0


@dataclass(frozen=True)
class Considered:
    """A request of a task whose candidate is being compared. `left_out`: why it is no pair, whatever the budget.

    `is_put_off`: it is left for later, since shadow's flag is off or the candidate's training rows cannot be read.
    `from_backlog`: it was read again, after it had been left for later.
    """

    delivery: Delivery[PredictionLogged]
    rollout: RolloutChanged
    left_out: Outcome | None = None
    is_put_off: bool = False
    from_backlog: bool = False

    @property
    def position(self) -> tuple[int, int]:
        """Partition and offset."""
        return self.delivery.partition, self.delivery.offset

    @property
    def minute(self) -> datetime:
        """The minute in which production answered, in UTC."""
        return self.delivery.event.occurred_at.astimezone(UTC).replace(second=0, microsecond=0)

    @property
    def hour(self) -> datetime:
        return self.minute.replace(minute=0)

    @property
    def busy_ms(self) -> float:
        """How long the replays will take, if they take as long as production did."""
        return self.replays * self.delivery.event.latency_ms

    @property
    def replays(self) -> int:
        return replays_per_pair(self.delivery.event, self.rollout)

    @property
    def tokens(self) -> int:
        """What the replays cost: production's tokens, or, where its server did not count them, an estimate."""
        event = self.delivery.event
        counted = event.usage.prompt_tokens + event.usage.answer_tokens
        return self.replays * (counted or len(event.call.model_dump_json()) // _CHARACTERS_PER_TOKEN)


@dataclass
class Spending:
    """Requests by task and minute, time by task and hour, and tokens by task of one UTC day.

    `concurrency`: replays of a task that are under way at once.
    """

    day: date
    concurrency: int
    requests: dict[tuple[str, datetime], int] = field(default_factory=dict)
    busy_ms: dict[tuple[str, datetime], float] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def decide(self, requests: Iterable[Considered]) -> list[Outcome | None]:
        """Return why each request is left out; None: it is replayed, and was paid for here."""
        return [request.left_out or self._pay(request) for request in requests]

    def _pay(self, request: Considered) -> Outcome | None:
        task, limits = request.rollout.task, request.rollout.spec.rollout
        minute, hour = (task, request.minute), (task, request.hour)
        if self.requests.get(minute, 0) >= 60 * limits.shadow_requests_per_second:
            return Outcome.RATE
        if self.busy_ms.get(hour, 0.0) >= _HOUR_MS * self.concurrency:
            return Outcome.RATE
        if self.tokens.get(task, 0) >= limits.shadow_tokens_per_day:
            return Outcome.TOKENS
        self.requests[minute] = self.requests.get(minute, 0) + request.replays
        self.busy_ms[hour] = self.busy_ms.get(hour, 0.0) + request.busy_ms
        self.tokens[task] = self.tokens.get(task, 0) + request.tokens
        return None


class Pace:
    """Spreads a task's replays over time: a token bucket that holds the replays of one second.

    It delays and leaves out nothing: old requests, read all at once, reach the engine no faster than new ones. A second
    has the sixtieth part of what the budget takes in a minute, which is whole requests: else it would fall behind by
    the rest of one each minute.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def book(self, request: Considered, now: float, latest: float) -> float | None:
        """Return when the request may be sent, in seconds; None, and nothing is booked, if that is after `latest`."""
        task, limit = request.rollout.task, 60 * request.rollout.spec.rollout.shadow_requests_per_second
        at = max(self._next.get(task, 0.0), now - BURST_SECONDS)
        if at > latest:
            return None
        self._next[task] = at + 60 / math.ceil(limit / request.replays)
        return max(at, now)
