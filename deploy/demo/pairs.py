"""The pairs of a rollout and the wealth over time, as the deployer counts them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class PairCounts:
    """The pairs of a rollout. `ties`: they agree, or neither is better. `pending`: nobody has judged them yet."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    pending: int = 0
    labels: int = 0
    wealth: float = 1.0

    @property
    def pairs(self) -> int:
        return self.wins + self.losses + self.ties + self.pending


class PairLedger:
    """What the deployer said of the candidate so far."""

    def __init__(self) -> None:
        self._counts = PairCounts()
        self.history: list[PairCounts] = []
        """The counts whenever there were more labels."""

    def add(self, evidence: Mapping[str, Any]) -> None:
        """Take the evidence of the rollout as it is now."""
        counts = PairCounts(**{field.name: evidence[field.name] for field in fields(PairCounts)})
        if counts.labels != self._counts.labels:
            self.history.append(counts)
        self._counts = counts

    def counts(self) -> PairCounts:
        """Return the counts so far."""
        return self._counts
