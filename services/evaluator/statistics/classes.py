"""Precision, recall and F1 by class or field and over all of them, with intervals; the confusion matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from schemas.adapters import AverageScore, ClassScore
from schemas.base import Interval
from schemas.evaluation import ConfusionCell
from services.evaluator.statistics.intervals import Floats, Groups, percentiles, resampled, wilson
from shared.grading.fields import FieldGrade
from shared.identity import content_hash

NO_LABEL = "(no label)"
"""Stands for an answer that is none of the task's labels: a failed request, or free text."""
_MAX_NAMES = 200
"""Characters, as of any `Identifier`."""
_RESAMPLES = 500
_NO_SPREAD = 1e-9


def confusions(expected: Sequence[str], given: Sequence[str], labels: Sequence[str]) -> tuple[ConfusionCell, ...]:
    """Return the cells of the confusion matrix that are not empty, the most frequent first."""
    known = set(labels)
    cells = Counter((e, g if g in known else NO_LABEL) for e, g in zip(expected, given, strict=True))
    ordered = sorted(cells.items(), key=lambda cell: (-cell[1], cell[0]))
    return tuple(ConfusionCell(expected=e, given=g, count=count) for (e, g), count in ordered)


def class_scores(
    expected: Sequence[str], given: Sequence[str], labels: Sequence[str], groups: Groups
) -> tuple[tuple[ClassScore, ...], tuple[AverageScore, ...]]:
    """Return the scores of each label, and their averages over the labels that occur: macro, and weighted by rows.

    F1 and the averages have intervals that are bootstrapped by group; precision and recall Wilson's, where each row is
    a group of its own.
    """
    number = {label: position for position, label in enumerate(labels)}
    truth, answer = _one_hot(expected, number), _one_hot(given, number)
    return _part_scores(labels, truth * answer, answer, truth, groups)


def field_scores(
    grades: Sequence[Sequence[FieldGrade]], groups: Groups, *, micro: bool = False
) -> tuple[tuple[ClassScore, ...], tuple[AverageScore, ...]]:
    """Return the same of each field of an extraction, whose values count as a class's rows do. `grades`: by row.

    Several values of one row stand and fall together, so all intervals of such fields are bootstrapped by group.
    `micro`: the average of all values together, too, whichever field they are of.
    """
    names = sorted({field.path for fields in grades for field in fields})
    number = {name: position for position, name in enumerate(names)}
    counts = np.zeros((3, len(grades), len(names)))
    for row, fields in enumerate(grades):
        for field in fields:
            counts[:, row, number[field.path]] += field.matched, field.given, field.expected
    return _part_scores(names, counts[0], counts[1], counts[2], groups, micro=micro)


def call_scores(
    grades: Sequence[Sequence[FieldGrade]], groups: Groups
) -> tuple[tuple[ClassScore, ...], tuple[AverageScore, ...], tuple[ClassScore, ...]]:
    """Return the scores of each function, whether it was called, and their averages; and of each one's arguments."""
    functions = [[field for field in fields if "." not in field.path] for fields in grades]
    arguments = [
        [replace(field, path=field.path.partition(".")[0]) for field in fields if "." in field.path]
        for fields in grades
    ]
    return (*field_scores(functions, groups), field_scores(arguments, groups)[0])


def called_functions(fields: Sequence[FieldGrade], *, given: bool) -> str:
    """Return the names of the functions that an answer calls, or that are right: what a confusion is between.

    A function that is called several times is named once, with how often. What is longer than a name may be ends in a
    hash of all of it, so that different answers stay different.
    """
    counts = [(field.path, field.given if given else field.expected) for field in fields if "." not in field.path]
    names = " ".join(name if count == 1 else f"{name} ×{count}" for name, count in counts if count)
    return names if len(names) <= _MAX_NAMES else f"{names[: _MAX_NAMES - 14]}… {content_hash(names)}"


