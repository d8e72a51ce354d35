"""The offline gates between a trained adapter and live traffic. Each reports what it measured and required. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from schemas.base import Gate, Interval, Verdict
from schemas.tasks import TaskKind, TaskSpec
from services.evaluator.domain import Comparison, GradedAnswers, mcnemar_worse, wilson

SIGNIFICANCE = 0.05
_MAX_QUOTES = 3
"""Maximum number of lost answers that a gate's detail quotes."""
_MAX_NAMED = 20
"""Maximum number of golden rows that a gate's detail names."""


def check_gates(
    spec: TaskSpec, evaluation: Comparison, golden: Comparison, wrong_twice: Sequence[int] = ()
) -> tuple[Gate, ...]:
    """Return every gate's result, passed or not. `golden` may be empty.

    `wrong_twice`: positions in `golden` of must-pass rows that the candidate got wrong, and wrong again when repeated.
    """
    gates = [
        _min_accuracy(spec, evaluation),
        _min_gain(spec, evaluation),
        _not_worse(evaluation),
        _golden(spec, regression_set(evaluation, golden)),
        _failed_share(spec, evaluation, golden),
    ]
    if spec.kind is TaskKind.CLASSIFICATION:
        gates.insert(0, _better_than_chance(evaluation))
    if any(question.must_pass for question in golden.questions):
        gates.append(_must_pass(spec, golden, wrong_twice))
    return tuple(gates)


def verdict(gates: Sequence[Gate]) -> Verdict:
    return "passed" if all(gate.passed for gate in gates) else "failed"


def regression_set(evaluation: Comparison, golden: Comparison) -> Comparison:
    """Return the golden examples, or the evaluation set of a task that has none.

    Never both together: gains on the many rows of one would hide losses on the few of the other.
    """
    return golden if golden.questions else evaluation


def _accuracy(arm: GradedAnswers) -> Interval:
    return wilson(sum(arm.right), len(arm.right))


def _better_than_chance(evaluation: Comparison) -> Gate:
    """A model that learned nothing is about as often right as one that always names the most frequent label."""
    label, count = Counter(question.answer for question in evaluation.questions).most_common(1)[0]
    share = count / len(evaluation.questions)
    accuracy = _accuracy(evaluation.candidate)
    return Gate(
        name="better_than_chance",
        passed=accuracy.low > share,
        measured=accuracy.low,
        required=f"> {share:.3f}, the share of the most frequent label",
        detail=f"The candidate is right on {_right_count(evaluation.candidate)}, {_with_interval(accuracy)}; always "
        f"answering {label!r} would be right on {count}. The interval's lower end must be above that share.",
    )


def _min_accuracy(spec: TaskSpec, evaluation: Comparison) -> Gate:
    accuracy = _accuracy(evaluation.candidate)
    bar = spec.evaluation.min_accuracy
    return Gate(
        name="min_accuracy",
        passed=accuracy.value >= bar,
        measured=accuracy.value,
        required=f">= {bar:g}",
        detail=f"Right on {_right_count(evaluation.candidate)}, {_with_interval(accuracy)}.",
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
        detail=f"Where the two differ, the candidate wins {gained} and loses {lost} rows.{_quote_lost(evaluation)}",
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
        detail=f"{lost} lost, {gained} gained, of {total} "
        f"{'golden rows' if spec.golden_set else 'evaluation rows (the task has no golden set)'}."
        f"{_quote_lost(regression)}",
    )


def _must_pass(spec: TaskSpec, golden: Comparison, wrong_twice: Sequence[int]) -> Gate:
    """A row that a person marked counts by itself: no gain elsewhere outweighs it, nor that production loses it too.

    The detail names rows and quotes none: a row may be made of what a person asked, who may be forgotten later.
    """
    total = sum(question.must_pass for question in golden.questions)
    named = ", ".join(golden.questions[position].row_id for position in wrong_twice[:_MAX_NAMED])
    more = f" and {len(wrong_twice) - _MAX_NAMED} more" if len(wrong_twice) > _MAX_NAMED else ""
    which = f": {named}{more} (ratchet golden list {spec.name})" if wrong_twice else ""
    return Gate(
        name="must_pass",
        passed=not wrong_twice,
        measured=len(wrong_twice),
        required="0 must-pass rows of the golden set wrong, and wrong again when repeated",
        detail=f"{len(wrong_twice)} of {total} must-pass rows are wrong{which}.",
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
        detail=f"{failed} of {asked} requests to the candidate failed or timed out; each counts as wrong.",
    )


def _right_count(arm: GradedAnswers) -> str:
    return f"{sum(arm.right)} of {len(arm.right)} rows"


def _with_interval(accuracy: Interval) -> str:
    return f"{accuracy.value:.1%} (95 % interval {accuracy.low:.1%} to {accuracy.high:.1%})"


def _quote_lost(comparison: Comparison) -> str:
    """Quote a few lost answers, which people want to see first."""
    lines = [
        f"{comparison.questions[i].text[:120]!r}: {comparison.candidate.answers[i]!r} "
        f"instead of {comparison.questions[i].answer[:120]!r}"
        for i in comparison.lost[:_MAX_QUOTES]
    ]
    return f" Lost, for example: {'; '.join(lines)}."[:1_500] if lines else ""
