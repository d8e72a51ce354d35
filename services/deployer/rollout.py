"""A candidate's rollout as a value: how it starts and every change it can go through. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pydantic import BaseModel, ConfigDict

from schemas.adapters import AdapterEvaluated
from schemas.rollouts import Evidence, RolloutChanged, Stage
from schemas.tasks import TaskChanged, TaskSpec
from shared.identity import content_hash, event_id

ACTIVE = (Stage.SHADOW, Stage.CANARY)
BASE = "(base)"
"""Stands for the base model in `asked_against`: no adapter has such a name."""
CONTROL_TICKETS = 60
"""Of pairs made after a promotion, which tell what it gained."""
RATCHET = "ratchet"
"""Who moved a rollout, where the evidence did."""
_UNTIL, _ENDS = "until ", " ends; "
"""Around what a candidate waits for, before the verdict in its reason."""
_FLAGS_ARRIVE = timedelta(seconds=10)
"""So long a gateway may go by the flags that were before: it reads them every second, and a request takes its time."""
ENDED = (Stage.REJECTED, Stage.INCONCLUSIVE)
"""The candidate serves nobody, and whoever served before it goes on."""
_RISING = (Stage.SHADOW, Stage.CANARY, Stage.PROMOTED)
"""From few users to all."""


class Position(BaseModel):
    """What a rise changes of a rollout: the fields of that name."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    stage_since: datetime
    canary_percent: int
    step_since: datetime | None
    control: bool
    primary: str | None
    previous: str | None