def _part_scores(
    names: Sequence[str], matched: Floats, given: Floats, expected: Floats, groups: Groups, *, micro: bool = False
) -> tuple[tuple[ClassScore, ...], tuple[AverageScore, ...]]:
    """`matched`, `given`, `expected`: counts by row and name."""
    rows = len(matched)
    if not rows or not names:
        return (), ()
    counts = matched, given, expected
    sums = [values.sum(axis=0, keepdims=True) for values in counts]
    resampled_sums = np.hsplit(resampled(np.hstack(counts), groups, _RESAMPLES), 3)
    support, count = sums[2][0], int(groups.max()) + 1
    found, samples = _scores(*sums), _sampled(resampled_sums, support)
    precision, recall = (
        _shares(matched, whole, resampled_sums[0], resampled_sums[of], groups)
        for of, whole in ((1, given), (2, expected))
    )
    low, high = percentiles(found[2][0], samples[2])
    f1 = [
        _interval(found[2][0, k], low[k], high[k], int(support[k]), _groups_of(expected[:, k], groups))
        for k in range(len(names))
    ]
    classes = tuple(
        ClassScore(
            label=name,
            precision=float(found[0][0, k]),
            recall=float(found[1][0, k]),
            f1=float(found[2][0, k]),
            support=int(support[k]),
            precision_interval=precision[k],
            recall_interval=recall[k],
            f1_interval=f1[k],
        )
        for k, name in enumerate(names)
    )
    averages = (
        _average("macro", found, samples, (support > 0).astype(np.float64), rows, count),
        _average("weighted", found, samples, support, rows, count),
    )
    if not micro:
        return classes, averages
    together, resampled_together = (
        [values.sum(axis=1, keepdims=True) for values in each] for each in (sums, resampled_sums)
    )
    pooled, of_samples = _scores(*together), _sampled(resampled_together, together[2][0])
    return classes, (*averages, _average("micro", pooled, of_samples, np.ones(1), rows, count))


def _one_hot(values: Sequence[str], number: dict[str, int]) -> Floats:
    matrix = np.zeros((len(values), len(number)))
    for row, value in enumerate(values):
        if (column := number.get(value)) is not None:
            matrix[row, column] = 1.0
    return matrix


def _scores(matched: Floats, given: Floats, expected: Floats) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 of sums (samples × names); 0 where there is nothing to divide by."""
    return (
        matched / np.maximum(given, 1.0),
        matched / np.maximum(expected, 1.0),
        2.0 * matched / np.maximum(given + expected, 1.0),
    )


def _sampled(sums: Sequence[Floats], support: Floats) -> tuple[Floats, Floats, Floats]:
    """Return the same of resamples; NaN where a sample drew no row of a name that has some: it says nothing of it."""
    precision, recall, f1 = _scores(*sums)
    absent = (sums[2] == 0.0) & (support > 0.0)
    return precision, np.where(absent, np.nan, recall), np.where(absent, np.nan, f1)


def _shares(
    matched: Floats, whole: Floats, resampled_hits: Floats, resampled_values: Floats, groups: Groups
) -> list[Interval]:
    """Return the share of each name's values that match, with its interval. `whole`: those given, or expected."""
    found = []
    columns = zip(matched.T, whole.T, resampled_hits.T, resampled_values.T, strict=True)
    for hits, values, sampled_hits, drawn in columns:
        total, of_name = float(values.sum()), _groups_of(values, groups)
        if values.max() <= 1.0 and of_name == np.count_nonzero(values):
            found.append(wilson(float(hits.sum()), total))
            continue
        samples = sampled_hits[drawn > 0.0] / drawn[drawn > 0.0]
        share = float(hits.sum()) / total
        low, high = percentiles(np.array(share), samples)
        found.append(_interval(share, float(low), float(high), round(total), of_name))
    return found


def _groups_of(values: Floats, groups: Groups) -> int:
    """Return how many groups have any of these values."""
    return len(np.unique(groups[values > 0.0]))


def _average(
    kind: str, found: Sequence[Floats], samples: Sequence[Floats], weights: Floats, rows: int, groups: int
) -> AverageScore:
    share = weights / weights.sum() if weights.sum() else weights
    intervals = []
    for measured, sampled in zip(found, samples, strict=True):
        value, weight = float(measured[0] @ share), np.where(np.isnan(sampled), 0.0, share)
        drawn = weight.sum(axis=1)  # Names that a sample did not draw are left out of its average.
        means = np.nansum(sampled * weight, axis=1)[drawn > 0.0] / drawn[drawn > 0.0]
        low, high = percentiles(np.array(value), means) if len(means) else (value, value)
        intervals.append(_interval(value, float(low), float(high), rows, groups))
    return AverageScore.model_validate(
        {"kind": kind, "precision": intervals[0], "recall": intervals[1], "f1": intervals[2]}
    )


def _interval(value: float, low: float, high: float, n: int, groups: int) -> Interval:
    """Weighted means of ones may be rounded to just above 1. Where no sample differs, Wilson's interval of as many rows
    as there are groups stands in."""
    kept, lowest, highest = (min(1.0, max(0.0, float(bound))) for bound in (value, low, high))
    if highest - lowest < _NO_SPREAD:
        return wilson(kept * groups, groups).model_copy(update={"n": n})
    return Interval(value=kept, low=lowest, high=highest, n=n)
