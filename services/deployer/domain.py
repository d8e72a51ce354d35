"""The ledger of a candidate's pairs and the decision about the candidate. Pure.

    shadow ──W ≥ canary_wealth──▶ canary 5 % ──▶ 25 % ──▶ 50 % ──▶ promoted   each by W ≥ 1/alpha, users served
       ├────── harm · futility · canary guard ────────────────────────────▶ rejected
       └────── labels spent · expired ────────────────────────────────────▶ inconclusive

`statistics/` computes the wealth W, `rollout.py` holds what changes. W is the greatest wealth so far, so that looking
often is safe; but no move to more users is made while the labels as they stand speak against it. That only restricts,
so the test's level holds.

A candidate is moved for being better. Where the task allows it (`rollout.non_inferiority`) and has margin left, one
that would end by futility, or because its labels are spent, is moved for being not worse by more than that margin: by
the same rules, with the wealth against it. Not before, since whoever is better proves not to be worse first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import accumulate
from operator import itemgetter

from schemas.rollouts import Evidence, Stage
from schemas.task_settings import RolloutSettings
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
from services.deployer.statistics.non_inferiority import YEARLY_MARGIN, Allowance, Bets

NOTHING_DIFFERS = 1_000
"""Pairs, all of which agree, after which there is nothing to promote: a candidate with production's weights, say."""


@dataclass(frozen=True)
class Ticket:
    """A discordant pair that bets. `outcome`: -1, 0, 1 or the mean of several labels; None: no label yet.

    `asked` is False where the candidate erred: that is a loss and nobody is asked. `identified`: its user or session is
    known. `opens`: it is its subject's first pair of all. `agreeing`: subjects whose first pair was earlier and agreed.
    `number`: its pair's place among all pairs; a candidate's failure is drawn before its turn.
    """

    outcome: float | None
    asked: bool = True
    identified: bool = True
    opens: bool = True
    agreeing: int = 0
    number: int = 0


@dataclass(frozen=True)
class Ledger:
    """Everything that a decision reads. `tickets` are in the order in which they were drawn.

    `agreeing`: all pairs that agree; `agreeing_subjects`: those that are their subject's first, up to the oldest pair
    that waits to become a ticket. `waiting`: the places of all that wait so. `allowance`: the margin that is left;
    None: only a candidate that is better is moved.
    """

    tickets: Sequence[Ticket] = ()
    agreeing: int = 0
    canary: CanaryCounts = field(default_factory=CanaryCounts)
    agreeing_subjects: int = 0
    allowance: Allowance | None = None
    waiting: Sequence[int] = ()

    @property
    def outcomes(self) -> list[float | None]:
        return [ticket.outcome for ticket in self.tickets]

    @property
    def in_turn(self) -> list[float | None]:
        """The outcomes of all pairs that bet, those that wait for a ticket too, in the order of the pairs.

        It is what harm and futility read, where what has no label counts as won: in the order of the tickets failures,
        which are tickets at once, would come before pairs that nobody could judge yet.
        """
        waiting = [(number, None) for number in self.waiting]
        turns = [*((ticket.number, ticket.outcome) for ticket in self.tickets), *waiting]
        return [outcome for _, outcome in sorted(turns, key=itemgetter(0))]

    @property
    def asked(self) -> int:
        return sum(ticket.asked for ticket in self.tickets)

    @property
    def bets(self) -> Bets:
        """What bets against a margin. A ticket that was drawn before its turn lets no later pair that agrees count."""
        agreeing = [*(ticket.agreeing for ticket in self.tickets), self.agreeing_subjects]
        counted = list(accumulate(reversed(agreeing), min))[::-1]
        return Bets(self.outcomes, [ticket.opens for ticket in self.tickets], counted)

    @property
    def usable(self) -> Allowance | None:
        """The margin by which it may be worse; None: too little is left, or nothing differs that could be promoted."""
        return self.allowance if self.allowance is not None and self.allowance.is_enough and self.tickets else None

    @property
    def non_inferiority_wealth(self) -> float:
        """The wealth against being worse by all the margin that is left; 1 where none is."""
        return self.bets.wealth(self.usable) if self.usable else 1.0

    def evidence(self, alpha: float, margin_debited: float = 0.0) -> Evidence:
        """Return what every change carries: the counts, how much better the candidate is, and how far from a proof.

        `margin_debited`: what its promotion takes from the margin that is left.
        """
        counted = self.counted(alpha)
        gain_low, gain_high = interval(self.outcomes, self.agreeing)
        expected = labels_expected(counted.wins, counted.ties - self.agreeing, counted.losses, alpha)
        return counted.model_copy(
            update={
                "gain_low": gain_low, "gain_high": gain_high, "labels_expected": expected,
                "margin_debited": margin_debited,
                "margin_left": None if self.allowance is None else round(self.allowance.left - margin_debited, 6),
            }
        )  # fmt: skip

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
            non_inferiority_wealth=self.non_inferiority_wealth,
            margin_left=None if self.allowance is None else self.allowance.left,
            canary_requests=self.canary.requests,
            canary_errors=self.canary.errors,
            canary_users=self.canary.users,
            warning=confidence_shift(self.canary),
        )


