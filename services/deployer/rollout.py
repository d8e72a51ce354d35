"""One candidate's way, as a value: how it begins, and every change that it can go through. Pure."""

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
    """One candidate's way. `version` counts its changes; `settled`: the flags and the event of the last one are out.

    `moves_flags` is False for changes that the flags do not follow from: a candidate that failed offline never had
    any, and what an operator did by hand is only noted.
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

    def moved(
        self, stage: Stage, reason: str, evidence: Evidence, now: datetime, *, moves_flags: bool = True
    ) -> Rollout:
        """The rollout after its next change; the caller stores it, then settles it."""
        return replace(
            self, stage=stage, reason=reason[:2_000], evidence=evidence, changed_at=now, version=self.version + 1,
            moves_flags=moves_flags, settled=False,
        )  # fmt: skip

    def promoted(self, reason: str, evidence: Evidence, now: datetime) -> Rollout:
        """The candidate becomes the primary."""
        return self.moved(Stage.PROMOTED, reason, evidence, now).serving(self.candidate, self.primary)

    def serving(self, primary: str | None, previous: str | None) -> Rollout:
        """The rollout with others serving."""
        return replace(self, primary=primary, previous=previous)

    def refused(self, reason: str, now: datetime) -> Rollout:
        """vLLM does not serve the candidate any more: whoever served before goes on."""
        back = self.moved(Stage.REJECTED, reason, self.evidence, now)
        return back.serving(self.previous, None) if self.stage is Stage.PROMOTED else back

    def never_served(self, reason: str) -> Rollout:
        """vLLM never served the candidate: it did not enter, costs no alpha and moves no flag."""
        return replace(self, stage=Stage.REJECTED, reason=reason[:2_000], entered=False, moves_flags=False)

    def void_by(self, changed: TaskChanged) -> bool:
        """Whether the task is another one since the candidate's data was cut: then the null is another one too."""
        return changed.occurred_at > self.data_cutoff and changed.spec.revision != self.task_revision

    def event(self) -> RolloutChanged:
        """The change as an event: the same change is the same event, however often it is published."""
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
    """A resubmission of the same adapter is another rollout: it starts at wealth 1 with an alpha of its own."""
    return f"rollout-{event.adapter}-{content_hash(str(event.event_id), length=6)}"


@dataclass(frozen=True)
class Serving:
    """Who serves everyone, and who served before. None: the base model."""

    primary: str | None = None
    previous: str | None = None


def serving_after(last: Rollout, base_model: str) -> Serving:
    """Who serves after a rollout: the base itself where the task has moved to another base model since.

    After an operator's rollback both are the adapter that was gone back to: then the primary's payload can be put
    right, and the flag be turned off, without changing anybody's answer.
    """
    if last.spec.base_model != base_model:
        return Serving()
    return Serving(last.primary, last.primary if last.stage is Stage.ROLLED_BACK else last.previous)


def begun(event: AdapterEvaluated, last: Rollout | None, serving: Serving, now: datetime) -> Rollout:
    """The rollout of a candidate that was just evaluated: in shadow, or rejected by the offline gates.

    `last`: the task's last candidate that entered shadow, on whose fate this one's alpha depends.
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
    """Why the offline gates let it pass, or which stopped it and with what evidence."""
    candidate, production = event.candidate.accuracy, event.production.accuracy
    compared = f"accuracy {candidate.value:.3f} against production's {production.value:.3f} on {candidate.n} examples"
    if event.verdict == "passed":
        return f"passed all {len(event.gates)} offline gates ({compared}); now compared on live traffic"
    failed = [
        f"{gate.name} ({'not measured' if gate.measured is None else f'{gate.measured:.4g}'}, required "
        f"{gate.required}{f': {gate.detail}' if gate.detail else ''})"
        for gate in event.gates
        if not gate.passed
    ]
    return f"stopped before any live traffic by {', '.join(failed) or 'the evaluator'}; {compared}"[:2_000]
