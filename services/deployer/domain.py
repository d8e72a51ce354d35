"""The ledger of a candidate's pairs, what a label is worth, and the decision: pure rules.

    shadow ──W ≥ canary_wealth──▶ canary ──W ≥ 1/alpha, canary seen enough, guard quiet──▶ promoted
       └──────────── harm · futility · labels spent · guard · superseded ───────────────▶ rejected

`betting.py` has the wealth, `rollout.py` what moves. Superiority only: a candidate that is merely not worse is not
promoted yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from schemas.rollouts import Evidence, Stage
from schemas.tasks import RolloutSettings, TaskKind
from services.deployer.betting import FUTILITY_ODDS, HARM_WEALTH, best_prefix, canary_guard, futility

CANNOT_TELL_LIMIT = 2
"""People who may say "cannot tell" of a ticket before it counts as a tie."""


@dataclass(frozen=True)
class Ticket:
    """A pair that counts. `outcome`: -1, 0, 1 or a mean of several labels; None: no label yet.

    `asked` is False where the candidate erred: that is a loss and nobody needs to be asked.
    """

    outcome: float | None
    asked: bool = True


@dataclass(frozen=True)
class CanaryCounts:
    """What was seen of the canary. `bad_users`: users with a failed request, by the arm of their first."""

    requests: int = 0
    errors: int = 0
    bad_users: int = 0
    bad_canary_users: int = 0


@dataclass(frozen=True)
class Ledger:
    """Everything the decision reads. `tickets` in the order in which they were drawn."""

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
        """The counts that go with every change. A split vote counts by its sign; wealth uses its exact value."""
        known = [outcome for outcome in self.outcomes if outcome is not None]
        return Evidence(
            wins=sum(outcome > 0 for outcome in known),
            ties=sum(outcome == 0 for outcome in known) + self.agreeing,
            losses=sum(outcome < 0 for outcome in known),
            pending=len(self.tickets) - len(known),
            wealth=best_prefix(self.outcomes).wealth,
            alpha=alpha,
            canary_requests=self.canary.requests,
            canary_errors=self.canary.errors,
        )


@dataclass(frozen=True)
class Decision:
    """Where the candidate goes next, and the sentence that an operator reads."""

    stage: Stage
    reason: str


def decide(stage: Stage, ledger: Ledger, alpha: float, settings: RolloutSettings) -> Decision | None:
    """The next stage, or None to go on. Proof is looked at before surrender: neither can undo the other."""
    evidence = ledger.evidence(alpha)
    counts = (
        f"{_many(evidence.wins, 'win')}, {_many(evidence.losses, 'loss', 'losses')}, "
        f"{_many(evidence.ties, 'tie')}, {evidence.pending} pending"
    )
    if stage is Stage.CANARY and (reason := _canary_fails(ledger.canary, settings)):
        return Decision(Stage.REJECTED, reason)
    if evidence.wealth >= 1 / alpha:
        if stage is Stage.SHADOW:
            return Decision(Stage.CANARY, _reached(evidence.wealth, settings.canary_wealth, "the canary's bar", counts))
        if ledger.canary.requests >= settings.min_canary_requests:
            seen = f"; the canary answered {ledger.canary.requests} requests with {ledger.canary.errors} errors"
            return Decision(Stage.PROMOTED, _reached(evidence.wealth, 1 / alpha, "1/α", counts) + seen)
        return None
    if reason := _hopeless(ledger, settings, counts):
        return Decision(Stage.REJECTED, reason)
    if stage is Stage.SHADOW and evidence.wealth >= settings.canary_wealth:
        return Decision(Stage.CANARY, _reached(evidence.wealth, settings.canary_wealth, "the canary's bar", counts))
    return None


def _reached(wealth: float, bar: float, name: str, counts: str) -> str:
    return f"wealth {wealth:.0f} ≥ {bar:.0f} = {name} after {counts}"


def _many(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _canary_fails(canary: CanaryCounts, settings: RolloutSettings) -> str:
    share = settings.canary_percent / 100
    guard = canary_guard(canary.bad_canary_users, canary.bad_users, share, settings.max_error_ratio)
    if guard < HARM_WEALTH:
        return ""
    return (
        f"the canary fails too often: {canary.bad_canary_users} of the {canary.bad_users} users with a failed request "
        f"were in it, though it has {settings.canary_percent} % of users (evidence {guard:.0f} ≥ {HARM_WEALTH:.0f} "
        f"for more than {settings.max_error_ratio:g} times the primary's errors)"
    )


def _hopeless(ledger: Ledger, settings: RolloutSettings, counts: str) -> str:
    worse = best_prefix([None if x is None else -x for x in ledger.outcomes]).wealth
    if worse >= HARM_WEALTH:
        return f"the candidate is worse: wealth of that bet {worse:.0f} ≥ {HARM_WEALTH:.0f} after {counts}"
    odds = futility(ledger.outcomes)
    if odds >= FUTILITY_ODDS:
        return f"the candidate will not win: odds against it {odds:.0f} ≥ {FUTILITY_ODDS:.0f} after {counts}"
    if ledger.asked >= settings.max_labels and None not in ledger.outcomes:
        return f"all {settings.max_labels} labels are spent without a proof: {counts}"
    return ""


def label_outcome(kind: TaskKind, label: str | None, preference: str | None, pair: Pair) -> float | None:
    """X of one person's answer: 1 the candidate was better, -1 worse, 0 no difference; None: cannot tell.

    A classification label is the truth: each arm's answer is right or wrong by it. A preference names a side.
    """
    if label is not None:
        if kind is TaskKind.CLASSIFICATION:
            truth = normal(label)
            return float((normal(pair.candidate or "") == truth) - (normal(pair.production) == truth))
        return None  # A rewritten text does not say which arm was nearer to it.
    if preference == "cannot_tell":
        return None
    if preference in ("a", "b"):
        return 1.0 if (preference == "a") == pair.candidate_first else -1.0
    return 0.0


@dataclass(frozen=True)
class Pair:
    """Both arms' answers; `candidate_first`: the candidate's is shown as side a."""

    production: str
    candidate: str | None
    candidate_first: bool

    @property
    def sides(self) -> tuple[str, str]:
        """The answers as a person sees them."""
        sides = (self.candidate or "", self.production)
        return sides if self.candidate_first else (sides[1], sides[0])


def ticket_outcome(outcomes: Sequence[float | None]) -> float | None:
    """A ticket's X from all its labels: their mean; a tie once enough people could not tell; else still pending."""
    known = [outcome for outcome in outcomes if outcome is not None]
    if known:
        return sum(known) / len(known)
    return 0.0 if len(outcomes) >= CANNOT_TELL_LIMIT else None


def normal(answer: str) -> str:
    """Answers that differ only in case and white space are the same."""
    return " ".join(answer.casefold().split())
