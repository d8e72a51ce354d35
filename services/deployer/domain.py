"""The ledger of a candidate's pairs, what a label is worth, and the decision about the candidate. Pure.

    shadow ──W ≥ canary_wealth──▶ canary ──W ≥ 1/alpha, enough canary requests, guard quiet──▶ promoted
       └──────────── harm · futility · labels spent · canary guard · superseded ────────────▶ rejected

`betting.py` computes the wealth W, `rollout.py` holds what changes. Only superiority promotes: a candidate that is
merely not worse is not promoted yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from schemas.conversation import Answer, Call
from schemas.rollouts import Evidence, Stage
from schemas.tasks import RolloutSettings, TaskKind
from services.deployer.betting import FUTILITY_ODDS, HARM_WEALTH, canary_guard, futility, max_wealth
from shared.identity import content_hash

CANNOT_TELL_LIMIT = 2
"""After so many "cannot tell" answers a ticket counts as a tie."""


@dataclass(frozen=True)
class Ticket:
    """A discordant pair that bets. `outcome`: -1, 0, 1 or the mean of several labels; None: no label yet.

    `asked` is False where the candidate erred: that is a loss and nobody is asked.
    """

    outcome: float | None
    asked: bool = True


@dataclass(frozen=True)
class CanaryCounts:
    """The canary's requests, and the users with a failed request, each counted in the arm of the first failure."""

    requests: int = 0
    errors: int = 0
    bad_users: int = 0
    bad_canary_users: int = 0


@dataclass(frozen=True)
class Ledger:
    """Everything that a decision reads. `tickets` are in the order in which they were drawn."""

    tickets: Sequence[Ticket] = ()
    agreeing: int = 0
    canary: CanaryCounts = CanaryCounts()

    @property
    def outcomes(self) -> list[float | None]:
        return [ticket.outcome for ticket in self.tickets]

    @property
    def asked(self) -> int:
        return sum(ticket.asked for ticket in self.tickets)

    def evidence(self, alpha: float) -> Evidence:
        """Return the counts that every change carries. A split vote counts by its sign; wealth uses its exact value."""
        labelled = [outcome for outcome in self.outcomes if outcome is not None]
        return Evidence(
            wins=sum(outcome > 0 for outcome in labelled),
            ties=sum(outcome == 0 for outcome in labelled) + self.agreeing,
            losses=sum(outcome < 0 for outcome in labelled),
            pending=len(self.tickets) - len(labelled),
            wealth=max_wealth(self.outcomes),
            alpha=alpha,
            canary_requests=self.canary.requests,
            canary_errors=self.canary.errors,
        )


@dataclass(frozen=True)
class Decision:
    """The candidate's next stage and the reason that an operator reads."""

    stage: Stage
    reason: str


def decide(stage: Stage, ledger: Ledger, alpha: float, settings: RolloutSettings) -> Decision | None:
    """Return the next stage, or None to continue. Checks the canary guard, then proof, then the reasons to reject."""
    evidence = ledger.evidence(alpha)
    counts = (
        f"{_counted(evidence.wins, 'win')}, {_counted(evidence.losses, 'loss', 'losses')}, "
        f"{_counted(evidence.ties, 'tie')}, {evidence.pending} pending"
    )
    if stage is Stage.CANARY and (reason := _canary_failure(ledger.canary, settings)):
        return Decision(Stage.REJECTED, reason)
    if evidence.wealth >= 1 / alpha:
        if stage is Stage.SHADOW:
            return Decision(
                Stage.CANARY, _reached(evidence.wealth, settings.canary_wealth, "the canary threshold", counts)
            )
        if ledger.canary.requests >= settings.min_canary_requests:
            canary = f"; the canary answered {ledger.canary.requests} requests with {ledger.canary.errors} errors"
            return Decision(Stage.PROMOTED, _reached(evidence.wealth, 1 / alpha, "1/α", counts) + canary)
        return None
    if reason := _reason_to_reject(ledger, settings, counts):
        return Decision(Stage.REJECTED, reason)
    if stage is Stage.SHADOW and evidence.wealth >= settings.canary_wealth:
        return Decision(Stage.CANARY, _reached(evidence.wealth, settings.canary_wealth, "the canary threshold", counts))
    return None


def _reached(wealth: float, threshold: float, name: str, counts: str) -> str:
    return f"wealth {wealth:.0f} ≥ {threshold:.0f} = {name} after {counts}"


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _canary_failure(canary: CanaryCounts, settings: RolloutSettings) -> str:
    share = settings.canary_percent / 100
    guard = canary_guard(canary.bad_canary_users, canary.bad_users, share, settings.max_error_ratio)
    if guard < HARM_WEALTH:
        return ""
    return (
        f"the canary fails too often: {canary.bad_canary_users} of the {canary.bad_users} users with a failed request "
        f"were in the canary, which has {settings.canary_percent} % of users (evidence {guard:.0f} ≥ {HARM_WEALTH:.0f} "
        f"that it fails more than {settings.max_error_ratio:g} times as often as the primary)"
    )


def _reason_to_reject(ledger: Ledger, settings: RolloutSettings, counts: str) -> str:
    worse = max_wealth([None if x is None else -x for x in ledger.outcomes])
    if worse >= HARM_WEALTH:
        return f"the candidate is worse: wealth against it {worse:.0f} ≥ {HARM_WEALTH:.0f} after {counts}"
    odds = futility(ledger.outcomes)
    if odds >= FUTILITY_ODDS:
        return f"the candidate is unlikely to win: odds against it {odds:.0f} ≥ {FUTILITY_ODDS:.0f} after {counts}"
    if ledger.asked >= settings.max_labels and None not in ledger.outcomes:
        return f"all {settings.max_labels} labels are spent and the candidate is not proven better: {counts}"
    return ""


def label_outcome(kind: TaskKind, label: str | None, preference: str | None, pair: Pair) -> float | None:
    """Return one person's answer as X: 1 the candidate was better, -1 worse, 0 no difference; None: cannot tell.

    A classification label is the truth: each arm's answer, as one text, is right or wrong by it. A preference names a
    side.
    """
    if label is not None:
        if kind is TaskKind.CLASSIFICATION:
            truth = normalise(label)
            candidate = pair.candidate or Answer()
            return float((normalise(candidate.plain) == truth) - (normalise(pair.production.plain) == truth))
        return None  # A rewritten text does not tell which arm was closer to it.
    if preference == "cannot_tell":
        return None
    if preference in ("a", "b"):
        return 1.0 if (preference == "a") == pair.candidate_first else -1.0
    return 0.0


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
    """A ticket with what a person is shown: a plain record. `labels`: the number of answers that it has already."""

    ticket_id: str
    rollout_id: str
    prediction_id: str
    user_hash: str | None
    call: Call | None
    pair: Pair
    labels: int
    logged_at: datetime | None = None


@dataclass(frozen=True)
class Observation:
    """One request while a canary runs."""

    prediction_id: str
    user_key: str | None
    canary: bool
    failed: bool
    occurred_at: datetime


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
