"""Which requests may be compared, what both arms are asked, what a pair is, and the daily budget. The rules are pure.

A pair may bet only if its input is new to the candidate and its answer is from the production arm that the candidate is
compared with: replaying what a candidate was trained on "proves" memorising. Where personal data was replaced in the
stored text, production's logged answer belongs to another input, so both arms are asked again.

A request with several answers makes one pair, of the first: its answers are not independent, so they are one subject.
What is eligible is decided by production's side alone, before the candidate is asked: leaving out pairs by what the
candidate answers would favour it.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

from schemas.base import Variant
from schemas.conversation import Answer, Call
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from shared.conversation import bounded_answer, bounded_call, replay_request
from shared.identity import content_hash, event_id

_COMPARING = (Stage.SHADOW, Stage.CANARY)
_PRODUCTION = (Variant.PRIMARY, Variant.BASE)
_OWN = ("seed", "n")
"""Parameters of the logged call that no replay repeats."""


@dataclass(frozen=True)
class Request:
    """What both arms are asked: the logged request, the model aside."""

    path: str
    body: dict[str, Any]


def is_eligible(event: PredictionLogged, rollout: RolloutChanged) -> bool:
    """Return True if the request may become a pair of this rollout, near-duplicates of training rows aside.

    A canary's answer is the candidate's own, a rollback's is not the primary's, and an external application's model is
    unknown: none of them is comparable. Nor is a call that cannot be sent again as it was, or an answer that was cut.
    """
    return (
        rollout.stage in _COMPARING
        and event.occurred_at > rollout.data_cutoff
        and event.task_revision == rollout.task_revision
        and event.variant in _PRODUCTION
        and event.adapter == rollout.primary_adapter
        and event.answers[0].is_whole
        and event.call.is_whole
        and _can_be_sent(event.call)
    )


def _can_be_sent(call: Call) -> bool:
    """Return False for a call with pictures, sound or documents, which are not in the event."""
    try:
        replay_request(call)
    except ValueError:
        return False
    return True


def request_of(event: PredictionLogged, rollout: RolloutChanged) -> Request:
    """Return the logged request, for one answer by a seed of the arm's own; all else is as it was sent.

    An arm with the seed of the other would be no independent draw.
    """
    path, body = replay_request(event.call, rollout.spec.labels)
    return Request(path, {name: value for name, value in body.items() if name not in _OWN})


def same_answer(left: Answer, right: Answer) -> bool:
    """Return True if the answers, tool calls included, differ in nothing but case, white space and reasoning."""
    return left.plain.casefold().split() == right.plain.casefold().split()


def replays_per_pair(event: PredictionLogged) -> int:
    """Return the requests to the engine for one pair: two where the stored text is not what production was asked."""
    return 2 if event.redactions else 1


def pair_of(
    event: PredictionLogged,
    rollout: RolloutChanged,
    production: Answer,
    answer: Answer | None,
    latency_ms: float,
    now: datetime,
) -> ShadowCompared:
    """Build the pair. Its id follows from rollout and prediction. `answer` is the candidate's; None: it erred.

    Whether the answers agree is decided before they and the call are cut to the size of a question.
    """
    prediction_id = event.answers[0].prediction_id
    pair_id = f"pair-{content_hash(rollout.rollout_id, prediction_id, length=16)}"
    return ShadowCompared(
        event_id=event_id("shadow", pair_id),
        occurred_at=now,
        task=event.task,
        task_revision=event.task_revision,
        cycle_id=rollout.cycle_id,
        pair_id=pair_id,
        rollout_id=rollout.rollout_id,
        prediction_id=prediction_id,
        call=bounded_call(event.call),
        production_adapter=rollout.primary_adapter,
        candidate_adapter=rollout.candidate_adapter,
        production_answer=bounded_answer(production),
        candidate_answer=None if answer is None else bounded_answer(answer),
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
