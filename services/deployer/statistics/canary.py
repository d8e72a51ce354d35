"""What is counted while a canary serves users, and why its guards end it. Pure; `guards.py` has the tests.

A guard that knows too little has no evidence, and ends nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from schemas.base import Variant
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.predictions import CLIENT_LEFT, FeedbackGiven, RequestObserved
from schemas.task_settings import RolloutSettings
from schemas.tasks import TaskKind
from services.deployer.statistics.betting import canary_guard, wealth_of_outcomes
from services.deployer.statistics.guards import LIMIT, SLOW, SLOW_SHARE, Guard, excess, together
from shared.answers import form_of_kind
from shared.identity import content_hash
from shared.kafka.delivery import Delivery

_MIN_CONFIDENCES = 100
_SHIFT = 0.05
_STANDARD_ERRORS = 4.0
_COMPARED = {
    Guard.ERRORS: "the canary fails too often: {canary} of the {bad} users with a failed request were in it",
    Guard.FEEDBACK: "the canary's users complain too often: {canary} of the {bad} with negative feedback were in it",
    Guard.CORRECTIONS: "the canary errs too often: {canary} of the {bad} with a wrong answer in the audit were in it",
}
"""The guards that compare arms, and the reason of each."""


@dataclass(frozen=True)
class Arms:
    """Subjects with a bad event, each counted in the arm of the first one, while `percent` of users were the canary's.

    What comes late, after the canary's share has risen, is counted at the greater one, which can only spare the canary.
    Nothing is counted while the share is not known, and after it has fallen nothing of before.
    """

    percent: int
    canary: int
    bad: int


@dataclass(frozen=True)
class Latencies:
    """The canary's answers that were measured, one a subject and day, and those that took longer than `limit_ms`, or
    whose client left before.

    Of a subject none after its first slow one: whoever always asks what takes long is slow each day, which says no more
    of the canary than once.
    `limit_ms` is of the primary's answers before the canary; None: they were too few. Which of the subjects that waited
    longer meanwhile were the canary's is in `CanaryCounts.arms`.
    """

    measured: int = 0
    slow: int = 0
    limit_ms: float | None = None


@dataclass(frozen=True)
class Confidences:
    """How sure an arm was of the answers whose latency is measured: mean and variance of `count` values in [0, 1]."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0


@dataclass(frozen=True)
class CanaryCounts:
    """The canary's requests, and what its guards count.

    A request that was refused (4xx) is nowhere: it says nothing about the candidate, and served nobody. `percent`: the
    canary's present share of users, 0 before it; `users`: whom it has served since it has that share, counted up to as
    many as it needs. `arms`: by guard, one for each share.
    """

    requests: int = 0
    errors: int = 0
    percent: int = 0
    users: int = 0
    arms: Mapping[Guard, Sequence[Arms]] = field(default_factory=dict)
    latencies: Latencies = Latencies()
    confidences: Confidences = Confidences()
    primary_confidences: Confidences = Confidences()

    def bad(self, guard: Guard) -> tuple[int, int]:
        """Return how many subjects with such an event were the canary's, and how many there were."""
        arms = self.arms.get(guard, ())
        return sum(step.canary for step in arms), sum(step.bad for step in arms)


def guard_evidence(
    counts: CanaryCounts, settings: RolloutSettings, fresh: Sequence[float | None] = ()
) -> dict[Guard, float]:
    """Return the evidence of each guard that the canary is worse than the primary.

    `fresh`: outcomes of the tickets of pairs made after the promotion; a pending one counts as won. Not the greatest
    wealth of any prefix: a mean with other evidence needs what each is at the same time.
    """
    evidence = {guard: _compared(counts, guard, settings.max_complaint_ratio) for guard in _COMPARED}
    evidence[Guard.ERRORS] = _compared(counts, Guard.ERRORS, settings.max_error_ratio)
    if fresh:
        evidence[Guard.LABELS] = wealth_of_outcomes([None if x is None else -x for x in fresh], 0, 0.0)
    evidence[Guard.LATENCY] = _slower(counts, settings)
    return evidence


def _compared(counts: CanaryCounts, guard: Guard, ratio: float) -> float:
    arms = counts.arms.get(guard, ())
    in_canary, bad, share = ([s.canary for s in arms], [s.bad for s in arms], [s.percent / 100 for s in arms])
    return canary_guard(in_canary, bad, share, ratio)


def _slower(counts: CanaryCounts, settings: RolloutSettings) -> float:
    """Return the evidence that the canary is slower than the primary was before it, and than it is meanwhile.

    The smaller one: it is at most the one of whichever null holds, so it is evidence against both. The past alone ends
    a canary when a busy hour makes both arms slow; the present alone has no limit below which nobody minds.
    """
    latencies = counts.latencies
    if latencies.limit_ms is None:
        return 1.0
    before = excess(latencies.slow, latencies.measured, SLOW_SHARE)
    return min(before, _compared(counts, Guard.LATENCY, settings.max_error_ratio))


