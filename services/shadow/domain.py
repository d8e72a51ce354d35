"""Which requests may be compared, what both arms are asked, and what a pair is. The rules are pure.

A pair may bet only if its input is new to the candidate and its answer is from the production arm that the candidate is
compared with: replaying what a candidate was trained on "proves" memorising. Where personal data was replaced in the
stored text, production's logged answer belongs to another input, so both arms are asked again. So they are wherever an
answer may have personal data: were production asked again only where its logged answer had some, its other logged
answers would be chosen by what they say, and the candidate's are not. An equal candidate would win where right answers
have a name in them.

A request with several answers makes one pair, of the first: its answers are not independent, so they are one subject.
So are all requests of a user, of a session, and, where neither is known, of an app's conversations that begin alike
(`subject`, from the gateway, which knew the text unredacted): one text that is sent again and again is one bet.
What is eligible is decided by production's side alone, before the candidate is asked: leaving out pairs by what the
candidate answers would favour it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from schemas.base import Variant
from schemas.conversation import Answer, Call
from schemas.predictions import PredictionLogged
from schemas.rollouts import RolloutChanged, ShadowCompared, Stage
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskChanged
from shared.answers import answer_form
from shared.conversation import bounded_answer, bounded_call, replay_request
from shared.identity import content_hash, event_id

_COMPARING = (Stage.SHADOW, Stage.CANARY)
_PRODUCTION = (Variant.PRIMARY, Variant.BASE)
_UNKNOWN = "unknown"
"""The one subject of all predictions that name none: whether their authors differ cannot be known."""
_OWN = ("seed", "n")
"""Parameters of the logged call that no replay repeats, but for the width of a beam search."""
_RULES_ARRIVE = timedelta(minutes=1)
"""So long gateways may redact by the rules that were before."""


@dataclass(frozen=True)
class Request:
    """What both arms are asked: the logged request, the model aside."""

    path: str
    body: dict[str, Any]


class Outcome(StrEnum):
    """What became of a request of a task whose candidate is being compared: a pair, or why it is none."""

    PAIR = "pair"
    VOID = "void"
    """Production's model does not answer the replay either."""
    BEFORE_CUTOFF = "before_cutoff"
    """Logged before the candidate's data was fixed."""
    OTHER_REVISION = "other_revision"
    OTHER_ARM = "other_arm"
    """Answered by another adapter than the primary that the candidate is compared with."""
    NOT_WHOLE = "not_whole"
    """Call or answer were cut or refused."""
    MEDIA = "media"
    SLOW = "slow"
    """It took production longer than a replay may take."""
    NOT_SAMPLED = "not_sampled"
    TRAINED_ON = "trained_on"
    """A near-copy of a training row."""
    LATE = "late"
    """Too old when it was read."""
    RATE = "rate"
    TOKENS = "tokens"
    DEFERRED = "deferred"
    """Read while shadow's flag was off, or before the backlog of such requests was done: it is read again."""
    FORGOTTEN = "forgotten"
    """Its user has been erased since."""
    BUSY = "busy"
    """It had its place in the budget, but the engine was busy or away until it was too old."""


def is_comparing(rollout: RolloutChanged) -> bool:
    """Return True while pairs of the rollout are made: until it ends, or until its control does."""
    return rollout.stage in _COMPARING or rollout.control


def ineligible(event: PredictionLogged, rollout: RolloutChanged) -> Outcome | None:
    """Return why the request can be no pair of this rollout; None: it may be, near-copies of training rows aside.

    A canary's answer is the candidate's own, a rollback's is not the primary's, and an external application's model is
    unknown: none of them is comparable. Nor is a call that cannot be sent again as it was, or an answer that was cut.
    """
    if event.occurred_at <= rollout.data_cutoff:
        return Outcome.BEFORE_CUTOFF
    if event.task_revision != rollout.task_revision:
        return Outcome.OTHER_REVISION
    if event.variant not in _PRODUCTION or event.adapter != rollout.primary_adapter:
        return Outcome.OTHER_ARM
    if not (event.answers[0].is_whole and event.call.is_whole):
        return Outcome.NOT_WHOLE
    return None if _can_be_sent(event.call) else Outcome.MEDIA


def _can_be_sent(call: Call) -> bool:
    """Return False for a call with pictures, sound or documents, which are not in the event."""
    try:
        replay_request(call)
    except ValueError:
        return False
    return True