@dataclass(frozen=True)
class Decision:
    """The candidate's next stage, for a canary its share of users in percent, and the reason that an operator reads.

    `margin`: by which a promoted candidate may be worse; 0: it was proven better.
    """

    stage: Stage
    reason: str
    percent: int = 0
    margin: float = 0.0


@dataclass(frozen=True)
class Claim:
    """What a candidate may be moved for: that it is better, or not worse by more than a margin.

    `wealth`: of its test; `now`: of the labels as they stand; `bar`: 1/alpha, at which it is proven; `margin`: the
    least that is proven; `proven`, `likely`: the beginning of the reason, once it is proven and before.
    """

    wealth: float
    now: float
    bar: float
    margin: float = 0.0
    proven: str = ""
    likely: str = ""

    @property
    def is_proven(self) -> bool:
        return self.wealth >= self.bar


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
    counts = _counts(evidence)
    if stage is Stage.CANARY and (reason := canary_failure(ledger.canary, settings)):
        return Decision(Stage.REJECTED, reason)
    if reason := _harm(ledger, counts):
        return Decision(Stage.REJECTED, reason)
    claim = _better(ledger, evidence, alpha)
    if not claim.is_proven and (end := _end(ledger, settings, counts)) is not None:
        not_worse = _not_worse(ledger, evidence, alpha)
        if not_worse is None:
            return end
        if not not_worse.is_proven and (spent := _spent(ledger, settings, counts)) is not None:
            return spent
        claim = not_worse
    if not held and (move := _move(stage, ledger, claim, settings, counts)) is not None:
        return move
    if age > timedelta(days=settings.max_days):
        missing = _missing(claim, settings, ledger.canary.percent, held=held)
        reason = f"{settings.max_days} days in {stage.value} without {missing}, after {counts}"
        return Decision(Stage.INCONCLUSIVE, reason)
    return None


def decide_waiting(
    stage: Stage, ledger: Ledger, alpha: float, settings: RolloutSettings, age: timedelta, waits_for: str = ""
) -> Decision | None:
    """Return the end of a candidate whose next move is decided and not made: by harm, or because it waits too long.

    `stage`, `age`: of the stage that it is still in. `waits_for`: what is away; "": the move was not tried yet, and is
    made if it can be, however late.
    """
    counts = _counts(ledger.counted(alpha))
    if reason := _harm(ledger, counts):
        return Decision(Stage.REJECTED, reason)
    if not waits_for or age <= timedelta(days=settings.max_days):
        return None
    reason = f"{settings.max_days} days in {stage.value}, and its next move still waits: {waits_for}, after {counts}"
    return Decision(Stage.INCONCLUSIVE, reason)


def holds_back(stage: Stage, ledger: Ledger, alpha: float, settings: RolloutSettings) -> str:
    """Return why the labels by now do not allow the move to more users that was decided in this stage, "" if they do.

    Labels that came, or were changed, while it waited count like those before.
    """
    evidence = ledger.counted(alpha)
    counts, claim = _counts(evidence), _better(ledger, evidence, alpha)
    if not claim.is_proven and _end(ledger, settings, counts) is not None:
        claim = _not_worse(ledger, evidence, alpha) or claim
    if _is_earned(stage, ledger, claim, settings):
        return ""
    return f"its next move is not made: the labels as they stand are worth {claim.now:.1f} after {counts}"


def _better(ledger: Ledger, evidence: Evidence, alpha: float) -> Claim:
    """Return the claim that the candidate is better."""
    return Claim(evidence.wealth, wealth_now(_labelled(ledger)), 1 / alpha)


def _counts(evidence: Evidence) -> str:
    return (
        f"{_counted(evidence.wins, 'win')}, {_counted(evidence.losses, 'loss', 'losses')}, "
        f"{_counted(evidence.ties, 'tie')}, {evidence.pending} pending"
        + (f" ({evidence.unidentified} of unknown authors, who may be few)" if evidence.unidentified else "")
    )


def _end(ledger: Ledger, settings: RolloutSettings, counts: str) -> Decision | None:
    """Return the end of a candidate that is not proven better and will hardly be, None while it may be."""
    odds = futility(ledger.in_turn)
    if odds >= FUTILITY_ODDS:
        reason = f"the candidate is unlikely to win: odds against it {odds:.0f} ≥ {FUTILITY_ODDS:.0f} after {counts}"
        return Decision(Stage.REJECTED, f"{reason}{_no_margin(ledger)}")
    if ledger.agreeing >= NOTHING_DIFFERS and not ledger.tickets and not ledger.waiting:
        reason = f"nothing to promote: its answers are production's in all {ledger.agreeing} pairs"
        return Decision(Stage.REJECTED, reason)
    return _spent(ledger, settings, counts)