def canary_failure(counts: CanaryCounts, settings: RolloutSettings, fresh: Sequence[float | None] = ()) -> str:
    """Return why the guards end the canary, or take back its promotion, "" while they do not."""
    evidence = guard_evidence(counts, settings, fresh)
    if (all_together := together(evidence)) < LIMIT:
        return ""
    worst = max(evidence, key=lambda guard: evidence[guard])
    if worst is Guard.LATENCY:
        slow, (canary, waited) = counts.latencies, counts.bad(worst)
        reason = (
            f"the canary is too slow: {slow.slow} of {slow.measured} answers took longer than {slow.limit_ms:.0f} ms, "
            f"{SLOW:g} times the primary's 95th percentile, or their users left before, and {canary} of the {waited} "
            "such users of both arms were in it"
        )
    elif worst is Guard.LABELS:
        losses, wins = (sum(sign * x > 0 for x in fresh if x is not None) for sign in (-1, 1))
        reason = (
            f"it is worse by the pairs since its promotion: {losses} losses and {wins} wins in {len(fresh)} tickets"
        )
    else:
        canary, bad = counts.bad(worst)
        share = max(step.percent for step in counts.arms[worst])
        reason = f"{_COMPARED[worst].format(canary=canary, bad=bad)}, which has {share} % of users"
    return f"{reason} (evidence of all guards {all_together:.0f} ≥ {LIMIT:.0f}, most of it of {worst.value})"


def confidence_shift(counts: CanaryCounts) -> str:
    """Return a warning if the canary is not as sure of its answers as the primary was before it, else "".

    It ends nothing: another calibration, or a candidate that is rightly surer, looks the same. The means must differ by
    5 points and by 4 standard errors (Welch 1947), which by chance alone is rare, however often one looks.
    """
    canary, primary = counts.confidences, counts.primary_confidences
    if min(canary.count, primary.count) < _MIN_CONFIDENCES:
        return ""
    shift = canary.mean - primary.mean
    error = math.sqrt(canary.variance / canary.count + primary.variance / primary.count)
    if abs(shift) < max(_SHIFT, _STANDARD_ERRORS * error):
        return ""
    return (
        f"the canary is {'surer' if shift > 0 else 'less sure'} of its answers than the primary was before it: "
        f"{canary.mean:.2f} against {primary.mean:.2f} on average; nothing is done about it"
    )


@dataclass(frozen=True)
class Observation:
    """One request. `canary`: the candidate answered, also once it is promoted; `as_primary`: then.

    `counted`: it served a user, or failed; not one that was refused. `left`: its client left before its answer had
    ended, after `latency_ms`. `primary`: the primary, or the base model where there is none, answered; a fallback is
    neither arm. `source` and `offset`: the record's place in Kafka, by which it is counted once.
    """

    prediction_id: str
    user_key: str | None
    canary: bool
    primary: bool
    failed: bool
    counted: bool
    left: bool
    latency_ms: float
    confidence: float | None
    occurred_at: datetime
    source: str
    offset: int
    as_primary: bool = False

    @property
    def answered(self) -> bool:
        return self.counted and not self.failed

    def waited_ms(self, limit_ms: float | None) -> float | None:
        """Return how long its user waited; infinite if they left after as long as the primary's 95th percentile, since
        an application's own limit may be below `limit_ms`; None if it does not tell: who leaves sooner has other
        reasons, and would take the place of the answer that they do wait for.
        """
        if self.left:
            return math.inf if limit_ms is not None and self.latency_ms * SLOW >= limit_ms else None
        return self.latency_ms if self.answered else None

    @property
    def served(self) -> str | None:
        """The subject that the canary has served with this request, if it has."""
        return self.user_key if self.canary and self.answered else None


def observation(delivery: Delivery[RequestObserved], candidate: str, primary: str | None) -> Observation:
    """Return what a request says about a rollout of these adapters. 404: a replica does not serve the adapter.

    What the gateway's own stop broke off is nobody's failure.
    """
    event = delivery.event
    failed = not event.gateway_stopped and (event.status >= 500 or event.status == 404)
    is_candidate = event.variant in (Variant.CANARY, Variant.PRIMARY) and event.adapter == candidate
    return Observation(
        event.prediction_id,
        event.subject or event.user_hash,
        canary=is_candidate,
        primary=event.variant in (Variant.PRIMARY, Variant.BASE) and event.adapter == primary,
        failed=failed,
        counted=failed or event.status < 400,
        left=event.status == CLIENT_LEFT,
        latency_ms=event.latency_ms,
        confidence=event.confidence,
        occurred_at=event.occurred_at,
        source=f"{delivery.topic}-{delivery.partition}",
        offset=delivery.offset,
        as_primary=is_candidate and event.variant is Variant.PRIMARY,
    )


def is_negative(feedback: FeedbackGiven) -> bool:
    """Return True if a user says that an answer was wrong."""
    return feedback.kind in ("edited", "label") or feedback.positive is False


def is_wrong(correction: CorrectionSubmitted, kind: TaskKind) -> bool:
    """Return True if a reviewer gave another answer to a question that chance chose.

    Other questions are asked where the model doubts or a user complains, and arms differ in that.
    """
    if correction.purpose is not Purpose.AUDIT or correction.label is None:
        return False
    return not form_of_kind(kind).same(correction.label, correction.answers[0].plain)


def rank_of(rollout_id: str, *what: str) -> int:
    """Return a random number that is the same for the same thing: the things with the smallest ones are the sample."""
    return int(content_hash(rollout_id, *what, length=15), 16)
