"""The questions of an evaluation, graded answers, and the statistics that the gates read. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.adapters import AdapterTrained, EvaluationRequested
from schemas.base import Interval
from schemas.conversation import JsonObject, Message, Messages, Role
from schemas.datasets import Example
from schemas.golden import GoldenRow
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskSpec
from shared.grading.grade import Grade
from shared.identity import content_hash

Candidate = AdapterTrained | EvaluationRequested
"""What an evaluation is about: an adapter that was just trained, or one whose turn has come."""
_INSTRUCTIONS = (Role.SYSTEM, "developer")
_PROBE_TEXTS = (
    "I have a question about {}.",
    "Please help me with {}.",
    "{}",
    "Why is that: {}?",
    "What can you tell me about {}?",
)
_Z95 = 1.959963984540054


@dataclass(frozen=True)
class Question:
    """A prompt and its right answer as one text, tool calls included. `must_pass`: no candidate may get it wrong.

    `row_id`: the golden row's.
    """

    messages: Messages
    answer: str
    tools: tuple[JsonObject, ...] = ()
    must_pass: bool = False
    row_id: str = ""

    @property
    def text(self) -> str:
        return self.messages[-1].text


@dataclass(frozen=True)
class GradedAnswers:
    """One arm's answers to a set of questions, in their order, and each answer's grade. None: the request failed."""

    answers: tuple[str | None, ...]
    grades: tuple[Grade, ...]

    @property
    def right(self) -> tuple[bool, ...]:
        return tuple(grade.right for grade in self.grades)

    @property
    def scores(self) -> tuple[float, ...]:
        """How good each answer is, in [0, 1]; of labels 1 or 0, of text and JSON between where part of it is right."""
        return tuple(grade.score for grade in self.grades)

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


def job_name(event: Candidate, production: str | None) -> str:
    """Return the job's name, one for each candidate, opponent and cycle, and for each request to evaluate again."""
    again = str(event.event_id) if isinstance(event, EvaluationRequested) else ""
    return f"{event.adapter}-vs-{production or 'base'}-{content_hash(event.cycle_id or '', again, length=6)}"


def production_of(event: AdapterTrained, rollout: RolloutChanged | None) -> str | None:
    """Return the adapter that serves everyone now. None: the base model, also if the task uses another base by now."""
    if rollout is None or rollout.spec.base_model != event.base_model:
        return None
    return rollout.primary_adapter


def evaluation_questions(rows: Sequence[Example]) -> list[Question]:
    return [Question(row.prompt, row.answer, row.tools) for row in rows]


def golden_questions(rows: Sequence[GoldenRow], spec: TaskSpec) -> list[Question]:
    """Return golden rows as the gateway would ask them: with the task's prompt, where they have none of their own."""
    system = Message(role=Role.SYSTEM, content=spec.system_prompt)
    questions = []
    for row in rows:
        has_prompt = not spec.system_prompt or any(message.role in _INSTRUCTIONS for message in row.prompt)
        messages = row.prompt if has_prompt else (system, *row.prompt)
        questions.append(Question(messages, row.answer, row.tools, row.must_pass, row.row_id))
    return questions


def probe_prompts(spec: TaskSpec) -> list[Messages]:
    """Return five prompts of the task's own words and of nobody's text, as the gateway would send them.

    They begin as the task's traffic does, so that a stale prefix cache shows in them.
    """
    system = (Message(role=Role.SYSTEM, content=spec.system_prompt),) if spec.system_prompt else ()
    subjects = spec.labels or ("this",)
    texts = [text.format(subjects[i % len(subjects)]) for i, text in enumerate(_PROBE_TEXTS)]
    return [(*system, Message(role=Role.USER, content=text)) for text in texts]


def failed_must_pass(golden: Sequence[Question], candidate: GradedAnswers) -> list[int]:
    """Return the positions of the must-pass rows that the candidate gets wrong, or did not answer."""
    return [i for i, question in enumerate(golden) if question.must_pass and not candidate.right[i]]


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
