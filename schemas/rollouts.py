"""Events about rollouts: shadow pairs as evidence, and which adapter serves."""

from __future__ import annotations

from enum import StrEnum

from pydantic import AwareDatetime, Field

from schemas.base import AdapterName, Event, Frozen, Identifier
from schemas.conversation import Answer, Call
from schemas.tasks import TaskSpec


class ShadowCompared(Event):
    """An eligible pair was made: production's and the candidate's answer to the same live input. Key: prediction_id."""

    pair_id: Identifier
    rollout_id: Identifier
    prediction_id: Identifier
    call: Call
    production_adapter: AdapterName | None
    candidate_adapter: AdapterName
    production_answer: Answer
    candidate_answer: Answer | None = Field(description="None: the candidate failed or timed out: a loss.")
    agree: bool
    user_hash: Identifier | None = None
    session_hash: Identifier | None = None
    subject: Identifier = Field(
        description="Who bets, once a rollout: the user, else the session, else the app's conversation by its first "
        "question."
    )
    identified: bool = Field(description="False: neither user nor session is known, so several subjects may be one.")
    logged_at: AwareDatetime
    after_promotion: bool = Field(
        default=False,
        description="The candidate served this request, promoted, and the adapter before it was replayed: it tells the "
        "gain, and harm, by fresh pairs.",
    )
    candidate_latency_ms: float = Field(ge=0.0)


class Stage(StrEnum):
    """Where a candidate is.

    `queued`: it passed the offline gates and waits for its turn. `rejected`: the evidence, or a person, is against it.
    `inconclusive`: time or labels ran out before the evidence said anything.
    """

    QUEUED = "queued"
    SHADOW = "shadow"
    CANARY = "canary"
    PROMOTED = "promoted"
    REJECTED = "rejected"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled_back"


class Evidence(Frozen):
    """The counts behind a decision. `wealth` was computed from the ordered outcomes, not from these counts."""

    wins: int = Field(default=0, ge=0)
    ties: int = Field(default=0, ge=0, description="Pairs that agree, or whose answers are both right or both wrong.")
    losses: int = Field(default=0, ge=0)
    pending: int = Field(default=0, ge=0, description="Tickets without a label: counted as losses.")
    labels: int = Field(default=0, ge=0, description="Tickets that people have settled.")
    unidentified: int = Field(
        default=0, ge=0, description="Tickets of neither a user nor a session: whether their authors differ is unknown."
    )
    wealth: float = Field(default=1.0, ge=0.0)
    alpha: float = Field(gt=0.0, lt=1.0)
    gain_low: float = Field(
        default=-1.0,
        ge=-1.0,
        le=1.0,
        description="With `gain_high` the 95 % interval, valid at any time, of the gain in accuracy over agreeing "
        "pairs and tickets. A ticket without a label counts as lost here and as won there.",
    )
    gain_high: float = Field(default=1.0, ge=-1.0, le=1.0)
    labels_expected: int | None = Field(
        default=None,
        ge=0,
        description="Median of further labels, each of another subject, until wealth reaches 1/alpha. None: a proof is "
        "unlikely, or not foreseeable yet.",
    )
    margin_left: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="By how much candidates that are not proven better may still be worse and be promoted: what is "
        "left of two points a year. None: `rollout.non_inferiority` is off.",
    )
    non_inferiority_wealth: float = Field(
        default=1.0,
        ge=0.0,
        description="Wealth against being worse by `margin_left` or more; 1/alpha proves it is not.",
    )
    margin_debited: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="It was promoted as not worse by more than this, which is taken from the year's margin; 0: it was "
        "proven better, or is not promoted.",
    )
    canary_requests: int = Field(default=0, ge=0)
    canary_errors: int = Field(default=0, ge=0)
    canary_users: int = Field(
        default=0,
        ge=0,
        description="Users whom the canary's present step has served; counted up to as many as it needs.",
    )
    control_labels: int = Field(
        default=0, ge=0, description="Tickets of pairs made after the promotion that people have settled."
    )
    control_gain_low: float = Field(
        default=-1.0,
        ge=-1.0,
        le=1.0,
        description="With `control_gain_high` the interval of the gain by these pairs alone, which decided nothing.",
    )
    control_gain_high: float = Field(default=1.0, ge=-1.0, le=1.0)
    guards: float = Field(
        default=1.0, ge=0.0, description="Evidence of all guards together, as of the time of control; 20 takes it back."
    )
    warning: str = Field(
        default="", max_length=500, description="What is unusual in the canary and ends nothing: its confidence."
    )


class RolloutChanged(Event):
    """A candidate's stage or the serving adapter changed, or the evidence about it. Key: task.

    Compacted: the last value per task holds. New evidence repeats the last change, a minute apart at the least.
    """

    rollout_id: Identifier
    stage: Stage
    primary_adapter: AdapterName | None = Field(description="The adapter that serves everyone; None: the base model.")
    previous_adapter: AdapterName | None = None
    candidate_adapter: AdapterName
    candidate_uri: str = Field(max_length=2_000)
    dataset_uri: str = Field(max_length=2_000, description="The candidate's training rows, to detect near-duplicates.")
    data_cutoff: AwareDatetime
    evidence: Evidence
    reason: str = Field(max_length=2_000)
    moved_by: Identifier = Field(
        default="ratchet", description="Who made the change: `ratchet`, by the evidence, or a person."
    )
    canary_percent: int = Field(
        default=0, ge=0, le=100, description="Percent of users in the canary's present step, or its last; 0: none yet."
    )
    control: bool = Field(
        default=False, description="It is promoted, and some users stay on the previous adapter for a while."
    )
    promoted_at: AwareDatetime | None = Field(
        default=None,
        description="Of one that is promoted: when its flags were set, which may be long after it was decided. What "
        "people were asked until then is of the comparison that led to it.",
    )
    paused: str = Field(
        default="", max_length=2_000, description="Why no move to more users is made until a person says so."
    )
    spec: TaskSpec
