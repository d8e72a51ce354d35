"""The ledger of a candidate's pairs, what a label is worth, and the decision about the candidate. Pure.

    shadow ──W ≥ canary_wealth──▶ canary 5 % ──▶ 25 % ──▶ 50 % ──▶ promoted   each by W ≥ 1/alpha, users served
       ├────── harm · futility · canary guard ────────────────────────────▶ rejected
       └────── labels spent · expired ────────────────────────────────────▶ inconclusive

`statistics/` computes the wealth W, `rollout.py` holds what changes. Only superiority promotes: a candidate that is
merely not worse is not promoted yet. W is the greatest wealth so far, so that looking often is safe; but no move to
more users is made while the labels as they stand speak against it. That only restricts, so the test's level holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from schemas.conversation import Answer, Call
from schemas.rollouts import Evidence, Stage
from schemas.task_settings import RolloutSettings, Severity
from schemas.tasks import TaskKind
from services.deployer.statistics.betting import (
    FUTILITY_ODDS,
    HARM_WEALTH,
    futility,
    max_wealth,
    wealth_now,
)
from services.deployer.statistics.bounds import interval
from services.deployer.statistics.canary import CanaryCounts, canary_failure, confidence_shift, guard_evidence
from services.deployer.statistics.forecast import labels_expected
from services.deployer.statistics.guards import together
from shared.identity import content_hash

NOTHING_DIFFERS = 1_000
"""Pairs, all of which agree, after which there is nothing to promote: a candidate with production's weights, say."""
CANNOT_TELL_LIMIT = 2
"""After so many "cannot tell" answers, whatever is asked, a ticket counts as a tie. The second question is for another
person; the console asks the first one again only where nobody else reviews."""


@dataclass(frozen=True)
class Ticket:
    """A discordant pair that bets. `outcome`: -1, 0, 1 or the mean of several labels; None: no label yet.

    `asked` is False where the candidate erred: that is a loss and nobody is asked. `identified`: its user or session is
    known.
    """

    outcome: float | None
    asked: bool = True
    identified: bool = True


@dataclass(frozen=True)
class Ledger:
    """Everything that a decision reads. `tickets` are in the order in which they were drawn."""

    tickets: Sequence[Ticket] = ()
    agreeing: int = 0
    canary: CanaryCounts = field(default_factory=CanaryCounts)

    @property
    def outcomes(self) -> list[float | None]:
        return [ticket.outcome for ticket in self.tickets]

    @property
    def asked(self) -> int:
        return sum(ticket.asked for ticket in self.tickets)

    def evidence(self, alpha: float) -> Evidence:
        """Return what every change carries: the counts, how much better the candidate is, and how far from a proof."""
        counted = self.counted(alpha)
        gain_low, gain_high = interval(self.outcomes, self.agreeing)
        expected = labels_expected(counted.wins, counted.ties - self.agreeing, counted.losses, alpha)
        return counted.model_copy(update={"gain_low": gain_low, "gain_high": gain_high, "labels_expected": expected})

    def counted(self, alpha: float) -> Evidence:
        """Return what a decision reads. A split vote counts by its sign; wealth uses its exact value."""
        labelled = [outcome for outcome in self.outcomes if outcome is not None]
        wins, losses = sum(outcome > 0 for outcome in labelled), sum(outcome < 0 for outcome in labelled)
        return Evidence(
            wins=wins,
            ties=len(labelled) - wins - losses + self.agreeing,
            losses=losses,
            pending=len(self.tickets) - len(labelled),
            labels=sum(ticket.asked and ticket.outcome is not None for ticket in self.tickets),
            unidentified=sum(not ticket.identified for ticket in self.tickets),
            wealth=max_wealth(self.outcomes),
            alpha=alpha,
            canary_requests=self.canary.requests,
            canary_errors=self.canary.errors,
            canary_users=self.canary.users,
            warning=confidence_shift(self.canary),
        )


@dataclass(frozen=True)
class Decision:
    """The candidate's next stage, for a canary its share of users in percent, and the reason that an operator reads."""

    stage: Stage
    reason: str
    percent: int = 0


