"""Simulated people, who take questions from the console's API and answer them from the data's labels.

They are blind as people are: a question shows what was asked and answered, not by which model. Each makes the same
share of mistakes, and a second person who is asked the same sometimes disagrees on purpose. Of two objects they choose
the one with more right in it. Where a fault is shown, they correct by other labels than the data's, while they still
judge pairs honestly.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deploy.demo.data.rows import DataRow
from deploy.demo.settings import Fault, PlannedMistakes
from schemas.conversation import Answer
from schemas.tasks import TaskSpec
from shared.answers import answer_form

REVIEWERS = ("ada", "ben", "chloe")
PAIR = "discordant_pair"
QUEUE_LIMIT = 500
IDLE_SECONDS = 1.0


class ReviewQueueClient(Protocol):
    """What a reviewer needs of the console."""

    async def queue(self, reviewer: str, limit: int, purpose: str | None = None) -> list[dict[str, Any]]: ...

    async def correct(self, request_id: str, reviewer: str, answer: dict[str, Any]) -> bool: ...


@dataclass
class ReviewCounts:
    """Answers given so far, and how many of them were wrong or in disagreement on purpose."""

    by_purpose: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    disagreed: int = 0

    @property
    def answers(self) -> int:
        return sum(self.by_purpose.values())


def faulty_labels(fault: Fault | None, rows: Sequence[DataRow], seed: int) -> dict[str, str]:
    """Return text → the label that every reviewer gives instead of the true one; empty where the truth is known."""
    if fault is Fault.SHUFFLED_LABELS:
        return shuffle_labels(rows, seed)
    if fault is Fault.ONE_CLASS:
        return dict.fromkeys((row.text for row in rows), min(row.label for row in rows))
    return {}


def shuffle_labels(rows: Sequence[DataRow], seed: int) -> dict[str, str]:
    """Text → the label of some other row, so that nothing can be learned."""
    labels = [row.label for row in rows]
    random.Random(seed).shuffle(labels)  # noqa: S311 - reproducible, not secret
    return {row.text: label for row, label in zip(rows, labels, strict=True)}


class Reviewers:
    """Three people at the console. They answer only about predictions that `add_prediction` got."""

    def __init__(
        self,
        client: ReviewQueueClient,
        labels: Sequence[str],
        mistakes: PlannedMistakes | None = None,
        faulty: Mapping[str, str] | None = None,
        spec: TaskSpec | None = None,
    ) -> None:
        """`labels`: what a mistake is chosen from. `spec`: of an extraction or of tools, whose pairs are judged by it.

        `faulty`: for corrections, text → the label to give instead of the true one.
        """
        self._client = client
        self._labels = tuple(labels)
        self._mistakes = mistakes or PlannedMistakes()
        self._faulty = faulty or {}
        self._spec = spec
        self._rows: dict[str, DataRow] = {}
        self._first_answers: dict[str, str] = {}
        self._answered: set[tuple[str, str]] = set()
        self.corrected: set[str] = set()
        """Predictions that someone has corrected; pairs do not count."""
        self.only_pairs = False
        """Set once a cycle runs: later corrections would belong to the next one."""
        self.counts = ReviewCounts()

    def add_prediction(self, prediction_id: str, row: DataRow) -> None:
        """From now on answer questions about this prediction."""
        self._rows[prediction_id] = row

    async def work_forever(self) -> None:
        """Answer all questions until cancelled."""
        await asyncio.gather(*(self._work_forever(reviewer) for reviewer in REVIEWERS))

    async def _work_forever(self, reviewer: str) -> None:
        while True:
            answered = await self.answer_queue(reviewer)
            await asyncio.sleep(0.05 if answered else IDLE_SECONDS)

    async def answer_queue(self, reviewer: str) -> int:
        """Let one person read the queue once. Returns the number of questions answered."""
        items = await self._client.queue(reviewer, QUEUE_LIMIT, PAIR)
        if not self.only_pairs:
            items += await self._client.queue(reviewer, QUEUE_LIMIT)
        return sum([await self._answer(reviewer, item) for item in items])

    async def _answer(self, reviewer: str, item: dict[str, Any]) -> bool:
        request, row = item["request_id"], self._rows.get(item["prediction_id"])
        if row is None or (request, reviewer) in self._answered:
            return False
        first = self._first_answers.get(request)
        if first is not None and int(item.get("overlap") or 1) < 2:
            return False  # A colleague was faster; the console has only not read of it yet.
        self._answered.add((request, reviewer))
        rng = random.Random(f"{self._mistakes.seed}|{row.text}|{item['purpose']}|{reviewer}")  # noqa: S311
        if self._spec is not None and item["purpose"] == PAIR:
            return await self._prefer(self._spec, reviewer, item, row.label, rng)
        true = row.label if item["purpose"] == PAIR else self._faulty.get(row.text, row.label)
        label = self._choose_label(rng, true, first)
        self._first_answers.setdefault(request, label)
        answer = {"label": label, "seconds": round(rng.uniform(2, 9), 1)}
        if not await self._client.correct(request, reviewer, answer):
            return False
        self.counts.by_purpose[item["purpose"]] += 1
        self.counts.wrong += label != true
        self.counts.disagreed += first is not None and label != first
        if item["purpose"] != PAIR:
            self.corrected.add(item["prediction_id"])
        return True

    async def _prefer(self, spec: TaskSpec, reviewer: str, item: dict[str, Any], true: str, rng: random.Random) -> bool:
        """Say which of two answers has more right in it; by mistake the other one."""
        a, b = (answer_form(spec).grade(true, Answer.model_validate(answer).plain) for answer in item["answers"])
        best = "both_right" if a.right and b.right else "both_wrong" if a.score == b.score else "ab"[b.score > a.score]
        given = best
        if rng.random() < self._mistakes.wrong_share and best in ("a", "b"):
            given = "ab"[best == "a"]
        answer = {"preference": given, "seconds": round(rng.uniform(4, 12), 1)}
        if not await self._client.correct(item["request_id"], reviewer, answer):
            return False
        self.counts.by_purpose[PAIR] += 1
        self.counts.wrong += given != best
        return True

    def _choose_label(self, rng: random.Random, true: str, first: str | None) -> str:
        """Return the true label, or another one on purpose."""
        if first is not None and rng.random() < self._mistakes.disagree_share:
            return rng.choice([label for label in self._labels if label != first])
        if rng.random() < self._mistakes.wrong_share:
            return rng.choice([label for label in self._labels if label != true])
        return true