def request_of(event: PredictionLogged, rollout: RolloutChanged) -> Request:
    """Return the logged request, for one answer by a seed of the arm's own; all else is as it was sent.

    An arm with the seed of the other would be no independent draw. To vLLM `n` is the width of a beam search as well:
    the best of one beam is a worse answer than the best of four, which production gave.
    """
    path, body = replay_request(event.call, rollout.spec.labels)
    own = ("seed",) if body.get("use_beam_search") is True else _OWN
    return Request(path, {name: value for name, value in body.items() if name not in own})


def asks_both_arms(event: PredictionLogged, rollout: RolloutChanged) -> bool:
    """Return True if production is asked again, too: where the stored text is redacted, or an answer to it may be.

    An answer that is one of the task's labels never is.
    """
    return event.redactions > 0 or (rollout.spec.redaction.enabled and not event.call.constrained)


class RedactingTasks:
    """Since when and until when tasks redact by now, whatever a rollout's task did when its cycle began.

    Redaction that is turned on while a candidate is compared replaces what production's logged answers say, and of
    those alone that have something to replace: whether both arms are asked must not depend on that.
    """

    def __init__(self) -> None:
        self._until: dict[str, datetime] = {}

    def note(self, change: TaskChanged) -> None:
        """Take in a change of a task; they come in their order."""
        if change.spec.redaction.enabled:
            self._until[change.task] = datetime.max.replace(tzinfo=UTC)
        elif self._until.get(change.task, datetime.min.replace(tzinfo=UTC)) > change.occurred_at:
            self._until[change.task] = change.occurred_at + _RULES_ARRIVE

    def as_redacted(self, rollout: RolloutChanged, logged_at: datetime) -> RolloutChanged:
        """Return the rollout with a task that redacts, where a request of this time may have been redacted."""
        until = self._until.get(rollout.task)
        if rollout.spec.redaction.enabled or until is None or logged_at > until:
            return rollout
        spec = rollout.spec.model_copy(update={"redaction": RedactionSettings(enabled=True)})
        return rollout.model_copy(update={"spec": spec})


def replays_per_pair(event: PredictionLogged, rollout: RolloutChanged) -> int:
    """Return the requests to the engine for one pair."""
    return 2 if asks_both_arms(event, rollout) else 1


def pair_of(
    event: PredictionLogged,
    rollout: RolloutChanged,
    production: Answer,
    answer: Answer | None,
    latency_ms: float,
    now: datetime,
) -> ShadowCompared:
    """Build the pair. Its id follows from rollout and prediction. `answer` is of the replay; None: it erred.

    `production` is what served. After a promotion that is the candidate, and the adapter before it was replayed: each
    arm keeps its side, so that a label means the same. Where that adapter fails there is no pair (`Replays`).

    Whether the answers agree is decided before they and the call are cut to the size of a question.
    """
    prediction_id = event.answers[0].prediction_id
    pair_id = f"pair-{content_hash(rollout.rollout_id, prediction_id, length=16)}"
    candidate, before = (production, answer or Answer()) if rollout.control else (answer, production)
    return ShadowCompared(
        event_id=event_id("shadow", pair_id),
        occurred_at=now,
        task=event.task,
        task_revision=event.task_revision,
        cycle_id=rollout.cycle_id,
        pair_id=pair_id,
        rollout_id=rollout.rollout_id,
        prediction_id=prediction_id,
        call=bounded_call(_blind(event.call)),
        production_adapter=rollout.previous_adapter if rollout.control else rollout.primary_adapter,
        candidate_adapter=rollout.candidate_adapter,
        production_answer=bounded_answer(before),
        candidate_answer=None if candidate is None else bounded_answer(candidate),
        agree=answer is not None and answer_form(rollout.spec).same(answer.plain, production.plain),
        after_promotion=rollout.control,
        user_hash=event.user_hash,
        session_hash=event.session_hash,
        subject=event.subject or event.user_hash or event.session_hash or _UNKNOWN,
        identified=bool(event.user_hash or event.session_hash),
        logged_at=event.occurred_at,
        candidate_latency_ms=latency_ms,
    )


def _blind(call: Call) -> Call:
    """Return the call without the surrogates that stand only in production's answer: they would say whose it is."""
    if not call.surrogates:
        return call
    asked = call.model_dump_json(include={"messages"})
    own = tuple(s for s in call.surrogates if json.dumps(s, ensure_ascii=False)[1:-1] in asked)
    return call.model_copy(update={"surrogates": own})
