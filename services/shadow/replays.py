"""Replays the requests that were decided on, so many of a task at once and at its pace, and publishes their pairs."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence

from schemas.base import utc_now
from schemas.conversation import Answer
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared
from services.shadow.budget import BURST_SECONDS, Considered, Pace
from services.shadow.clients import CandidateMissing, VllmEngine
from services.shadow.domain import Outcome, Request, asks_both_arms, pair_of, request_of
from services.shadow.storage import PostgresDecisions
from shared.errors import DependencyUnavailable, Paused
from shared.kafka.publisher import Publisher

logger = logging.getLogger(__name__)

CLAIM_SECONDS = 60.0
"""So long a batch waits for those of other processes."""
MAX_REQUESTS = 32
"""Of a batch."""
MAX_BATCH_SECONDS = 60.0
"""No replay starts later after its task is claimed: a batch must end within Kafka's poll limit."""
BUSY_PAUSE_SECONDS = 1.0
_TASKS_AT_ONCE = 4
"""So many tasks may have all of their places taken at the same time."""
_CLAIMS_AT_ONCE = 8
"""Each holds a connection to the database for as long as the task's replays take."""


class Replays:
    """Asks the arms, publishes each pair, and records that; a redelivered one is not asked again.

    Pairs of one batch are published in the order of their requests; between a task's batches, which follow each other
    (`claimed_task`), it is the order in which they are read. In the order in which they are made, a fast answer of the
    candidate would be its subject's first pair, and bet instead of a slow one or one that timed out; and
    the greatest wealth so far must not depend on which answers come first.
    Tasks do not wait for each other within a batch: each is claimed for as long as its own replays take, and has
    `concurrency` places of its own, for all callers together. All of them have four times as many: not more than an
    engine on a CPU takes at once.
    """

    def __init__(
        self,
        engine: VllmEngine,
        is_busy: Callable[[], Awaitable[bool]],
        publisher: Publisher,
        decisions: PostgresDecisions,
        concurrency: int,
    ) -> None:
        self._engine = engine
        self._is_busy = is_busy
        self._publisher = publisher
        self._decisions = decisions
        self._all_places = asyncio.Semaphore(_TASKS_AT_ONCE * concurrency)
        self._places: dict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(concurrency))
        self._claims = asyncio.Semaphore(_CLAIMS_AT_ONCE)
        self._pace = Pace()

    async def run(self, requests: Sequence[Considered]) -> None:
        """Replay the requests that were decided on, those of a task in their order.

        Raises Paused if the turn of some does not come in time, CandidateMissing, or DependencyUnavailable if the
        engine, the broker or the database is away: called again, it goes on with what is left.
        """
        latest = asyncio.get_running_loop().time() + CLAIM_SECONDS
        of_tasks: dict[str, list[Considered]] = {}
        for request in requests:
            of_tasks.setdefault(request.rollout.task, []).append(request)
        parts = (self._run_claimed(task, part, latest) for task, part in of_tasks.items())
        left = await asyncio.gather(*parts, return_exceptions=True)
        waiting = sum(number for number in left if isinstance(number, int))
        if missing := [result for result in left if isinstance(result, CandidateMissing)]:
            # Of all tasks at once: their requests are left for later.
            raise CandidateMissing(missing[0].reason, *(uri for failure in missing for uri in failure.uris))
        failure = next((result for result in left if isinstance(result, BaseException)), None)
        if failure is not None and not (waiting and isinstance(failure, DependencyUnavailable)):
            raise failure
        if waiting:  # A failure would be tried again at once, and other tasks' turns with it, beyond the poll limit.
            if failure is not None:
                logger.warning("a replay is tried again later: %s", failure)
            raise Paused(f"{waiting} replays wait for their turn")

    async def _run_claimed(self, task: str, requests: Sequence[Considered], latest: float) -> int:
        """Replay a task's requests once no other batch of it is. Return the number of those whose turn did not come."""
        clock = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout_at(latest):
                await self._claims.acquire()
        except TimeoutError:
            return len(requests)
        try:
            async with self._decisions.claimed_task(task, latest - clock()) as is_ours:
                if not is_ours:
                    return len(requests)
                # Another process may have replayed some meanwhile: one that had their partition before a rebalance.
                still = await self._decisions.decide(requests, utc_now())
                left = [request for request in still if not await self._leave_out(request)]
                return await self._run(left, self._places[task], clock() + MAX_BATCH_SECONDS)
        finally:
            self._claims.release()

    async def _run(self, requests: Sequence[Considered], places: asyncio.Semaphore, latest: float) -> int:
        """Replay a task's requests. Return the number of those whose turn did not come in time."""
        last: asyncio.Task[None] | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for number, request in enumerate(requests):
                    if not await self._turn_of(request, places, latest):
                        return len(requests) - number
                    compared = group.create_task(self._compare(request.delivery.event, request.rollout))
                    compared.add_done_callback(lambda _: self._leave(places))
                    last = group.create_task(self._publish(request, compared, last))
        except ExceptionGroup as failures:  # The group cancelled the rest.
            raise failures.exceptions[0] from failures
        return 0

    async def _leave_out(self, request: Considered) -> bool:
        """Finish a request that was eligible when it was decided but is not any more; return False if it still is."""
        reason = Outcome.BUSY if request.left_out is Outcome.LATE else request.left_out
        if reason:
            await self._decisions.finish(request, reason)
        return reason is not None

    async def _turn_of(self, request: Considered, places: asyncio.Semaphore, latest: float) -> bool:
        """Wait until the request may be replayed and return True, holding one of the places; False: not in time."""
        clock = asyncio.get_running_loop().time
        await places.acquire()
        try:
            at = self._pace.book(request, clock(), latest)
            if at is None:
                places.release()
                return False
            await asyncio.sleep(at - clock())
            await self._all_places.acquire()  # Not before: who waits for a turn keeps no other task from its own.
        except BaseException:
            places.release()
            raise
        try:  # It may have waited long for its place.
            is_idle = clock() <= latest + BURST_SECONDS and await self._is_idle(latest)
        except BaseException:
            self._leave(places)
            raise
        if not is_idle:
            self._leave(places)
        return is_idle

    def _leave(self, places: asyncio.Semaphore) -> None:
        self._all_places.release()
        places.release()

    async def _is_idle(self, latest: float) -> bool:
        """Wait until the engine has room, and return True; False: it was busy until then."""
        while await self._is_busy():
            if asyncio.get_running_loop().time() > latest:
                return False
            await asyncio.sleep(BUSY_PAUSE_SECONDS)
        return True

    async def _publish(
        self,
        request: Considered,
        compared: asyncio.Task[ShadowCompared | None],
        earlier: asyncio.Task[None] | None,
    ) -> None:
        """Publish a pair, once it is made, after that of the request before it; if that fails, not at all."""
        pair = await compared
        if earlier is not None:
            await earlier
        if pair is not None:
            await self._decisions.confirm_claim()
            await self._publisher.publish(pair)
        await self._decisions.finish(request, Outcome.VOID if pair is None else Outcome.PAIR)

    async def _compare(self, event: PredictionLogged, rollout: RolloutChanged) -> ShadowCompared | None:
        """Return the pair, or None where production's model does not answer (any more): nothing to compare with."""
        request = request_of(event, rollout)
        production = await self._production_answer(event, rollout, request)
        if production is None:
            return None
        replay = await self._engine.candidate(rollout, request)
        if replay is None:
            return None
        if rollout.control and (replay.answer is None or not replay.answer.is_whole):
            return None  # What the promoted adapter served is whole, else there is no pair: so must this be.
        return pair_of(event, rollout, production, replay.answer, replay.latency_ms, utc_now())

    async def _production_answer(
        self, event: PredictionLogged, rollout: RolloutChanged, request: Request
    ) -> Answer | None:
        """Return production's answer to what the candidate is asked; None where it has none that is whole."""
        if not asks_both_arms(event, rollout):
            return event.answers[0]
        answer = (await self._engine.production(rollout, request)).answer
        return answer if answer is not None and answer.is_whole else None
