"""Pairs and their labels to counts and wealth over time. For show: the deployer decides, from its own ledger. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from schemas.labels import CorrectionSubmitted, Purpose
from schemas.rollouts import ShadowCompared
from services.deployer.betting import max_wealth


@dataclass(frozen=True)
class Standing:
    """Where the test stands."""

    pairs: int = 0
    agree: int = 0
    wins: int = 0
    losses: int = 0
    ties: int = 0
    pending: int = 0
    wealth: float = 1.0

    @property
    def labels(self) -> int:
        return self.wins + self.losses + self.ties


class PairLedger:
    """What shadow compared in one rollout, and what people said of the pairs that differ."""

    def __init__(self) -> None:
        self._pairs: dict[str, ShadowCompared] = {}
        self._outcomes: dict[str, list[float]] = defaultdict(list)
        self._counted: set[str] = set()
        self.rollout_id: str | None = None
        self.history: list[Standing] = []
        """The standing after each label."""

    def add_pair(self, pair: ShadowCompared) -> None:
        """Count a pair; one of another rollout than the one looked at is left out."""
        if self.rollout_id in (None, pair.rollout_id):
            self._pairs.setdefault(pair.prediction_id, pair)

    def add_label(self, label: CorrectionSubmitted) -> None:
        """Score a person's answer to a pair: 1 the candidate was right and production wrong, -1 the reverse."""
        pair = self._pairs.get(label.prediction_id)
        if label.purpose is not Purpose.DISCORDANT_PAIR or pair is None or label.correction_id in self._counted:
            return
        self._counted.add(label.correction_id)
        candidate = label.label == pair.candidate_answer
        production = label.label == pair.production_answer
        self._outcomes[label.prediction_id].append(float(candidate) - float(production))
        self.history.append(self.standing())

    def standing(self) -> Standing:
        """Counts so far. Pairs that nobody has judged yet are `pending` and bet as losses, as in the deployer."""
        discordant = [pair for pair in self._pairs.values() if not pair.agree]
        outcomes: list[float | None] = []
        for pair in discordant:
            said = self._outcomes.get(pair.prediction_id)
            outcomes.append(sum(said) / len(said) if said else None)
        return Standing(
            pairs=len(self._pairs),
            agree=len(self._pairs) - len(discordant),
            wins=sum(x is not None and x > 0 for x in outcomes),
            losses=sum(x is not None and x < 0 for x in outcomes),
            ties=sum(x == 0 for x in outcomes),
            pending=sum(x is None for x in outcomes),
            wealth=max_wealth(outcomes),
        )
