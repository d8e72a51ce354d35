"""Which predictions may be compared, what a pair is, and the daily budget. The rules are pure.

A pair may bet only if its input is new to the candidate and its answer is from the production arm that the candidate is
compared with: replaying what a candidate was trained on "proves" memorising. Where personal data was replaced in the
stored text, production's logged answer belongs to another input, so both arms are asked again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime

from schemas.base import Variant
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from shared.identity import content_hash, event_id

_COMPARING = (Stage.SHADOW, Stage.CANARY)
_PRODUCTION = (Variant.PRIMARY, Variant.BASE)


def is_eligible(event: PredictionLogged, rollout: RolloutChanged) -> bool:
    """Return True if the prediction may become a pair of this rollout, near-duplicates of training rows aside.

    A canary's answer is the candidate's own, a rollback's is not the primary's, and an external application's model is
    unknown: none of them is comparable.
    """
    return (
        rollout.stage in _COMPARING
        and event.occurred_at > rollout.data_cutoff
        and event.task_revision == rollout.task_revision
        and event.variant in _PRODUCTION
        and event.adapter == rollout.primary_adapter
    )


def same_answer(left: str, right: str) -> bool:
    """Return True if the answers differ in nothing but case and white space."""
    return left.casefold().split() == right.casefold().split()


def replays_per_pair(event: PredictionLogged) -> int:
    """Return the requests to the engine for one pair: two where the stored text is not what production was asked."""
    return 2 if event.redactions else 1


def pair_of(
    event: PredictionLogged,
    rollout: RolloutChanged,
    production: str,
    answer: str | None,
    latency_ms: float,
    now: datetime,
) -> ShadowCompared:
    """Build the pair. Its id follows from rollout and prediction. `answer` is the candidate's; None: it erred."""
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


class DailyBudget:
    """Counts each task's replays per UTC day, in memory: a restart may spend one more day's budget at most."""

    def __init__(self) -> None:
        self._spent: dict[str, tuple[date, int]] = {}

    def take(self, task: str, limit: int, now: datetime, replays: int = 1) -> bool:
        """Spend so many replays and return True, or return False if the rest of the day's budget is smaller."""
        today = now.astimezone(UTC).date()
        day, spent = self._spent.get(task, (today, 0))
        spent = spent if day == today else 0
        if spent + replays > limit:
            return False
        self._spent[task] = (today, spent + replays)
        return True
