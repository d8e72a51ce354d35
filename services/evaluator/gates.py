"""The offline gates between a trained adapter and live traffic. Each reports what it measured and required. Pure.

They stop what is shown or measured to be worse. An equal candidate meets all tests in 19 of 20 cases: they share a
level of 5 %. What the golden set stops, which is no test, comes to that (`golden_gates.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from schemas.base import Gate, Verdict
from schemas.judging import JudgeReport
from schemas.tasks import TaskSpec
from services.evaluator.adversarial.gate import adversarial_not_worse, injections_not_obeyed
from services.evaluator.adversarial.misled import Misled
from services.evaluator.calibration import believed_wrong, chance_mistake_looks_right
from services.evaluator.comparison import ComparedPart, Comparison, uniform_rows
from services.evaluator.domain import ALL_RIGHT, GradedAnswers, PastResult, Repeated
from services.evaluator.golden_gates import golden_regression, must_pass
from services.evaluator.parts.gate import parts_gate, unknown
from services.evaluator.statistics.confidence import MIN_OF_EACH, auroc_difference, tells_apart
from services.evaluator.statistics.intervals import mean_interval
from services.evaluator.statistics.paired import p_worse, rows_to_show
from services.evaluator.statistics.traffic import MIN_UNIFORM

CHANCE = 0.01
"""A candidate that learned nothing passes so often."""
NOT_WORSE = 0.015
PARTS = 0.02
CONFIDENCE = 0.005
JUDGE = 0.005
"""Levels: a candidate that is as good as production is stopped by each of them so often, at most."""
_PERMUTATIONS, _PERMUTED_AT_ONCE = 2_000, 50
_ORDERS_TO_SHOW = 300
"""Orders of the labels from which on right answers to all rows are told from chance: of little more than one over
`CHANCE`, too many of those that are drawn may happen to be the right one."""
_FEW_ROWS, _FEW_RARE = 30, 10
"""Groups of rows, and those of them that have another label than the most frequent one."""
_MAY_BE_BETTER = 0.1
"""A candidate that learned nothing reaches this in one case of ten, and stays unknown."""
_SEED = 20
_MAX_NAMED = 5
"""Maximum number of lost rows that a gate's detail names."""


def check_gates(
    spec: TaskSpec,
    evaluation: Comparison,
    golden: Comparison,
    repeated: Repeated = ALL_RIGHT,
    past: Sequence[PastResult] = (),
    misled: Misled | None = None,
    judge: JudgeReport | None = None,
) -> tuple[Gate, ...]:
    """Return every gate's result, passed or not. `golden` may be empty.

    `repeated`: the must-pass rows of `golden` that the candidate got wrong, and not right when they were repeated.
    `past`: what adapters that were promoted got right of the golden set. `misled`: both arms on the adversarial set.
    """
    gates = [not_worse(spec, evaluation)]
    if parts := evaluation.parts(spec):
        gates.append(parts_not_worse(evaluation, parts))
    if spec.choices and spec.evaluation.better_than_chance:
        gates.insert(0, better_than_chance(evaluation))
    if spec.evaluation.min_accuracy > 0.0:
        gates.append(min_accuracy(spec, evaluation))
    if golden.questions:
        gates.append(golden_regression(spec, golden, past))
    if any(question.must_pass for question in golden.questions):
        gates.append(must_pass(spec, golden, repeated))
    if evaluation.candidate_confidence is not None and evaluation.production_confidence is not None:
        gates.append(confidence(spec, evaluation))
    if misled is not None and misled.parts:
        gates.append(adversarial_not_worse(spec, misled))
    if misled is not None and len(misled.resisted.rows):
        gates.append(injections_not_obeyed(spec, misled))
    if judge is not None:
        gates.append(judged(judge))
    return (*gates, failed_share(spec, evaluation, golden))


