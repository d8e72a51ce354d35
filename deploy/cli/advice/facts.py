"""What is known of a task: measured in its log where it can be, answered by a person where it cannot. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from schemas.approaches import ApproachTable
from schemas.tasks import TaskKind


class Need(StrEnum):
    """What an answer takes that the question does not hold."""

    SKILL = "skill"
    """Nothing: the answer follows from the question and a habit, such as a label, a form or a tone."""
    KNOWLEDGE = "knowledge"
    """Facts from documents, or facts that change."""
    REASONING = "reasoning"
    """Open-ended reasoning over several steps."""


@dataclass(frozen=True)
class Facts:
    """What was measured. None: it cannot be, from this log.

    `machine_read`: the share of requests whose answer a program reads (labels, a schema, tool calls, JSON).
    `broken`: the share of answers that are not in the form asked for. `tokens_per_word` of what users write: plain
    English has about 1.3. `p95_ms`: of production's answers. `cost_per_month`: of all answers, at today's volume;
    `unpriced`: sentences why that is not known. `examples`: labelled rows of the newest data set.
    """

    kind: TaskKind
    answers: int = 0
    machine_read: float | None = None
    broken: float | None = None
    tokens_per_word: float | None = None
    p95_ms: float | None = None
    cost_per_month: float | None = None
    unpriced: tuple[str, ...] = ()
    currency: str = "USD"
    examples: int | None = None
    approaches: ApproachTable | None = None


@dataclass(frozen=True)
class Answers:
    """What a person said. None: not asked, or not known.

    `budget_ms`: how long an answer may take. `budget_month`: what a month may cost, in the prices' currency.
    What is said goes before what was measured.
    """

    need: Need | None = None
    strict_format: bool | None = None
    domain_words: bool | None = None
    budget_ms: float | None = None
    budget_month: float | None = None
    cost_must_fall: bool | None = None
    examples: int | None = None
