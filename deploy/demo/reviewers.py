"""People, played: they take questions from the console's API and answer from the data's labels.

They are blind as people are: a question says what was asked and what was answered, not by whom. Each has the same
share of mistakes; a second person asked the same sometimes disagrees with the first on purpose. With shuffled
labels what they teach is nonsense, while their judgement of pairs stays honest: that is the candidate that must
be stopped.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deploy.demo.data.csv_file import Row

REVIEWERS = ("ada", "ben", "chloe")
PAIR = "discordant_pair"
LIMIT = 200
IDLE_SECONDS = 1.0


class Desk(Protocol):
    """What a reviewer needs of the console."""

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]: ...

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool: ...


@dataclass(frozen=True)
class Habits:
    """How people err, as shares of their answers."""

    wrong_share: float = 0.05
    disagree_share: float = 0.25
    """Of the questions put to a second person, those that this one answers otherwise on purpose."""
    seed: int = 20


@dataclass
class Tally:
    """What was asked of people so far."""

    by_purpose: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    disagreed: int = 0

    @property
    def spent(self) -> int:
        return sum(self.by_purpose.values())


def shuffled_truth(rows: Sequence[Row], seed: int) -> dict[str, str]:
    """Text to a label drawn from the others': each row gets another row's label, so nothing can be learned."""
    labels = [row.label for row in rows]
    random.Random(seed).shuffle(labels)  # noqa: S311 - reproducible, not secret
    return {row.text: label for row, label in zip(rows, labels, strict=True)}


class Reviewers:
    """Three people at the console, until told to stop.

    `know` tells them a prediction's row; questions about anything else (held-out ones among them) they leave alone.
    """

    def __init__(
        self,
        desk: Desk,
        labels: Sequence[str],
        habits: Habits | None = None,
        taught: Mapping[str, str] | None = None,
    ) -> None:
        """`taught`: for corrections, text to the label given instead of the true one (shuffled labels)."""
        self._desk = desk
        self._labels = tuple(labels)
        self._habits = habits or Habits()
        self._taught = taught or {}
        self._rows: dict[str, Row] = {}
        self._answers: dict[str, str] = {}
        self._done: set[tuple[str, str]] = set()
        self.corrected: set[str] = set()
        """Predictions that someone has corrected (pairs not counted)."""
        self.only_pairs = False
        """Once a cycle runs people judge pairs only: later corrections would belong to the next one."""
        self.tally = Tally()

    def know(self, prediction_id: str, row: Row) -> None:
        """From now on questions about this prediction can be answered."""
        self._rows[prediction_id] = row

    async def work(self) -> None:
        """Answer whatever is asked, forever; cancel to stop."""
        await asyncio.gather(*(self._sit_down(reviewer) for reviewer in REVIEWERS))

    async def _sit_down(self, reviewer: str) -> None:
        while True:
            answered = await self.round(reviewer)
            await asyncio.sleep(0.05 if answered else IDLE_SECONDS)

    async def round(self, reviewer: str) -> int:
        """One look at the queue by one person; returns how many questions were answered."""
        answered = 0
        items = await self._desk.queue(reviewer, LIMIT, PAIR)
        if not self.only_pairs:
            items += await self._desk.queue(reviewer, LIMIT)
        for item in items:
            answered += await self._answer(reviewer, item)
        return answered

    async def _answer(self, reviewer: str, item: dict[str, Any]) -> bool:
        request, row = item["request_id"], self._rows.get(item["prediction_id"])
        if row is None or (request, reviewer) in self._done:
            return False
        first = self._answers.get(request)
        if first is not None and int(item.get("overlap") or 1) < 2:
            return False  # A colleague was faster; the console has only not said so yet.
        self._done.add((request, reviewer))
        chance = random.Random(f"{self._habits.seed}|{row.text}|{item['purpose']}|{reviewer}")  # noqa: S311
        true = row.label if item["purpose"] == PAIR else self._taught.get(row.text, row.label)
        label = self._said(chance, true, first)
        self._answers.setdefault(request, label)
        if not await self._desk.correct(request, reviewer, {"label": label, "seconds": round(chance.uniform(2, 9), 1)}):
            return False
        self._count(item, true, label, first)
        return True

    def _said(self, chance: random.Random, true: str, first: str | None) -> str:
        """The label that this person gives."""
        if first is not None and chance.random() < self._habits.disagree_share:
            return chance.choice([label for label in self._labels if label != first])
        if chance.random() < self._habits.wrong_share:
            return chance.choice([label for label in self._labels if label != true])
        return true

    def _count(self, item: dict[str, Any], true: str, label: str, first: str | None) -> None:
        self.tally.by_purpose[item["purpose"]] += 1
        self.tally.wrong += label != true
        self.tally.disagreed += first is not None and label != first
        if item["purpose"] != PAIR:
            self.corrected.add(item["prediction_id"])