def _spent(ledger: Ledger, settings: RolloutSettings, counts: str) -> Decision | None:
    if ledger.asked < settings.max_labels or None in ledger.outcomes:
        return None
    what = "proven better"
    if ledger.usable:
        what += f", nor not to be worse by more than {_points(ledger.usable.left)} points"
    reason = f"all {settings.max_labels} labels are spent and the candidate is not {what}: {counts}"
    return Decision(Stage.INCONCLUSIVE, f"{reason}{_no_margin(ledger)}")


def _not_worse(ledger: Ledger, evidence: Evidence, alpha: float) -> Claim | None:
    """Return the claim that the candidate is not worse by more than is left of the year's margin; None: it has none."""
    if (allowance := ledger.usable) is None:
        return None
    bets, bar = ledger.bets, 1 / alpha
    margin = bets.least_margin(allowance, alpha) if evidence.non_inferiority_wealth >= bar else allowance.left
    what = f"not worse by more than {_points(margin)} points"
    subjects = f"by the first pairs of {_counted(bets.subjects, 'subject')}: "
    now = bets.wealth_now(allowance)
    return Claim(evidence.non_inferiority_wealth, now, bar, margin, f"{what} {subjects}", f"perhaps {what}, {subjects}")


def _no_margin(ledger: Ledger) -> str:
    """Say why one that is merely not worse is not promoted, where the task would allow it but for the margin."""
    if ledger.allowance is None or ledger.allowance.is_enough:
        return ""
    return (
        f"; and not promoted as not worse either: of the {_points(YEARLY_MARGIN)} points that such promotions may give "
        f"away in a year, and since the last one that was proven better, {_points(ledger.allowance.left)} are left"
    )


def _move(stage: Stage, ledger: Ledger, claim: Claim, settings: RolloutSettings, counts: str) -> Decision | None:
    """Return the move to more users that the candidate has earned, if any."""
    steps, canary = settings.canary_steps, ledger.canary
    if not _is_earned(stage, ledger, claim, settings):
        return None
    if stage is Stage.SHADOW:
        reason, first = _reached(claim.wealth, settings.canary_wealth, "the canary threshold", counts), steps[0]
        begin = claim.proven if claim.is_proven else claim.likely
        return Decision(Stage.CANARY, f"{begin}{reason}: {first} % of users", first)
    if canary.users >= settings.min_canary_users:
        following = next((step for step in steps if step > canary.percent), None)
        reason = (
            f"{claim.proven}{_reached(claim.wealth, claim.bar, '1/α', counts)}; the canary answered {canary.requests} "
            f"requests with {canary.errors} errors, {_counted(canary.users, 'user')} or more at {canary.percent} %: "
        )
        if following is None:
            return Decision(Stage.PROMOTED, f"{reason}everyone", margin=claim.margin)
        return Decision(Stage.CANARY, f"{reason}{following} % of users", following)
    return None


def _is_earned(stage: Stage, ledger: Ledger, claim: Claim, settings: RolloutSettings) -> bool:
    """Return True if the labels allow more users than in this stage, and do not speak against it as they stand."""
    if claim.now < min(settings.canary_wealth, claim.bar) or _is_harmful_now(ledger):
        return False
    return claim.is_proven or (stage is Stage.SHADOW and claim.wealth >= settings.canary_wealth)


def _missing(claim: Claim, settings: RolloutSettings, percent: int, *, held: bool) -> str:
    if held:
        return "a person's word that it may go on"
    if not claim.is_proven:
        return "the proof"
    return f"{settings.min_canary_users} users whom the canary of {percent} % has served"


def _labelled(ledger: Ledger) -> list[float]:
    return [outcome for outcome in ledger.outcomes if outcome is not None]


def _is_harmful_now(ledger: Ledger) -> bool:
    """Return True if the labels as they stand speak against the candidate."""
    return wealth_now([-outcome for outcome in _labelled(ledger)]) >= HARM_WEALTH


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


def _points(margin: float) -> str:
    return f"{100 * margin:.3g}"


def _counted(count: int, noun: str, plural: str = "") -> str:
    return f"{count} {noun if count == 1 else plural or noun + 's'}"


def _harm(ledger: Ledger, counts: str) -> str:
    worse = max_wealth([None if x is None else -x for x in ledger.in_turn])
    if worse < HARM_WEALTH:
        return ""
    return f"the candidate is worse: wealth against it {worse:.0f} ≥ {HARM_WEALTH:.0f} after {counts}"