@dataclass(frozen=True)
class Rollout:
    """One candidate's rollout: a flat record, field for field what its table and its events hold.

    `opponent`: what the verdict `verdict_id` compared it with; None: the base model. `former_verdicts`: the ids of
    those that it stood on before. `asked_against`: with what it is to be compared again before it enters, as the change
    `asked_version` asked for; "" if no verdict is awaited. `entered_at`: when it had passed the offline gates, went
    into shadow and spent its alpha, of which `alpha_drawn` is its own draw and the rest its predecessor's; None: never.
    `stage_since`: when it came into its stage. `moved_by`: whoever made the last change, `RATCHET` or a person.
    `paused`: why it is not moved to more users until a person says so; "" if it may be. `version` counts the changes;
    `settled`: the flags and the event of the last change have been applied and published. `moves_flags` is False once
    its flags are set, and for a change that sets none: a candidate has not entered, the active one stays in its stage
    because a newer one waits or was rejected or because it was paused, or an operator turned rollback on or off by
    hand. `before`: what the flags may still say in part until they are set. Of a rise it is what the rollout was; of
    what takes the place of a rise whose flags were not all set, it is that rise; of a resumption, which changes none of
    its fields, what it is. `canary_percent`: the share of users in the canary, of its last step once it is over, 0
    before it; `step_since`: since when it has that. `control`: it is promoted, and some users stay on `previous` for a
    while; `canary_percent` is then the share of all others. `counted_percent`: the share at which guards that compare
    arms count: `canary_percent` but while a rise waits, and for a promotion until it is settled, since the share before
    is still in force then, and while the flag has another share by hand; None: they count nothing, since nobody is in
    the canary yet, or that share is not known. `counted_since`: from when requests count at it, where the share before
    it was greater or None. `resets`: the adapter of another base model that the primary flag named as it entered; no
    engine serves it any more once all serve the candidate, so the flag is set to the base model.
    `log_entry`: the newest of Unleash's log before any flag of the last change was set: what the log has of these flags
    since, and is no part of the change, is of a hand. None: no flag was set yet, or the log was away.
    `replays_ended`: the replays after its promotion, for as many fresh pairs as people are asked about, are over.
    """

    rollout_id: str
    task: str
    task_revision: str
    cycle_id: str | None
    stage: Stage
    primary: str | None
    previous: str | None
    candidate: str
    candidate_uri: str
    dataset_id: str
    dataset_uri: str
    data_cutoff: datetime
    spec: TaskSpec
    opponent: str | None
    verdict_id: str
    alpha: float
    reason: str
    changed_at: datetime
    stage_since: datetime
    evidence: Evidence
    moved_by: str = RATCHET
    paused: str = ""
    asked_against: str = ""
    alpha_drawn: float = 0.0
    entered_at: datetime | None = None
    version: int = 0
    moves_flags: bool = True
    settled: bool = False
    canary_percent: int = 0
    step_since: datetime | None = None
    control: bool = False
    before: Position | None = None
    counted_percent: int | None = 0
    counted_since: datetime | None = None
    resets: str | None = None
    former_verdicts: tuple[str, ...] = ()
    log_entry: int | None = None
    replays_ended: bool = False
    asked_version: int = 0

    @property
    def entered(self) -> bool:
        return self.entered_at is not None

    @property
    def active(self) -> bool:
        return self.entered and self.stage in ACTIVE

    @property
    def control_until(self) -> datetime:
        """When the control of its promotion ends, if nothing ends it before: its days begin once its flags are set."""
        return (self.step_since or self.stage_since) + timedelta(days=self.spec.rollout.control_days)

    @property
    def compared(self) -> bool:
        """Pairs of it are made: while it is active, and after its promotion for as long as there is a control."""
        return self.active or self.control

    def is_asked_about(self, *, fresh: bool) -> bool:
        """Return True if people may still be asked about its pairs: those before its promotion, or the fresh ones."""
        return self.control if fresh else self.standing.active

    @property
    def waits(self) -> bool:
        return self.stage is Stage.QUEUED

    @property
    def flags_pending(self) -> bool:
        """The flags of its last change may not all be set yet."""
        return self.moves_flags and not self.settled

    @property
    def rises(self) -> bool:
        """It is to have more users, and its flags may not all be set yet."""
        if not self.flags_pending or self.before is None or self.stage not in _RISING:
            return False
        risen, before = ((_RISING.index(p.stage), p.canary_percent) for p in (self, self.before))
        return risen > before

    @property
    def resumes(self) -> bool:
        """A person lets it go on, and canary and shadow may not all be as its stage wants them yet."""
        return self.flags_pending and not self.paused and self.before == self.position

    @property
    def enters(self) -> bool:
        """It comes into shadow, and its flags may not all be set yet."""
        return self.flags_pending and self.active and self.before is None

    @property
    def adds_traffic(self) -> bool:
        """Its last change, if it is not done, is to send the candidate more traffic: a rise, an entry, a resumption."""
        return self.rises or self.resumes or self.enters

    @property
    def may_serve(self) -> bool:
        """The candidate may serve users: by its stage, or until the flags of the change that takes it back are set."""
        stages = [self.stage, self.before.stage] if self.flags_pending and self.before is not None else [self.stage]
        return any(stage in (Stage.CANARY, Stage.PROMOTED) for stage in stages)

    @property
    def standing(self) -> Rollout:
        """The rollout as it was before a rise whose flags are not all set yet, to be counted, decided and ended by.

        Itself if there is none. A change that is made of it takes the place of the rise.
        """
        if not self.rises or self.before is None:
            return self
        evidence = self.evidence
        if debited := evidence.margin_debited:
            left = (evidence.margin_left or 0.0) + debited
            evidence = evidence.model_copy(update={"margin_debited": 0.0, "margin_left": left})
        return replace(self.at(self.before), before=self.position, evidence=evidence, log_entry=None)

    @property
    def position(self) -> Position:
        return Position.model_validate({name: getattr(self, name) for name in Position.model_fields})

    def at(self, position: Position) -> Rollout:
        """Return the rollout with these fields."""
        return replace(self, **dict(position))

    def share_of(self, at: datetime, *, as_primary: bool) -> int | None:
        """Return the share of users at which a request of this time counts in guards that compare arms.

        `as_primary`: the candidate answered as the primary. None: it does not count there, since nobody is left to
        compare it with, the flags of its promotion are still being set, or it is not known what the share was.
        """
        if (as_primary and not self._has_control) or (self.counted_since is not None and at < self.counted_since):
            return None
        return self.counted_percent

    def share_of_complaint(self, answered: int | None) -> int | None:
        """Return the same for a complaint about an answer of the sample that was given at this share; None: not known.

        Of the two shares it is the greater one, which can only spare the canary. While there is a control only what was
        answered since the promotion counts: see `share_of_other_complaint`.
        """
        if answered is None or self.counted_percent is None or (self._has_control and answered != self.canary_percent):
            return None
        return max(answered, self.counted_percent)

    @property
    def share_of_other_complaint(self) -> int | None:
        """The same of an answer that is not in the sample, and counts as the primary's.

        None while there is a control: complaints come late, so it may be of before the promotion, whoever gave it, and
        as the control's it would make up for twenty of the candidate's.
        """
        return None if self._has_control else self.counted_percent

    @property
    def _has_control(self) -> bool:
        """Some users stay on the adapter before, and the flags say so."""
        return self.control and self.counted_percent == self.canary_percent

    def counted_at(self, percent: int | None, now: datetime) -> Rollout:
        """Return the rollout with another share at which its guards count. What is read late counts at none."""
        falls = percent is not None and (self.counted_percent is None or percent < self.counted_percent)
        since = now + _FLAGS_ARRIVE if falls else self.counted_since
        return replace(self, counted_percent=percent, counted_since=since)

    def with_stage(
        self,
        stage: Stage,
        reason: str,
        evidence: Evidence,
        now: datetime,
        *,
        moves_flags: bool = True,
        moved_by: str = RATCHET,
    ) -> Rollout:
        """Return the rollout after its next change, unsettled; the caller saves it, then settles it.

        Flags that the last change did not come to are set with this one.
        """
        return replace(
            self, stage=stage, reason=reason[:2_000], evidence=evidence, changed_at=now,
            stage_since=self.stage_since if stage is self.stage else now, moved_by=moved_by, version=self.version + 1,
            moves_flags=moves_flags or self.flags_pending, settled=False,
            control=self.control and stage is Stage.PROMOTED, before=self.before if self.flags_pending else None,
            resets=self.resets if self.flags_pending else None,
            log_entry=self.log_entry if self.flags_pending else None,
        )  # fmt: skip

    def with_canary(self, percent: int, reason: str, evidence: Evidence, now: datetime) -> Rollout:
        """Return the rollout with so many of 100 users in its canary."""
        canary = self.with_stage(Stage.CANARY, reason, evidence, now)
        counted = self.counted_percent if self.stage is Stage.CANARY else None
        return replace(canary, canary_percent=percent, counted_percent=counted, step_since=now, before=self.position)

    def with_promotion(self, reason: str, evidence: Evidence, now: datetime, moved_by: str = RATCHET) -> Rollout:
        """Return the rollout with the candidate as the primary of everyone, or of all but the control."""
        settings = self.spec.rollout
        if settings.control_days:
            reason = (
                f"{reason}, but for {settings.control_percent} % who stay on {self.primary or 'the base model'} for "
                f"{settings.control_days:g} days as control"
            )
        promoted = self.with_stage(Stage.PROMOTED, reason, evidence, now, moved_by=moved_by)
        promoted = replace(promoted, before=self.position)
        if settings.control_days:
            promoted = replace(promoted, control=True, canary_percent=100 - settings.control_percent, step_since=now)
        return promoted.with_serving(self.candidate, self.primary)

    def without_control(self, reason: str, evidence: Evidence, now: datetime, moved_by: str = RATCHET) -> Rollout:
        """Return the promoted rollout once nobody stays on the previous adapter any more."""
        stays = self.with_stage(self.stage, f"its control has ended: {reason}", evidence, now, moved_by=moved_by)
        return replace(stays, control=False)

    def taken_back(
        self, reason: str, evidence: Evidence, now: datetime, moved_by: str = RATCHET, *, moves_flags: bool = True
    ) -> Rollout:
        """Return the promoted rollout with the adapter before it serving again."""
        back = self.with_stage(Stage.ROLLED_BACK, reason, evidence, now, moves_flags=moves_flags, moved_by=moved_by)
        return back.with_serving(self.previous, self.candidate)

    def with_pause(self, reason: str, evidence: Evidence, now: datetime, moved_by: str) -> Rollout:
        """Return the rollout in the same stage, paused; the flags stay as they are, but for what a rise had set."""
        stays = self.with_stage(self.stage, f"paused: {reason}", evidence, now, moves_flags=False, moved_by=moved_by)
        return replace(stays, paused=reason[:2_000])

    def with_resumption(
        self, reason: str, evidence: Evidence, now: datetime, moved_by: str, log_entry: int | None = None
    ) -> Rollout:
        """Return the rollout in the same stage, going on; canary and shadow are set as the stage wants them.

        `log_entry`: the newest of Unleash's log before the flags were read by which the person may resume.
        """
        stays = self.with_stage(self.stage, f"resumed: {reason}", evidence, now, moved_by=moved_by)
        return replace(stays, paused="", before=self.position, log_entry=log_entry)

    def with_serving(self, primary: str | None, previous: str | None) -> Rollout:
        """Return the rollout with these adapters serving."""
        return replace(self, primary=primary, previous=previous)

    def with_refusal(self, reason: str, now: datetime) -> Rollout:
        """Return the rollout rejected before its change was settled; whoever served before the change serves on."""
        return self.standing.with_stage(Stage.REJECTED, reason, self.standing.evidence, now)

    def with_flags_begun(self, now: datetime) -> Rollout:
        """Return the rollout before the first of its flags is set: from then on a canary counts at its new share.

        What was before the first canary does not count at all. Whoever failed while it waited would be of the primary's
        arm, and would not count again when the canary fails them.
        """
        if not (self.rises and self.stage is Stage.CANARY):
            return self
        since = now if self.counted_percent is None else self.counted_since
        return replace(self, counted_percent=self.canary_percent, counted_since=since)

    def with_flags_set(self, now: datetime) -> Rollout:
        """Return the rollout once the flags of its last change are set: a step of the canary, or a control, begins."""
        since = now if self.rises else self.step_since
        return replace(self, moves_flags=False, step_since=since).counted_at(self.canary_percent, now)

    def until(self, what: str) -> Rollout:
        """Return a candidate that was just made, with what it waits for: its history begins with that."""
        return replace(self, reason=f"{_UNTIL}{what}{_ENDS}{self.reason}"[:2_000])

    def queued(self, reason: str, now: datetime) -> Rollout:
        """Return the rollout while it waits for its turn."""
        return self.with_stage(Stage.QUEUED, reason, self.evidence, now, moves_flags=False)

    def asked(self, serving: ServingState, now: datetime) -> Rollout:
        """Return the rollout while it waits to be compared with the model that serves today."""
        name = serving.primary or "the base model"
        waiting = self.queued(f"it is its turn: evaluated again, against {name}, which serves now", now)
        return replace(waiting, asked_against=serving.primary or BASE, asked_version=waiting.version)

    def awaits(self, event: AdapterEvaluated) -> bool:
        """Return True if this is the verdict that was asked for."""
        return event.adapter == self.candidate and self.asked_against == (event.production.adapter or BASE)

    def judged_again(self, event: AdapterEvaluated, now: datetime) -> Rollout:
        """Return the rollout with a newer verdict, by which it waits on or is rejected.

        One against a model that serves no more may come late: then the one that was asked for last is still awaited.
        """
        stage = Stage.REJECTED if event.verdict == "failed" else Stage.QUEUED
        judged = self.with_stage(stage, offline_reason(event), self.evidence, now, moves_flags=False)
        return replace(
            judged, opponent=event.production.adapter, verdict_id=str(event.event_id),
            former_verdicts=(*self.former_verdicts, self.verdict_id),
            asked_against="" if self.awaits(event) else self.asked_against,
        )  # fmt: skip

    def into_shadow(self, serving: ServingState, drawn: float, alpha: float, now: datetime) -> Rollout:
        """Return the rollout as it enters shadow against the model that serves, to be tested at the level `alpha`, of
        which it drew a part."""
        waited = self.reason.startswith(_UNTIL)
        reason = self.reason.partition(_ENDS)[2] if waited else self.reason
        if serving.outdated is not None:
            base = f"an adapter of the base model {serving.outdated_base}"
            reason = f"{reason[:1_500]}; primary is reset: it named {serving.outdated}, {base}"
        entering = self.with_stage(Stage.SHADOW, reason, Evidence(alpha=alpha), now)
        return replace(
            entering, primary=serving.primary, previous=serving.previous, alpha=alpha, alpha_drawn=drawn,
            entered_at=now, resets=serving.outdated,
        )  # fmt: skip

    def turned_away(self, reason: str, now: datetime, stage: Stage = Stage.REJECTED) -> Rollout:
        """Return the rollout of a candidate that ends before shadow: it spends no alpha and moves no flag."""
        return self.with_stage(stage, reason, self.evidence, now, moves_flags=False)

    def is_invalidated_by(self, changed: TaskChanged) -> bool:
        """Return True if the task changed after the candidate's data cut-off: its null hypothesis changed with it."""
        return changed.occurred_at > self.data_cutoff and changed.spec.revision != self.task_revision

    @property
    def move(self) -> Move:
        """The last change, as the history has it."""
        return Move(
            self.rollout_id, self.version, self.task, self.cycle_id, self.changed_at, self.candidate, self.stage,
            self.canary_percent, self.paused, self.reason, self.moved_by, self.evidence,
        )  # fmt: skip

    def event(self) -> RolloutChanged:
        """Return the last change as an event. Its id follows from rollout and version, so it can be published again."""
        return RolloutChanged(
            event_id=event_id("rollout", self.rollout_id, self.version),
            occurred_at=self.changed_at,
            task=self.task,
            task_revision=self.task_revision,
            cycle_id=self.cycle_id,
            rollout_id=self.rollout_id,
            stage=self.stage,
            primary_adapter=self.primary,
            previous_adapter=self.previous,
            candidate_adapter=self.candidate,
            candidate_uri=self.candidate_uri,
            dataset_uri=self.dataset_uri,
            data_cutoff=self.data_cutoff,
            evidence=self.evidence,
            reason=self.reason,
            moved_by=self.moved_by,
            canary_percent=self.canary_percent,
            control=self.control,
            promoted_at=self.step_since if self.stage is Stage.PROMOTED else None,
            paused=self.paused,
            spec=self.spec,
        )

    def evidence_event(self, evidence: Evidence, now: datetime) -> RolloutChanged:
        """Return the last change with newer evidence. Its id follows from both."""
        newer = event_id("rollout", self.rollout_id, self.version, evidence.model_dump_json())
        return self.event().model_copy(update={"event_id": newer, "occurred_at": now, "evidence": evidence})


