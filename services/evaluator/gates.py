"""The gates between a trained adapter and live traffic: each says what it measured and what it wanted. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.base import Gate, Interval, Verdict
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.domain import Answered, Comparison, mcnemar_worse, wilson

SIGNIFICANCE = 0.05
_SHOWN = 3
"""Lost answers that a gate's detail quotes."""


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
