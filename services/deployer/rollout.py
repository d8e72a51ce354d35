"""A candidate's rollout as a value: how it starts and every change it can go through. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from schemas.adapters import AdapterEvaluated
from schemas.rollouts import Evidence, RolloutChanged, Stage
from schemas.tasks import TaskChanged, TaskSpec
from services.deployer.betting import alpha_for
from shared.identity import content_hash, event_id

ACTIVE = (Stage.SHADOW, Stage.CANARY)


@dataclass(frozen=True)
class Rollout:
    """One candidate's rollout: a flat record, field for field what its table and its events hold.

    `entered`: it passed the offline gates, went into shadow and has spent its alpha. `version` counts the changes;
    `settled`: the flags and the event of the last change have been applied and published. `moves_flags` is False for a
    change that sets no flag: a candidate never entered, the active one stays in its stage because a newer one was
    rejected before shadow, or an operator turned rollback on or off by hand.
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
    dataset_uri: str
    data_cutoff: datetime
    spec: TaskSpec
    alpha: float
    entered: bool
    reason: str
    changed_at: datetime
    evidence: Evidence
    version: int = 0
    moves_flags: bool = True
    settled: bool = False

    @property
    def active(self) -> bool:
        return self.entered and self.stage in ACTIVE

    def with_stage(
        self, stage: Stage, reason: str, evidence: Evidence, now: datetime, *, moves_flags: bool = True
    ) -> Rollout:
        """Return the rollout after its next change, unsettled; the caller saves it, then settles it."""
        return replace(
            self, stage=stage, reason=reason[:2_000], evidence=evidence, changed_at=now, version=self.version + 1,
            moves_flags=moves_flags, settled=False,
        )  # fmt: skip

    def with_promotion(self, reason: str, evidence: Evidence, now: datetime) -> Rollout:
        """Return the rollout with the candidate as the primary."""
        return self.with_stage(Stage.PROMOTED, reason, evidence, now).with_serving(self.candidate, self.primary)

    def with_serving(self, primary: str | None, previous: str | None) -> Rollout:
        """Return the rollout with these adapters serving."""
        return replace(self, primary=primary, previous=previous)

    def with_refusal(self, reason: str, now: datetime) -> Rollout:
        """Return the rollout rejected because vLLM no longer serves the candidate; the adapter before it serves on."""
        rejected = self.with_stage(Stage.REJECTED, reason, self.evidence, now)
        return rejected.with_serving(self.previous, None) if self.stage is Stage.PROMOTED else rejected

    def rejected_before_entry(self, reason: str) -> Rollout:
        """Return the rollout of a candidate that vLLM never served: it spends no alpha and moves no flag."""
        return replace(self, stage=Stage.REJECTED, reason=reason[:2_000], entered=False, moves_flags=False)

    def is_invalidated_by(self, changed: TaskChanged) -> bool:
        """Return True if the task changed after the candidate's data cut-off: its null hypothesis changed with it."""
        return changed.occurred_at > self.data_cutoff and changed.spec.revision != self.task_revision

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
            spec=self.spec,
        )


def rollout_id(event: AdapterEvaluated) -> str:
    """Return the rollout's id. An adapter evaluated again gets another rollout, with wealth 1 and its own alpha."""
    return f"rollout-{event.adapter}-{content_hash(str(event.event_id), length=6)}"


@dataclass(frozen=True)
class ServingState:
    """The adapter that serves everyone and the one that served before. None: the base model."""

    primary: str | None = None
    previous: str | None = None


def serving_after(last: Rollout, base_model: str) -> ServingState:
    """Return who serves after a rollout; the base model itself if the task uses another base model by now.

    After an operator's rollback both are the adapter that was restored. The primary's payload can then be corrected
    and the rollback flag turned off without changing any user's answers.
    """
    if last.spec.base_model != base_model:
        return ServingState()
    return ServingState(last.primary, last.primary if last.stage is Stage.ROLLED_BACK else last.previous)


def new_rollout(event: AdapterEvaluated, last: Rollout | None, serving: ServingState, now: datetime) -> Rollout:
    """Return the rollout of a candidate that was just evaluated: in shadow, or rejected by the offline gates.

    `last`: the task's last rollout that entered shadow. This one's alpha depends on whether it was promoted.
    """
    passed = event.verdict == "passed"
    settings = event.spec.rollout
    alpha = alpha_for(
        settings.yearly_false_promotion,
        settings.cycles_per_year,
        last.alpha if last else None,
        last is not None and last.stage is Stage.PROMOTED,
    )
    return Rollout(
        rollout_id=rollout_id(event),
        task=event.task,
        task_revision=event.task_revision,
        cycle_id=event.cycle_id,
        stage=Stage.SHADOW if passed else Stage.REJECTED,
        primary=serving.primary,
        previous=serving.previous,
        candidate=event.adapter,
        candidate_uri=event.adapter_uri,
        dataset_uri=event.dataset_uri,
        data_cutoff=event.data_cutoff,
        spec=event.spec,
        alpha=alpha,
        entered=passed,
        reason=offline_reason(event),
        changed_at=now,
        evidence=Evidence(alpha=alpha),
        moves_flags=passed,
    )


def offline_reason(event: AdapterEvaluated) -> str:
    """Return why the candidate passed the offline gates, or which gates it failed and what they measured."""
    candidate, production = event.candidate.accuracy, event.production.accuracy
    compared = f"accuracy {candidate.value:.3f} against production's {production.value:.3f} on {candidate.n} examples"
    if event.verdict == "passed":
        return f"passed all {len(event.gates)} offline gates ({compared}); compared on live traffic from now on"
    failed = [
        f"{gate.name} ({'not measured' if gate.measured is None else f'{gate.measured:.4g}'}, required "
        f"{gate.required}{f': {gate.detail}' if gate.detail else ''})"
        for gate in event.gates
        if not gate.passed
    ]
    return f"rejected before any live traffic by {', '.join(failed) or 'the evaluator'}; {compared}"[:2_000]