@dataclass(frozen=True)
class Move:
    """One change of a rollout: a row of the history, which is only ever added to."""

    rollout_id: str
    version: int
    task: str
    cycle_id: str | None
    at: datetime
    candidate: str
    stage: Stage
    canary_percent: int
    paused: str
    reason: str
    moved_by: str
    evidence: Evidence

    @property
    def stage_shown(self) -> str:
        """The stage, with the canary's share of users."""
        return f"canary of {self.canary_percent} %" if self.stage is Stage.CANARY else self.stage.value


def has_proven(stage: Stage, evidence: Evidence) -> bool:
    """Return True for a candidate that is promoted as better, by proof: its test has spent nothing.

    One that is promoted as not worse has spent its level on a claim that it is better, which it did not prove.
    """
    return stage is Stage.PROMOTED and not evidence.margin_debited


def max_tickets(rollout: Rollout) -> int:
    """Return on how many tickets people are asked: to decide about it or, once promoted, to see what it gained."""
    return CONTROL_TICKETS if rollout.control else rollout.spec.rollout.max_labels


def rollout_id(event: AdapterEvaluated) -> str:
    """Return the rollout's id. An adapter evaluated again gets another rollout, with wealth 1 and its own alpha."""
    return f"rollout-{event.adapter}-{content_hash(str(event.event_id), length=6)}"


