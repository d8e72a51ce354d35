"""Replays what was logged in the last days on a candidate, for a person to look at. Nothing of it bets.

The inputs are old: the candidate may have been trained on them, and people may have seen their answers. So no pair is
published, nothing is counted, and the task's budget is not touched; but the replays wait while the engine is busy.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deploy.cli.golden.corrections import read_topic
from schemas.base import utc_now
from schemas.predictions import PredictionLogged, SubjectForgotten
from schemas.rollouts import RolloutChanged
from services.shadow.clients import VllmEngine
from services.shadow.domain import asks_both_arms, ineligible, request_of
from services.shadow.load import VllmLoad
from services.shadow.settings import ShadowSettings
from shared.answers import answer_form
from shared.errors import ConfigurationError
from shared.identity import content_hash
from shared.model.inference import InferenceClient
from shared.privacy.erasure import ErasedSubjects
from shared.settings import Settings
from shared.storage.artifacts import ArtifactStore

_BUSY_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class ReplayComparison:
    """Both answers to a logged request, as text. `candidate` None: it erred or was too slow."""

    prediction_id: str
    logged_at: str
    asked: str
    production: str
    candidate: str | None
    agree: bool
    before_cutoff: bool
    latency_ms: float


@dataclass(frozen=True)
class Diagnosis:
    """What a candidate answers to old requests. `void`: production's model does not answer these either."""

    task: str
    candidate: str
    production: str | None
    comparisons: Sequence[ReplayComparison]
    void: int


async def replay_logged(settings: ShadowSettings, task: str, days: float, limit: int) -> Diagnosis:
    """Replay a sample of a task's requests on its last candidate. Raises ConfigurationError if it has had none."""
    rollout = await _last_rollout(settings, task)
    erased = await _erased(settings, task)
    logged = (
        event
        async for event in read_topic(settings, PredictionLogged)
        if event.task == task and not erased.covers(task, event.user_hash, event.occurred_at)
    )
    events = await sample(logged, rollout, days, limit)
    inference = InferenceClient(settings.vllm_urls, settings.shadow_timeout_seconds, settings.server_key())
    engine = VllmEngine(inference, ArtifactStore(settings.artifacts_uri, settings.home / "cache"))
    try:
        is_busy = VllmLoad(inference).is_busy
        return await diagnose(events, rollout, engine, is_busy, settings.shadow_concurrency)
    finally:
        await inference.close()


async def _last_rollout(settings: ShadowSettings, task: str) -> RolloutChanged:
    """Return the task's last rollout; of one that was promoted, as it was when its candidate was compared."""
    last = None
    async for rollout in read_topic(settings, RolloutChanged):
        if rollout.task == task:
            last = rollout
    if last is None:
        raise ConfigurationError(f"{task} has had no candidate yet", "See what there is: ratchet rollout status")
    if last.primary_adapter == last.candidate_adapter:
        return last.model_copy(update={"primary_adapter": last.previous_adapter})
    return last


async def _erased(settings: Settings, task: str) -> ErasedSubjects:
    erased_until: dict[tuple[str, str], datetime] = {}
    async for event in read_topic(settings, SubjectForgotten):
        if event.task == task:
            key = (task, event.subject_hash)
            erased_until[key] = max(event.occurred_at, erased_until.get(key, event.occurred_at))
    return ErasedSubjects(erased_until)


async def sample(
    logged: AsyncIterator[PredictionLogged], rollout: RolloutChanged, days: float, limit: int
) -> list[PredictionLogged]:
    """Return up to `limit` requests, by chance, that production answered in the last days and that can be replayed."""
    recent = rollout.model_copy(update={"data_cutoff": utc_now() - timedelta(days=days)})
    found: list[PredictionLogged] = []
    async for event in logged:
        if event.task == rollout.task and ineligible(event, recent) is None:
            found.append(event)
        if len(found) >= 2 * limit:
            found = _by_chance(found)[:limit]
    return sorted(_by_chance(found)[:limit], key=lambda event: event.occurred_at)


def _by_chance(events: Sequence[PredictionLogged]) -> list[PredictionLogged]:
    """Return the events in an order that has nothing to do with them, but is the same in each run."""
    return sorted(events, key=lambda event: content_hash(event.request_id))


async def diagnose(
    events: Sequence[PredictionLogged],
    rollout: RolloutChanged,
    engine: VllmEngine,
    is_busy: Callable[[], Awaitable[bool]],
    concurrency: int,
) -> Diagnosis:
    """Ask the candidate what production was asked, `concurrency` requests at once."""
    free = asyncio.Semaphore(concurrency)

    async def compare(event: PredictionLogged) -> ReplayComparison | None:
        async with free:
            while await is_busy():
                await asyncio.sleep(_BUSY_PAUSE_SECONDS)
            return await _compare(event, rollout, engine)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(compare(event)) for event in events]
    comparisons = [comparison for task in tasks if (comparison := task.result()) is not None]
    return Diagnosis(
        rollout.task, rollout.candidate_adapter, rollout.primary_adapter, comparisons, len(events) - len(comparisons)
    )


async def _compare(event: PredictionLogged, rollout: RolloutChanged, engine: VllmEngine) -> ReplayComparison | None:
    request, production = request_of(event, rollout), event.answers[0]
    if asks_both_arms(event, rollout):
        again = (await engine.production(rollout, request)).answer
        if again is None:
            return None
        production = production.model_copy(update=again.model_dump())
    replay = await engine.candidate(rollout, request)
    if replay is None:
        return None
    return ReplayComparison(
        prediction_id=production.prediction_id,
        logged_at=event.occurred_at.isoformat(timespec="seconds"),
        asked=event.call.messages[-1].text,
        production=production.plain,
        candidate=None if replay.answer is None else replay.answer.plain,
        agree=replay.answer is not None and answer_form(rollout.spec).same(replay.answer.plain, production.plain),
        before_cutoff=event.occurred_at <= rollout.data_cutoff,
        latency_ms=round(replay.latency_ms, 1),
    )
