"""The questions of an evaluation, when an answer is right, and the statistics that the gates read. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.adapters import AdapterTrained
from schemas.base import Interval
from schemas.conversation import JsonObject, Message, Messages, Role
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskKind, TaskSpec
from shared.identity import content_hash

_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Question:
    """A prompt and its right answer as one text, tool calls included."""

    messages: Messages
    answer: str
    tools: tuple[JsonObject, ...] = ()

    @property
    def text(self) -> str:
        return self.messages[-1].text


@dataclass(frozen=True)
class GradedAnswers:
    """One arm's answers to a set of questions, in their order, and whether each is right. None: the request failed."""

    answers: tuple[str | None, ...]
    right: tuple[bool, ...]

    @property
    def failed(self) -> int:
        return sum(answer is None for answer in self.answers)


@dataclass(frozen=True)
class Comparison:
    """The answers of candidate and production to the same questions."""

    questions: Sequence[Question]
    candidate: GradedAnswers
    production: GradedAnswers

    @property
    def lost(self) -> list[int]:
        """The positions of questions that production answers right and the candidate does not."""
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.production.right, strict=True)) if p > c]

    @property
    def gained(self) -> list[int]:
        return [i for i, (c, p) in enumerate(zip(self.candidate.right, self.production.right, strict=True)) if c > p]


def job_name(event: AdapterTrained, production: str | None) -> str:
    """Return the job's name, one for each candidate, opponent and cycle."""
    cycle = content_hash(event.cycle_id or "", length=6)
    return f"{event.adapter}-vs-{production or 'base'}-{cycle}"


def production_of(event: AdapterTrained, rollout: RolloutChanged | None) -> str | None:
    """Return the adapter that serves everyone now. None: the base model, also if the task uses another base by now."""
    if rollout is None or rollout.spec.base_model != event.base_model:
        return None
    return rollout.primary_adapter


def evaluation_questions(rows: Sequence[Example]) -> list[Question]:
    return [Question(row.prompt, row.answer, row.tools) for row in rows]


def golden_questions(spec: TaskSpec) -> list[Question]:
    """Return the task's golden examples as the gateway would ask them."""
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    return [Question((system, Message(role=Role.USER, content=g.text)), g.label) for g in spec.golden]


def normalised(text: str) -> str:
    """Return the text without case, punctuation and extra space, which exact match on generated text ignores."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def is_right(answer: str | None, expected: str, kind: TaskKind) -> bool:
    """Return True if the answer is right. Labels are compared as they are, generated text after normalisation."""
    if answer is None:
        return False
    if kind is TaskKind.CLASSIFICATION:
        return answer.strip() == expected.strip()
    return normalised(answer) == normalised(expected)


def token_f1(answer: str | None, expected: str) -> float:
    """Return SQuAD's F1 over the words of both: weak evidence for generated text, but there is no judge model yet."""
    given, wanted = Counter(normalised(answer or "").split()), Counter(normalised(expected).split())
    common = sum((given & wanted).values())
    return 2 * common / (sum(given.values()) + sum(wanted.values())) if common else 0.0


def wilson(successes: int, n: int) -> Interval:
    """Return a proportion and its 95 % Wilson interval (Wilson 1927); [0, 1] for n = 0."""
    if n == 0:
        return Interval(value=0.0, low=0.0, high=1.0, n=0)
    share, z2 = successes / n, _Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return Interval(value=share, low=max(0.0, min(share, centre - half)), high=min(1.0, max(share, centre + half)), n=n)


def mcnemar_worse(lost: int, gained: int) -> float:
    """Return the p-value of "the candidate is not worse" (exact McNemar, one-sided): P(losses >= lost) at even odds."""
    n = lost + gained
    tail: int = sum(math.comb(n, k) for k in range(lost, n + 1))
    return tail / (1 << n)