@dataclass(frozen=True)
class ServingState:
    """The adapter that serves everyone and the one that served before. None: the base model.

    `outdated`: the adapter that served everyone with another base model, `outdated_base`, where the task has a new one.
    """

    primary: str | None = None
    previous: str | None = None
    outdated: str | None = None
    outdated_base: str = ""


def next_serving_state(last: Rollout, base_model: str) -> ServingState:
    """Return who serves after a rollout; the base model itself if the task uses another base model by now.

    After an operator's rollback both are the adapter that was restored. The primary's payload can then be corrected
    and the rollback flag turned off without changing any user's answers.
    """
    if last.stage in ENDED and last.resets is not None:  # It ended before the primary's flag was reset.
        return ServingState(outdated=last.resets, outdated_base="before")
    if last.spec.base_model != base_model:
        return ServingState(outdated=last.primary, outdated_base=last.spec.base_model)
    return ServingState(last.primary, last.primary if last.stage is Stage.ROLLED_BACK else last.previous)


def candidate_of(event: AdapterEvaluated, serving: ServingState, now: datetime) -> Rollout:
    """Return the rollout of a candidate that was just evaluated: it waits for its turn, or the gates rejected it."""
    settings = event.spec.rollout
    share = settings.yearly_false_promotion / settings.cycles_per_year
    return Rollout(
        rollout_id=rollout_id(event),
        task=event.task,
        task_revision=event.task_revision,
        cycle_id=event.cycle_id,
        stage=Stage.REJECTED if event.verdict == "failed" else Stage.QUEUED,
        primary=serving.primary,
        previous=serving.previous,
        candidate=event.adapter,
        candidate_uri=event.adapter_uri,
        dataset_id=event.dataset_id,
        dataset_uri=event.dataset_uri,
        data_cutoff=event.data_cutoff,
        spec=event.spec,
        opponent=event.production.adapter,
        verdict_id=str(event.event_id),
        alpha=share,
        reason=offline_reason(event),
        changed_at=now,
        stage_since=now,
        evidence=Evidence(alpha=share),
        moves_flags=False,
    )


