"""What is asked, what is right, and the measures that the gates read. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.adapters import AdapterTrained
from schemas.base import Interval, Message, Messages, Role
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskKind, TaskSpec
from shared.identity import content_hash

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Question:
    """One prompt and the answer that is right."""

    messages: Messages
    answer: str

    @property
    def text(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class Answered:
    """One arm on one set of questions, in their order. `answers`: None where the request failed."""

    answers: tuple[str | None, ...]
    right: tuple[bool, ...]

    @property
    def failed(self) -> int:
        return sum(answer is None for answer in self.answers)


@dataclass(frozen=True)
class Comparison:
    """Candidate and production on the same questions."""

    questions: Sequence[Question]
    candidate: Answered
    production: Answered

    @property
    def lost(self) -> list[int]:
        """Questions that production got right and the candidate does not."""
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.production.right, strict=True)) if p > c]

    @property
    def gained(self) -> list[int]:
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.production.right, strict=True)) if c > p]


def job_name(event: AdapterTrained, production: str | None) -> str:
    """One evaluation per candidate, opponent and cycle."""
    cycle = content_hash(event.cycle_id or "", length=6)
    return f"{event.adapter}-vs-{production or 'base'}-{cycle}"


def production_of(event: AdapterTrained, rollout: RolloutChanged | None) -> str | None:
    """Who serves everyone now; None: the base model, also where the task has moved to another base since."""
    if rollout is None or rollout.spec.base_model != event.base_model:
        return None
    return rollout.primary_adapter


def evaluation_questions(rows: Sequence[Example]) -> list[Question]:
    """The frozen evaluation set."""
    return [Question(row.prompt, row.answer) for row in rows]


def golden_questions(spec: TaskSpec) -> list[Question]:
    """The task's golden examples, asked as the gateway would."""
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    return [Question((system, Message(role=Role.USER, content=g.text)), g.label) for g in spec.golden]


def normalised(text: str) -> str:
    """Case, punctuation and space aside: what exact match compares for a generation task."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def is_right(answer: str | None, expected: str, kind: TaskKind) -> bool:
    """A failed request is wrong. Labels are compared as they are, generated text after normalisation."""
    if answer is None:
        return False
    if kind is TaskKind.CLASSIFICATION:
        return answer.strip() == expected.strip()
    return normalised(answer) == normalised(expected)


def token_f1(answer: str | None, expected: str) -> float:
    """SQuAD's F1 over the words of both: thin evidence for generated text, until a judge or task metrics are there."""
    got, wanted = Counter(normalised(answer or "").split()), Counter(normalised(expected).split())
    common = sum((got & wanted).values())
    return 2 * common / (sum(got.values()) + sum(wanted.values())) if common else 0.0


def wilson(successes: int, n: int) -> Interval:
    """A proportion and its 95 % Wilson interval (Wilson 1927); n = 0 is everything between 0 and 1."""
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)), n=n)


def mcnemar_worse(lost: int, gained: int) -> float:
    """P-value of "the candidate is not worse" (exact McNemar, one-sided): P(losses >= lost) at even odds."""
    n = lost + gained
    tail: int = sum(math.comb(n, k) for k in range(lost, n + 1))
    return tail / (1 << n)