def verdict(gates: Sequence[Gate]) -> Verdict:
    """Return `inconclusive` where nothing stops the candidate, and more labels would have decided a gate."""
    if not all(gate.passed for gate in gates):
        return "failed"
    return "inconclusive" if any(gate.labels_needed for gate in gates) else "passed"


def better_than_chance(evaluation: Comparison) -> Gate:
    """A model that learned nothing is right as often as its answers would be to each other's questions.

    Not as often as the most frequent label: where that is 90 % of the rows, few rows could ever show an accuracy above
    it, however well a model tells the rest apart. Of few rows, or few beside the most frequent label, what is nearly
    told from chance is unknown: one answer decides that.
    """
    p, expected, texts = _chance(evaluation)
    counts = Counter(question.answer for question in evaluation.questions)
    label, most = counts.most_common(1)[0]
    required = f"p < {CHANCE} that answers have nothing to do with the questions (permutation test)"
    detail = (
        f"The candidate is right on {_right_count(evaluation.candidate)}; in random order its answers would be on "
        f"{expected:.1f}, always answering {label!r} on {most}."
    )
    if needed := _rows_to_beat_chance(texts):
        return unknown("better_than_chance", required, detail, needed)
    needed = max(_FEW_ROWS - sum(texts), _FEW_RARE - (sum(texts) - max(texts)))
    if CHANCE <= p < _MAY_BE_BETTER and needed > 0:
        return unknown("better_than_chance", required, detail, needed)
    return Gate(name="better_than_chance", passed=p < CHANCE, measured=p, required=required, detail=detail)


def _chance(evaluation: Comparison) -> tuple[float, float, list[int]]:
    """Return the p-value of the permutation test, how many answers chance would get right, and how many groups each
    label has.

    Near-copies are answered alike, so what is permuted is the label of a group, its first row's. A group counts by the
    share of its answers that are that label.
    """
    expected = [question.answer.strip() for question in evaluation.questions]
    given = ["" if answer is None else answer.strip() for answer in evaluation.candidate.answers]
    names = {name: number for number, name in enumerate(sorted({*expected}))}
    # What is no row's label is right nowhere. An engine that is not held to the labels may answer each row differently.
    truth, answers = (np.array([names.get(name, len(names)) for name in part]) for part in (expected, given))
    _, first, group = np.unique(evaluation.groups, return_index=True, return_inverse=True)
    shares = np.zeros((len(first), len(names) + 1))
    np.add.at(shares, (group, answers), 1.0 / np.bincount(group)[group])
    labels, each = truth[first], np.arange(len(first))
    found = float(shares[each, labels].sum()) - 1e-9 * len(first)
    chance, beaten = np.random.default_rng(_SEED), 0
    for _ in range(0, _PERMUTATIONS, _PERMUTED_AT_ONCE):  # All orders of a large set's labels would be gigabytes.
        orders = chance.permuted(np.tile(labels, (_PERMUTED_AT_ONCE, 1)), axis=1)
        beaten += int((shares[each, orders].sum(axis=1) >= found).sum())
    of_label = Counter(expected)
    by_chance = sum(of_label[name] * count for name, count in Counter(given).items()) / len(given)
    sizes = np.bincount(labels, minlength=len(names) + 1)
    return (1 + beaten) / (1 + _PERMUTATIONS), by_chance, sizes[sizes > 0].tolist()


def _rows_to_beat_chance(counts: Sequence[int]) -> int:
    """Return how many more rows it takes before right answers to all of them could be told from chance; 0: none."""
    sizes, added = sorted(counts if len(counts) > 1 else (0, *counts)), 0
    while math.factorial(sum(sizes)) <= math.prod(map(math.factorial, sizes)) * _ORDERS_TO_SHOW:
        sizes[0] += 1  # A row of the rarest label says most.
        added, sizes = added + 1, sorted(sizes)
    return added