def decide(
    stage: Stage,
    ledger: Ledger,
    alpha: float,
    settings: RolloutSettings,
    age: timedelta = timedelta(),
    *,
    held: bool = False,
) -> Decision | None:
    """Return the next stage, or None to continue. Checks the canary guard and harm, then proof, then other ends.

    `age`: how long the candidate has been in its stage. Every stage expires, so that none locks the weekly cycle.
    `held`: by a person, so that there is no move to more users, whatever it has earned.
    """
    evidence = ledger.counted(alpha)
    counts = (
        f"{_counted(evidence.wins, 'win')}, {_counted(evidence.losses, 'loss', 'losses')}, "
        f"{_counted(evidence.ties, 'tie')}, {evidence.pending} pending"
        + (f" ({evidence.unidentified} of unknown authors, who may be few)" if evidence.unidentified else "")
    )
    if stage is Stage.CANARY and (reason := canary_failure(ledger.canary, settings)):
        return Decision(Stage.REJECTED, reason)
    if reason := _harm(ledger, counts):
        return Decision(Stage.REJECTED, reason)
    is_proven = evidence.wealth >= 1 / alpha
    if not is_proven and (reason := _reason_to_reject(ledger, counts)):
        return Decision(Stage.REJECTED, reason)
    if not is_proven and ledger.asked >= settings.max_labels and None not in ledger.outcomes:
        reason = f"all {settings.max_labels} labels are spent and the candidate is not proven better: {counts}"
        return Decision(Stage.INCONCLUSIVE, reason)
    if not held and (move := _move(stage, ledger, evidence, settings, counts)) is not None:
        return move
    if age > timedelta(days=settings.max_days):
        missing = _missing(evidence, settings, ledger.canary.percent, held=held)
        reason = f"{settings.max_days} days in {stage.value} without {missing}, after {counts}"
        return Decision(Stage.INCONCLUSIVE, reason)
    return None


def _move(stage: Stage, ledger: Ledger, evidence: Evidence, settings: RolloutSettings, counts: str) -> Decision | None:
    """Return the move to more users that the candidate has earned, if any."""
    alpha, steps, canary = evidence.alpha, settings.canary_steps, ledger.canary
    is_proven = evidence.wealth >= 1 / alpha
    if not _speaks_for_it_now(ledger, min(settings.canary_wealth, 1 / alpha)):
        return None
    if stage is Stage.SHADOW and (is_proven or evidence.wealth >= settings.canary_wealth):
        reason, first = _reached(evidence.wealth, settings.canary_wealth, "the canary threshold", counts), steps[0]
        return Decision(Stage.CANARY, f"{reason}: {first} % of users", first)
    if stage is Stage.CANARY and is_proven and canary.users >= settings.min_canary_users:
        following = next((step for step in steps if step > canary.percent), None)
        reason = (
            f"{_reached(evidence.wealth, 1 / alpha, '1/α', counts)}; the canary answered {canary.requests} requests "
            f"with {canary.errors} errors, {_counted(canary.users, 'user')} or more at {canary.percent} %: "
        )
        if following is None:
            return Decision(Stage.PROMOTED, f"{reason}everyone")
        return Decision(Stage.CANARY, f"{reason}{following} % of users", following)
    return None


def _missing(evidence: Evidence, settings: RolloutSettings, percent: int, *, held: bool) -> str:
    if held:
        return "a person's word that it may go on"
    if evidence.wealth < 1 / evidence.alpha:
        return "the proof"
    return f"{settings.min_canary_users} users whom the canary of {percent} % has served"


def _speaks_for_it_now(ledger: Ledger, threshold: float) -> bool:
    """Return True if the labels as they stand are still worth more users."""
    labelled = [outcome for outcome in ledger.outcomes if outcome is not None]
    return wealth_now(labelled) >= threshold and wealth_now([-outcome for outcome in labelled]) < HARM_WEALTH


def control_evidence(evidence: Evidence, fresh: Ledger, settings: RolloutSettings) -> Evidence:
    """Return the evidence of a promotion, with what fresh pairs and guards have said since."""
    gain_low, gain_high = interval(fresh.outcomes, fresh.agreeing)
    counts = fresh.canary
    return evidence.model_copy(
        update={
            "control_labels": fresh.counted(evidence.alpha).labels, "control_gain_low": gain_low,
            "control_gain_high": gain_high, "guards": together(guard_evidence(counts, settings, fresh.outcomes)),
            "canary_requests": counts.requests, "canary_errors": counts.errors,
        }
    )  # fmt: skip


