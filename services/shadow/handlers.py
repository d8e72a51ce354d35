"""Kafka handlers of shadow: eligible predictions are replayed on the candidate.

consumes  predictions.logged · rollouts.changed and tasks.changed (as tables)
produces  shadow.compared (in `replays.py`)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta

from schemas.base import utc_now
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskChanged
from services.shadow.budget import Considered
from services.shadow.clients import CandidateMissing, UnleashSampling
from services.shadow.domain import Outcome, RedactingTasks, ineligible, is_comparing
from services.shadow.replays import CLAIM_SECONDS, MAX_BATCH_SECONDS, MAX_REQUESTS, Replays
from services.shadow.settings import ShadowSettings
from services.shadow.storage import PostgresDecisions, ReplayBacklog
from shared.errors import ConfigurationError, DependencyUnavailable, Paused
from shared.kafka.consumers import ATTEMPTS, MAX_PAUSE_SECONDS, BatchOptions, Consumers
from shared.kafka.delivery import Delivery
from shared.kafka.latest_by_key import LatestByKey
from shared.model.near_copies import AskedQuestions

logger = logging.getLogger(__name__)

MAX_AGE = timedelta(days=1)
"""Requests that production answered longer ago are not replayed."""
_READ_SECONDS = 10.0
"""A start waits so long for rollouts and tasks to be read: without them, no request would have a candidate."""
_UNREADABLE_SECONDS = 10.0
"""So long training rows, or a candidate, that could not be read are not looked for again: that may take seconds for
each request."""
_SOON_SECONDS = 20.0
"""A batch that failed sooner is tried again at once, a few times."""
_LONGEST_BATCH_SECONDS = 3_600.0
"""For so long a rebalance of the consumer group may wait for a process whose batch takes as long as it may."""


def batch_seconds(settings: ShadowSettings) -> float:
    """Return how long a batch may take, however often it is tried: its claims, the turn of its replays, and of every
    replica four answers: production's, the candidate's, and then whether production's and the base model answer.

    Raises ConfigurationError where that is too long.
    """
    answers = 4 * len(settings.vllm_urls) * settings.shadow_timeout_seconds
    attempts = ATTEMPTS * (_SOON_SECONDS + MAX_PAUSE_SECONDS)
    seconds = CLAIM_SECONDS + MAX_BATCH_SECONDS + answers + attempts
    if seconds > _LONGEST_BATCH_SECONDS:
        raise ConfigurationError(
            f"RATCHET_SHADOW_TIMEOUT_SECONDS={settings.shadow_timeout_seconds:g} is too long: with as many replicas "
            f"({len(settings.vllm_urls)}) a batch could take {seconds:.0f} s, not {_LONGEST_BATCH_SECONDS:.0f} at most",
            "Set it lower; requests that took production longer are left out, and counted as slow.",
        )
    return seconds


class Handlers:
    def __init__(
        self,
        settings: ShadowSettings,
        sampling: UnleashSampling,
        read_training_index: Callable[[RolloutChanged], Awaitable[AskedQuestions]],
        decisions: PostgresDecisions,
        replays: Replays,
    ) -> None:
        self._settings = settings
        self._sampling = sampling
        self._read_training_index = read_training_index
        self._decisions = decisions
        self._replays = replays
        self._redacting = RedactingTasks()
        self._unreadable_until: dict[str, float] = {}
        self.rollouts: LatestByKey[RolloutChanged] = LatestByKey("rollouts.changed")
        self.tasks: LatestByKey[TaskChanged] = LatestByKey("tasks.changed")

    def subscribe(self, consumers: Consumers) -> None:
        self.rollouts = consumers.table(RolloutChanged)
        self.tasks = consumers.table(TaskChanged, self.on_task)
        options = BatchOptions(MAX_REQUESTS, wait_ms=100, max_seconds=batch_seconds(self._settings))
        consumers.on_batch(PredictionLogged, self.on_predictions, options)

    async def on_task(self, event: TaskChanged) -> None:
        """Note whether a task redacts from now on."""
        self._redacting.note(event)

    async def on_predictions(self, deliveries: list[Delivery[PredictionLogged]]) -> None:
        """Decide, before either arm is asked, which of a batch's requests are replayed; then replay those.

        Raises Paused while other processes replay requests of the same tasks, and where it failed late: what is away
        may make each further attempt take as long.
        """
        considered, clock = list[Considered](), asyncio.get_running_loop().time
        began = clock()
        for delivery in deliveries:
            rollout = await self.rollouts.latest(delivery.event.task, _READ_SECONDS)
            if rollout is not None and is_comparing(rollout):
                considered.append(await self._consider(delivery, rollout))
        try:
            if considered:
                await self._replay(considered)
        except DependencyUnavailable as error:
            if isinstance(error, Paused) or clock() - began < _SOON_SECONDS:
                raise
            logger.warning("a batch is tried again later: %s", error)
            raise Paused(error.reason, error.way_out) from error

    async def on_backlog(self, backlog: ReplayBacklog, deliveries: list[Delivery[PredictionLogged]]) -> bool:
        """Do the same with requests that were left for later; return False, with nothing done, if it is not ready."""
        rollout = self.rollouts.get(backlog.task)
        if rollout is None or not await self.is_ready(backlog):
            return False
        considered = [replace(await self._consider(d, rollout), from_backlog=True) for d in deliveries]
        if any(request.is_put_off for request in considered):
            return False
        try:
            if considered:
                await self._replay(considered)
        except CandidateMissing:  # Other backlogs go on.
            return False
        return True

    async def _replay(self, considered: Sequence[Considered]) -> None:
        """Decide about these requests at once, and replay those that are to be once it is their tasks' turn."""
        to_replay = await self._decisions.decide(considered, utc_now())
        try:
            await self._replays.run(to_replay)
        except CandidateMissing as error:  # The next attempt leaves their requests for later.
            for uri in error.uris:
                self._note_unreadable(uri, f"shadow waits for the candidate at {uri}: {error}. Was it deleted?")
            raise
        for request in to_replay:
            self._unreadable_until.pop(request.rollout.candidate_uri, None)

    async def is_over(self, backlog: ReplayBacklog) -> bool:
        """Return True if the rollout of a backlog has ended. That another one is queued or ended says nothing of it."""
        rollout = await self.rollouts.latest(backlog.task, _READ_SECONDS)
        return rollout is not None and (rollout.rollout_id == backlog.rollout_id) != is_comparing(rollout)

    async def is_ready(self, backlog: ReplayBacklog) -> bool:
        """Return True while a backlog's rollout is compared, the flag of its task on, and the candidate and its
        training rows there."""
        rollout = self.rollouts.get(backlog.task)
        return (
            rollout is not None
            and rollout.rollout_id == backlog.rollout_id
            and is_comparing(rollout)
            and not self._sampling.is_off(backlog.task)
            and not self._is_unreadable(rollout.candidate_uri)
            and await self._training_index(rollout) is not None
        )

    async def _consider(self, delivery: Delivery[PredictionLogged], rollout: RolloutChanged) -> Considered:
        await self.tasks.latest(rollout.task, _READ_SECONDS)
        rollout = self._redacting.as_redacted(rollout, delivery.event.occurred_at)
        if self._sampling.is_off(rollout.task) or self._is_unreadable(rollout.candidate_uri):
            return Considered(delivery, rollout, is_put_off=True)
        left_out = self._left_out(delivery.event, rollout)
        if left_out is None:
            index = await self._training_index(rollout)
            if index is None:
                return Considered(delivery, rollout, is_put_off=True)
            left_out = Outcome.TRAINED_ON if index.contains(delivery.event.call.messages) else None
        return Considered(delivery, rollout, left_out, is_put_off=self._sampling.is_off(rollout.task))

    async def _training_index(self, rollout: RolloutChanged) -> AskedQuestions | None:
        """Return what the candidate was trained on; None, logged once, while it cannot be read.

        The task's requests are left for later then: other tasks' must not wait for a folder that may never come back.
        """
        if self._is_unreadable(rollout.dataset_uri):
            return None
        try:
            index = await self._read_training_index(rollout)
        except DependencyUnavailable as error:
            said = f"{rollout.task}: shadow waits for the candidate's training rows: {error}"
            self._note_unreadable(rollout.dataset_uri, said)
            return None
        self._unreadable_until.pop(rollout.dataset_uri, None)
        return index

    def _is_unreadable(self, uri: str) -> bool:
        return asyncio.get_running_loop().time() < self._unreadable_until.get(uri, 0.0)

    def _note_unreadable(self, uri: str, said: str) -> None:
        """Leave a folder alone for a while; what is to be `said` is logged the first time."""
        if uri not in self._unreadable_until:
            logger.warning("%s", said)
        self._unreadable_until[uri] = asyncio.get_running_loop().time() + _UNREADABLE_SECONDS

    def _left_out(self, event: PredictionLogged, rollout: RolloutChanged) -> Outcome | None:
        """Return why the request is no pair, whatever the budget and the training rows. By production's side alone."""
        if reason := ineligible(event, rollout):
            return reason
        if event.latency_ms > 1000 * self._settings.shadow_timeout_seconds:  # No candidate could answer it in time.
            return Outcome.SLOW
        if utc_now() - event.occurred_at > MAX_AGE:
            return Outcome.LATE
        if not self._sampling.sampled(event.task, event.answers[0].prediction_id):
            return Outcome.NOT_SAMPLED
        return None