def min_accuracy(spec: TaskSpec, evaluation: Comparison) -> Gate:
    accuracy = mean_interval(np.array(evaluation.candidate.right, dtype=np.float64), evaluation.groups)
    bar = spec.evaluation.min_accuracy
    return Gate(
        name="min_accuracy",
        passed=accuracy.value >= bar,
        measured=accuracy.value,
        required=f">= {bar:g}",
        detail=f"Right on {_right_count(evaluation.candidate)}, {accuracy.value:.1%} (95 % interval {accuracy.low:.1%} "
        f"to {accuracy.high:.1%}).",
    )


def not_worse(spec: TaskSpec, evaluation: Comparison) -> Gate:
    """Stop a candidate that is shown to be worse, or that gains less than the task wants.

    Shown on the rows as they are, or on those that stand for all traffic, each at half of the level: gains among
    suspects may hide losses among the answers that nobody suspects, whose rows are few and weigh much.
    """
    gain, bar, p = evaluation.gain, spec.evaluation.min_gain, p_all_rows(evaluation)
    finding = _FINDINGS[gain.finding]
    if gain.finding == "worse" and p >= NOT_WORSE:
        finding = f"probably worse (p = {p:.2g}), not enough to stop"
    elif gain.finding != "worse" and p < NOT_WORSE:
        finding = f"{finding}; on the rows as they are it is shown to be worse"
    source = "all traffic, weighed by the samples" if gain.basis == "traffic" else f"the rows as they are, {OF_ROWS}"
    detail = (
        f"Candidate {_mean(evaluation.candidate)}, production {_mean(evaluation.production)} of "
        f"{len(evaluation.questions)} rows{_unanswered(evaluation.production)}; the candidate wins "
        f"{len(evaluation.gained)} and loses {len(evaluation.lost)}. Gain {gain.value:+.1%} (95 % interval "
        f"{gain.low:+.1%} to {gain.high:+.1%}; {source}): {finding}.{_named_rows(evaluation)}"
    )
    if bar is not None:
        required = f">= {bar:g} over production, and not shown to be worse (p >= {NOT_WORSE})"
        passed = gain.value >= bar and p >= NOT_WORSE
        if passed and evaluation.traffic is None:
            return unknown("min_gain", required, detail, MIN_UNIFORM - uniform_rows(evaluation.questions))
        return Gate(name="min_gain", passed=passed, measured=gain.value, required=required, detail=detail)
    needed = rows_to_show(NOT_WORSE / (1 if evaluation.traffic is None else 2))
    if (count := len(np.unique(evaluation.groups))) < needed:
        return unknown("not_worse", f"p >= {NOT_WORSE}", detail, needed - count)
    required = f"p >= {NOT_WORSE} (paired, one-sided: exact McNemar, or flips of signs by group)"
    return Gate(name="not_worse", passed=p >= NOT_WORSE, measured=p, required=required, detail=detail)


def p_all_rows(evaluation: Comparison) -> float:
    """Return the p-value that `not_worse` goes by: of the rows as they are, and of traffic where that is known."""
    tests = [p_worse(evaluation.apart, evaluation.groups)]
    if evaluation.traffic is not None:
        tests.append(evaluation.gain.p_worse)
    return min(1.0, len(tests) * min(tests))


OF_ROWS = "too few of which chance drew to tell of all traffic"
"""Of a gain on rows that were mostly asked about since production looked wrong on them: there it can hardly lose."""
_FINDINGS = {"better": "better", "worse": "worse", "not_shown": "no difference is shown"}


def parts_not_worse(evaluation: Comparison, parts: Mapping[str, ComparedPart]) -> Gate:
    """No class, failure mode, application, language, length or field may be shown to be worse, at one level for all.

    Small ones are tested together, too (`parts/judged.py`).
    """
    required = f"p >= {PARTS} for every class, slice and field (paired, Holm)"
    return parts_gate("parts_not_worse", required, "classes, slices and fields", parts, evaluation.groups, PARTS)


