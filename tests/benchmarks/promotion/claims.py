"""What becomes of candidates where being not worse promotes, too. By Monte Carlo, with `decide` itself."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import numpy as np

from schemas.rollouts import Stage
from services.deployer.domain import Decision, Ledger, Ticket, decide
from services.deployer.statistics.canary import CanaryCounts
from services.deployer.statistics.non_inferiority import YEARLY_MARGIN, Allowance
from tests.benchmarks.promotion.walk import LEVEL, SETTINGS, Truth

_LAST_STEP = CanaryCounts(percent=SETTINGS.canary_steps[-1], users=SETTINGS.min_canary_users)


@dataclass(frozen=True)
class Ended:
    """How rollouts ended, as shares, with the labels that each took and the pairs of those proven not to be worse."""

    better: float
    not_worse: float
    labels: float
    pairs: float


def both_claims(truth: Truth, annotator_error: float, runs: int = 300, seed: int = 20) -> Ended:
    """Play rollouts whose pairs are each of another subject, with labels at once, in the canary's last step."""
    random = np.random.default_rng(seed)
    played = [_played(truth, annotator_error, random) for _ in range(runs)]
    not_worse = [(decision, ledger) for decision, ledger in played if decision.margin]
    promoted = sum(decision.stage is Stage.PROMOTED for decision, _ in played)
    return Ended(
        (promoted - len(not_worse)) / runs,
        len(not_worse) / runs,
        fmean(len(ledger.tickets) for _, ledger in played),
        float(np.median([ledger.bets.subjects for _, ledger in not_worse] or [np.inf])),
    )


def _played(truth: Truth, error: float, random: np.random.Generator) -> tuple[Decision, Ledger]:
    tickets: list[Ticket] = []
    agreeing, allowance = 0, Allowance(YEARLY_MARGIN, error)
    while True:
        agreeing += int(random.geometric(truth.discordance)) - 1
        is_win = (random.random() < truth.share) is not (random.random() < error)
        tickets.append(Ticket(1.0 if is_win else -1.0, agreeing=agreeing))
        ledger = Ledger(list(tickets), agreeing, _LAST_STEP, agreeing, allowance)
        if (decision := decide(Stage.CANARY, ledger, LEVEL, SETTINGS)) is not None:
            return decision, ledger
