"""Which predictions may be compared, and what a pair is. Pure.

A pair may bet only if its input is new to the candidate and its answer is that of the production arm it is compared
with. Replaying what a candidate was trained on "proves" memorising. Where personal data was replaced in the stored
text, production's logged answer was given to another input: then both arms are asked again.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime

from schemas.base import Variant, input_text
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from shared.identity import content_hash, event_id

_RUNNING = (Stage.SHADOW, Stage.CANARY)
_PRODUCTION = (Variant.PRIMARY, Variant.BASE)


def running(rollout: RolloutChanged | None) -> bool:
    """Whether a candidate is being compared."""
    return rollout is not None and rollout.stage in _RUNNING


def eligible(event: PredictionLogged, rollout: RolloutChanged) -> bool:
    """Whether the prediction may become a pair, but for near-copies, which need the candidate's training rows.

    Canary answers are the candidate's own, a rollback's are not the primary's, and an external application's model
    is unknown.
    """
    return (
        event.occurred_at > rollout.data_cutoff
        and event.task_revision == rollout.task_revision
        and event.variant in _PRODUCTION
        and event.adapter == rollout.primary_adapter
    )


def is_near_duplicate(event: PredictionLogged, contains: Callable[[str], bool]) -> bool:
    """Whether the candidate was trained on this input or on nearly this input."""
    return contains(input_text(event.messages))


def same_answer(left: str, right: str) -> bool:
    """Answers that differ only in case and white space agree."""
    return left.casefold().split() == right.casefold().split()


def replays_needed(event: PredictionLogged) -> int:
    """Requests to the engine for one pair: two where the stored text is not what production was asked."""
    return 2 if event.redactions else 1


def pair_of(
    event: PredictionLogged,
    rollout: RolloutChanged,
    production: str,
    answer: str | None,
    latency_ms: float,
    now: datetime,
) -> ShadowCompared:
    """The pair. Same rollout and prediction, same pair: a redelivery is told by its id. `answer` None: it erred."""
    pair_id = f"pair-{content_hash(rollout.rollout_id, event.prediction_id, length=16)}"
    return ShadowCompared(
        event_id=event_id("shadow", pair_id),
        occurred_at=now,
        task=event.task,
        task_revision=event.task_revision,
        cycle_id=rollout.cycle_id,
        pair_id=pair_id,
        rollout_id=rollout.rollout_id,
        prediction_id=event.prediction_id,
        messages=event.messages,
        production_adapter=rollout.primary_adapter,
        candidate_adapter=rollout.candidate_adapter,
        production_answer=production,
        candidate_answer=answer,
        agree=answer is not None and same_answer(answer, production),
        user_hash=event.user_hash,
        logged_at=event.occurred_at,
        candidate_latency_ms=latency_ms,
    )


class Budget:
    """Replays of a task in a day (UTC). In memory: a restart begins a new count, which errs by one budget at most."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[date, int]] = {}

    def take(self, task: str, limit: int, now: datetime, replays: int = 1) -> bool:
        """So many replays, if the day's budget has them all."""
        today = now.astimezone(UTC).date()
        day, spent = self._spent.get(task, (today, 0))
        spent = spent if day == today else 0
        if spent + replays > limit:
            return False
        self._spent[task] = (today, spent + replays)
        return True