def confidence(spec: TaskSpec, evaluation: Comparison) -> Gate:
    """Errors must still have a lower confidence than right answers: by that they are found, and people asked.

    What a reviewer's mistake explains counts less as an error. Of a good candidate's errors most are such: it was
    stopped for being surely right, the likelier the more rows there were.
    """
    bar, chance = spec.evaluation.max_confidence_loss, chance_mistake_looks_right(spec)
    name, required = "confidence", f"AUROC not shown to be more than {bar:g} below production's"
    arms = [
        (np.asarray(scores, dtype=np.float64), np.array(arm.right, dtype=np.float64))
        for scores, arm in (
            (evaluation.candidate_confidence, evaluation.candidate),
            (evaluation.production_confidence, evaluation.production),
        )
        if scores is not None
    ]
    known = ~np.isnan(arms[0][0]) & ~np.isnan(arms[1][0])
    ours, theirs = ((scores[known], right[known]) for scores, right in arms)
    if not (tells_apart(ours[1]) and tells_apart(theirs[1])):
        return Gate(
            name=name,
            passed=True,
            required=required,
            detail=f"Unknown: fewer than {MIN_OF_EACH} errors or right answers with a confidence in one of the arms.",
        )
    believed = [None, None] if chance is None else believed_wrong([ours, theirs], chance)
    value, high = auroc_difference((*ours, believed[0]), (*theirs, believed[1]), evaluation.groups[known], CONFIDENCE)
    return Gate(
        name=name,
        passed=high >= -bar,
        measured=value,
        required=required,
        detail=f"The candidate's AUROC of errors is {value:+.3f} against production's; at most {high:+.3f}, with "
        f"{1 - CONFIDENCE:.1%} confidence.",
    )


def judged(report: JudgeReport) -> Gate:
    """A judge stops a candidate that it prefers less often, once its agreement with people is shown."""
    of, p = report.certification, report.p_worse
    decides = report.certified and p is not None
    if report.certified:
        standing = f"Certified: its agreement with people is at least {of.lower:.0%}."
    else:
        standing = (
            f"Shown only, not certified: agreement with people on {of.pairs} pairs ({of.pairs_required} required), "
            f"lower bound {of.lower:.0%} ({of.required:.0%} required)."
        )
    bias = "" if of.first_share is None else f" It chose the answer shown first in {of.first_share.value:.0%}."
    problem = f" {report.problem}" if report.problem else ""
    return Gate(
        name="judge",
        passed=not decides or p is None or p >= JUDGE,
        measured=p if decides else None,
        required=f"p >= {JUDGE} that the judge prefers the candidate no less often (paired, one-sided)",
        detail=f"{report.model} prefers the candidate on {report.wins} rows, production on {report.losses}, neither on "
        f"{report.ties}. {standing}{bias}{problem}",
    )


def failed_share(spec: TaskSpec, evaluation: Comparison, golden: Comparison) -> Gate:
    failed = evaluation.candidate.failed + golden.candidate.failed
    asked = len(evaluation.questions) + len(golden.questions)
    bar = spec.evaluation.max_failed_share
    return Gate(
        name="max_failed_share",
        passed=failed / asked <= bar,
        measured=failed / asked,
        required=f"<= {bar:g}",
        detail=f"{failed} of {asked} requests to the candidate failed or timed out, also when they were repeated as "
        "production's are; each counts as wrong.",
    )


def _mean(arm: GradedAnswers) -> str:
    return f"{float(np.mean(arm.scores)):.1%}"


def _unanswered(production: GradedAnswers) -> str:
    return f" ({production.failed} of them without an answer, on which nothing is gained)" if production.failed else ""


def _right_count(arm: GradedAnswers) -> str:
    return f"{sum(arm.right)} of {len(arm.right)} rows"


def _named_rows(comparison: Comparison) -> str:
    """Name a few lost answers, which people want to see first. It quotes none: who asked may be forgotten later."""
    names = [name for i in comparison.lost if (name := comparison.questions[i].row_id)]
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f" Lost rows: {', '.join(names[:_MAX_NAMED])}{more} (ratchet evaluation show)." if names else ""
