"""Counts pairs and their labels, and the wealth over time. Only for display: the deployer decides. Pure."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from schemas.labels import CorrectionSubmitted, Purpose
from schemas.rollouts import ShadowCompared
from services.deployer.statistics.betting import max_wealth


@dataclass(frozen=True)
class PairCounts:
    """The pairs of a rollout by outcome. `pending`: they differ, and nobody has judged them yet."""

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
    """The pairs that shadow compared in one rollout, and people's labels of those that differ."""

    def __init__(self) -> None:
        self._pairs: dict[str, ShadowCompared] = {}
        self._labels: dict[str, dict[tuple[str, str], CorrectionSubmitted]] = defaultdict(dict)
        self.rollout_id: str | None = None
        self.history: list[PairCounts] = []
        """The counts after each label."""

    def add_pair(self, pair: ShadowCompared) -> None:
        """Count a pair, unless it belongs to another rollout."""
        if self.rollout_id in (None, pair.rollout_id):
            self._pairs.setdefault(pair.prediction_id, pair)

    def add_label(self, label: CorrectionSubmitted) -> None:
        """Count a person's answer to a pair, in the place of their older one."""
        if label.purpose is not Purpose.DISCORDANT_PAIR or label.prediction_id not in self._pairs:
            return
        labels, whose = self._labels[label.prediction_id], (label.request_id, label.reviewer)
        if whose not in labels or labels[whose].occurred_at < label.occurred_at:
            labels[whose] = label
            if label.preference != "cannot_tell":  # Somebody else is asked.
                self.history.append(self.counts())

    def counts(self) -> PairCounts:
        """Return the counts so far. Pending pairs bet as losses, as in the deployer."""
        discordant = [pair for pair in self._pairs.values() if not pair.agree]
        outcomes: list[float | None] = []
        for pair in discordant:
            given = self._labels.get(pair.prediction_id, {}).values()
            scores = [_score(pair, label) for label in given if label.preference != "cannot_tell"]
            outcomes.append(sum(scores) / len(scores) if scores else None)
        return PairCounts(
            pairs=len(self._pairs),
            agree=len(self._pairs) - len(discordant),
            wins=sum(x is not None and x > 0 for x in outcomes),
            losses=sum(x is not None and x < 0 for x in outcomes),
            ties=sum(x == 0 for x in outcomes),
            pending=sum(x is None for x in outcomes),
            wealth=max_wealth(outcomes),
        )


def _score(pair: ShadowCompared, label: CorrectionSubmitted) -> float:
    """Return 1 if the candidate was right and production wrong, or the better of the two, -1 for the reverse."""
    if label.preference is not None:
        side = {"a": 0, "b": 1}.get(label.preference)
        if side is None or pair.candidate_answer is None:
            return 0.0
        return 1.0 if label.answers[side].plain == pair.candidate_answer.plain else -1.0
    candidate = pair.candidate_answer is not None and label.label == pair.candidate_answer.plain
    return float(candidate) - float(label.label == pair.production_answer.plain)