def _reached(wealth: float, threshold: float, name: str, counts: str) -> str:
    return f"wealth {wealth:.0f} ≥ {threshold:.0f} = {name} after {counts}"


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _harm(ledger: Ledger, counts: str) -> str:
    worse = max_wealth([None if x is None else -x for x in ledger.outcomes])
    if worse < HARM_WEALTH:
        return ""
    return f"the candidate is worse: wealth against it {worse:.0f} ≥ {HARM_WEALTH:.0f} after {counts}"


def _reason_to_reject(ledger: Ledger, counts: str) -> str:
    odds = futility(ledger.outcomes)
    if odds >= FUTILITY_ODDS:
        return f"the candidate is unlikely to win: odds against it {odds:.0f} ≥ {FUTILITY_ODDS:.0f} after {counts}"
    if ledger.agreeing >= NOTHING_DIFFERS and not ledger.tickets:
        return f"nothing to promote: its answers are production's in all {ledger.agreeing} pairs"
    return ""


def label_outcome(
    kind: TaskKind, label: str | None, preference: str | None, pair: Pair, severity: Sequence[Severity] = ()
) -> float | None:
    """Return one person's answer as X: 1 the candidate was better, -1 worse, 0 no difference; None: cannot tell.

    A classification label is the truth: each arm's answer, as one text, is right or wrong by it. What a wrong answer
    costs is 1 unless `severity` has another weight for it, and X is production's cost minus the candidate's. A
    preference names a side.
    """
    if label is not None:
        if kind is TaskKind.CLASSIFICATION:
            candidate = pair.candidate or Answer()
            return _cost(label, pair.production, severity) - _cost(label, candidate, severity)
        return None  # A rewritten text does not tell which arm was closer to it.
    if preference == "cannot_tell":
        return None
    if preference in ("a", "b"):
        return 1.0 if (preference == "a") == pair.candidate_first else -1.0
    return 0.0


def _cost(truth: str, answer: Answer, severity: Sequence[Severity]) -> float:
    """Return what the answer costs where `truth` is right: 0 if it is the truth, else its weight, 1 where none is."""
    right, given = normalise(truth), normalise(answer.plain)
    if given == right:
        return 0.0
    weights = (s.weight for s in severity if (normalise(s.truth), normalise(s.answer)) == (right, given))
    return next(weights, 1.0)


@dataclass(frozen=True)
class Pair:
    """Both arms' answers. `candidate_first`: the candidate's is shown as side a."""

    production: Answer
    candidate: Answer | None
    candidate_first: bool

    @property
    def sides(self) -> tuple[Answer, Answer]:
        """The answers in the order in which a person sees them."""
        sides = (self.candidate or Answer(), self.production)
        return sides if self.candidate_first else (sides[1], sides[0])


@dataclass(frozen=True)
class DrawnTicket:
    """A ticket with what a person is shown: a plain record. `labels`: the number of answers that it has already.

    `fresh`: of a pair that was made after the promotion.
    """

    ticket_id: str
    rollout_id: str
    prediction_id: str
    user_hash: str | None
    call: Call | None
    pair: Pair
    labels: int
    logged_at: datetime | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Label:
    """One person's answer to a question about a ticket. `outcome`: see `label_outcome`; a newer one takes its place."""

    correction_id: str
    ticket_id: str
    request_id: str
    reviewer: str
    outcome: float | None
    given_at: datetime


def ticket_id_of(rollout_id: str, pair_id: str) -> str:
    """Return the ticket's id, which is the same for the same pair."""
    return f"ticket-{content_hash(rollout_id, pair_id, length=16)}"


def ticket_outcome(outcomes: Sequence[float | None]) -> float | None:
    """Return a ticket's X: the mean of its labels, 0 once enough people could not tell, None while pending."""
    labels = [outcome for outcome in outcomes if outcome is not None]
    if labels:
        return sum(labels) / len(labels)
    return 0.0 if len(outcomes) >= CANNOT_TELL_LIMIT else None


def normalise(answer: str) -> str:
    """Return the answer without differences in case and white space."""
    return " ".join(answer.casefold().split())