def _compared(event: AdapterEvaluated) -> str:
    """Say how both arms answered. Texts are scored: hardly one is right to the letter."""
    name, candidate, production = "accuracy", event.candidate.accuracy, event.production.accuracy
    gating = next((row for row in event.texts if row.gates), None)
    if gating is not None:
        name, candidate, production = gating.metric.value, gating.candidate, gating.production
    return f"{name} {candidate.value:.3f} against production's {production.value:.3f} on {candidate.n} examples"


def offline_reason(event: AdapterEvaluated) -> str:
    """Return why the candidate passed the offline gates, or which gates it failed and what they measured."""
    compared = _compared(event)
    unknown = [gate.name for gate in event.gates if gate.labels_needed is not None]
    if event.verdict != "failed":
        passed = f"stopped by none of {len(event.gates)} offline gates, {', '.join(unknown)} unknown on so few rows"
        passed = passed if unknown else f"passed all {len(event.gates)} offline gates"
        return f"{passed} ({compared}); compared on live traffic from now on"
    failed = [
        f"{gate.name} ({'not measured' if gate.measured is None else f'{gate.measured:.4g}'}, required "
        f"{gate.required}{f': {gate.detail}' if gate.detail else ''})"
        for gate in event.gates
        if not gate.passed
    ]
    return f"rejected before any live traffic by {', '.join(failed) or 'the evaluator'}; {compared}"[:2_000]
