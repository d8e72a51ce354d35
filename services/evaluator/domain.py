"""The gates between a trained adapter and live traffic, and the measures they read. Pure."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from schemas.adapters import AdapterTrained
from schemas.base import Gate, Interval, Message, Messages, Role, Verdict
from schemas.datasets import Example
from schemas.rollouts import RolloutChanged
from schemas.tasks import TaskKind, TaskSpec
from shared.identity import content_hash

SIGNIFICANCE = 0.05
_Z95 = 1.959963984540054
_SHOWN = 3
"""Lost answers that a gate's detail quotes."""


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


def judge(spec: TaskSpec, evaluation: Comparison, golden: Comparison) -> tuple[Gate, ...]:
    """Every gate, passed or not, with what was measured. `golden` may be empty."""
    gates = [
        _min_accuracy(spec, evaluation),
        _min_gain(spec, evaluation),
        _not_worse(evaluation),
        _golden(spec, regression_set(evaluation, golden)),
        _failed_share(spec, evaluation, golden),
    ]
    if spec.kind is TaskKind.CLASSIFICATION:
        gates.insert(0, _better_than_chance(evaluation))
    return tuple(gates)


def verdict(gates: Sequence[Gate]) -> Verdict:
    """Passed only if every gate is."""
    return "passed" if all(gate.passed for gate in gates) else "failed"


def regression_set(evaluation: Comparison, golden: Comparison) -> Comparison:
    """The golden examples, or, for a task that has none, the evaluation set. Never both: gains on the many rows of
    one would hide losses on the few of the other."""
    return golden if golden.questions else evaluation


def _accuracy(arm: Answered) -> Interval:
    return wilson(sum(arm.right), len(arm.right))


def _better_than_chance(evaluation: Comparison) -> Gate:
    """A model that has learnt nothing does about as well as always naming the most frequent label."""
    label, count = Counter(question.answer for question in evaluation.questions).most_common(1)[0]
    share = count / len(evaluation.questions)
    accuracy = _accuracy(evaluation.candidate)
    return Gate(
        name="better_than_chance",
        passed=accuracy.low > share,
        measured=accuracy.low,
        required=f"> {share:.3f}, the share of the most frequent label",
        detail=f"The candidate is right on {_count(evaluation.candidate)}, {_range(accuracy)}; always answering "
        f"{label!r} would be right on {count}. The lower end of the interval must be above that.",
    )


def _min_accuracy(spec: TaskSpec, evaluation: Comparison) -> Gate:
    accuracy = _accuracy(evaluation.candidate)
    bar = spec.evaluation.min_accuracy
    return Gate(
        name="min_accuracy",
        passed=accuracy.value >= bar,
        measured=accuracy.value,
        required=f">= {bar:g}",
        detail=f"Right on {_count(evaluation.candidate)}, {_range(accuracy)}.",
    )


def _min_gain(spec: TaskSpec, evaluation: Comparison) -> Gate:
    candidate, production = _accuracy(evaluation.candidate), _accuracy(evaluation.production)
    gain = (len(evaluation.gained) - len(evaluation.lost)) / len(evaluation.questions)
    return Gate(
        name="min_gain",
        passed=gain >= spec.evaluation.min_gain,
        measured=gain,
        required=f">= {spec.evaluation.min_gain:g} over production",
        detail=f"Candidate {candidate.value:.1%}, production {production.value:.1%} of {candidate.n} rows.",
    )


def _not_worse(evaluation: Comparison) -> Gate:
    lost, gained = len(evaluation.lost), len(evaluation.gained)
    p = mcnemar_worse(lost, gained)
    return Gate(
        name="not_worse",
        passed=p >= SIGNIFICANCE,
        measured=p,
        required=f"p >= {SIGNIFICANCE} (exact McNemar, one-sided)",
        detail=f"Where the two differ, the candidate wins {gained} and loses {lost} rows.{_quote(evaluation)}",
    )


def _golden(spec: TaskSpec, regression: Comparison) -> Gate:
    lost, gained, total = len(regression.lost), len(regression.gained), len(regression.questions)
    share = (lost - gained) / total
    bar = spec.evaluation.max_golden_net_loss
    return Gate(
        name="golden_regression",
        passed=share <= bar,
        measured=share,
        required=f"<= {bar:g} of the golden answers lost, net",
        detail=f"{lost} lost, {gained} gained, of {total}"
        f"{'' if spec.golden else ' (the task has no golden examples: the evaluation set)'}.{_quote(regression)}",
    )


def _failed_share(spec: TaskSpec, evaluation: Comparison, golden: Comparison) -> Gate:
    failed = evaluation.candidate.failed + golden.candidate.failed
    asked = len(evaluation.questions) + len(golden.questions)
    bar = spec.evaluation.max_failed_share
    return Gate(
        name="max_failed_share",
        passed=failed / asked <= bar,
        measured=failed / asked,
        required=f"<= {bar:g}",
        detail=f"{failed} of {asked} requests to the candidate erred or timed out; each counts as wrong.",
    )


def _count(arm: Answered) -> str:
    return f"{sum(arm.right)} of {len(arm.right)} rows"


def _range(accuracy: Interval) -> str:
    return f"{accuracy.value:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%})"


def _quote(comparison: Comparison) -> str:
    """A few lost answers in full: what a person wants to see first."""
    lines = [
        f"{comparison.questions[i].text[:120]!r}: {comparison.candidate.answers[i]!r} "
        f"instead of {comparison.questions[i].answer[:120]!r}"
        for i in comparison.lost[:_SHOWN]
    ]
    return f" Lost, for example: {'; '.join(lines)}."[:1_500] if lines else ""
