"""How often each reviewer is right, from the questions that several reviewers answered. Pure.

The model is that of Dawid & Skene (1979, Applied Statistics 28(1), 20–28) with one number for each reviewer in place of
a confusion matrix ("one coin"; Zhang, Chen, Zhou & Jordan 2016, JMLR 17(102)): dozens of labels and few overlaps cannot
fill a matrix. Each reliability has a Beta prior, so that it moves from the prior to what was observed as overlaps come
in. The libraries for it have none, and without one, maximum likelihood takes one of three reviewers for the truth:
crowd-kit 1.4.2 gives 0.999998 for one who was right in 97 %.

Of two reviewers who share questions with nobody else their answers do not tell who is right where they differ. The mode
takes one of them for the truth by chance, so they have one reliability together.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from services.dataset_builder.building.votes import PRIOR_RELIABILITY
from shared.model.groups import Groups

PRIOR_ANSWERS = 20.0
"""The prior weighs as much as so many answers whose truth is known."""
_MAX_ROUNDS, _TOLERANCE = 100, 1e-7
_DIGITS = 6
"""Reliabilities are rounded, so that they are the same on every machine."""

Answer = tuple[str, str, str]
"""Question, reviewer, label."""
Pattern = tuple[tuple[str, str], ...]
"""Reviewers and their labels."""


def estimate_reliability(
    answers: Iterable[Answer], prior: float = PRIOR_RELIABILITY, prior_answers: float = PRIOR_ANSWERS
) -> dict[str, float]:
    """Return the share of right labels of each reviewer who shares a question with another; the others: not in it.

    `answers` has at most one label for each question and reviewer; their order makes no difference. It is the mode of
    the posterior (prior: Beta(1 + p·n, 1 + (1 − p)·n) for `prior` p and `prior_answers` n), by expectation–maximisation
    from the shares of the votes.
    """
    patterns = _patterns(answers)
    if not patterns:
        return {}
    times = np.array([float(count) for _, count in patterns])
    item = np.array([number for number, (pattern, _) in enumerate(patterns) for _ in pattern])
    names, reviewer = _factorize(name for pattern, _ in patterns for name, _ in pattern)
    labels, label = _factorize(answer for pattern, _ in patterns for _, answer in pattern)
    weight = times[item]
    # A cell is a label that somebody gave on a line. All others of a line are equally unsupported, so their shares are
    # those of their prevalence, times `rest`: a matrix of sets of labels, which grow with the data, would fill memory.
    cells, cell = np.unique(item * len(labels) + label, return_inverse=True)
    cell_item, cell_label = np.divmod(cells, len(labels))
    pooled = _pooled(reviewer, item, len(names))
    members = np.bincount(pooled, minlength=len(names))
    answered = np.bincount(pooled[reviewer], weights=weight, minlength=len(names))
    truth = np.bincount(cell) / np.bincount(item)[cell_item]
    rest, prevalence = np.zeros(len(patterns)), np.zeros(len(labels))
    reliability = np.full(len(names), prior)
    for _ in range(_MAX_ROUNDS):
        right = np.bincount(pooled[reviewer], weights=weight * truth[cell], minlength=len(names))
        known = prior_answers * np.maximum(members, 1)
        updated = ((prior * known + right) / (known + answered))[pooled]
        moved, reliability = float(np.abs(updated - reliability).max()), updated
        if moved < _TOLERANCE:
            break
        given = np.bincount(cell_label, times[cell_item] * (truth - rest[cell_item] * prevalence[cell_label]))
        prevalence = (given + prevalence * (times @ rest) + 1.0) / (times.sum() + len(labels))
        odds = np.log(reliability * max(len(labels) - 1, 1) / (1.0 - reliability))
        scores = np.bincount(cell, weights=odds[reviewer])
        highest = np.zeros(len(patterns))
        np.maximum.at(highest, cell_item, scores)
        truth = prevalence[cell_label] * np.exp(scores - highest[cell_item])
        unnamed = 1.0 - np.bincount(cell_item, prevalence[cell_label])
        rest = np.exp(-highest)
        total = np.bincount(cell_item, truth) + rest * unnamed
        truth, rest = truth / total[cell_item], rest / total
    return {name: round(float(value), _DIGITS) for name, value in zip(names, reliability, strict=True)}


def _pooled(reviewer: npt.NDArray[np.int64], item: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return whose reliability each reviewer has: that of the first of two who share questions with nobody else, else
    their own. `reviewer` and `item`: who answered, and which line."""
    first: dict[int, int] = {}
    groups = Groups(count)
    for line, who in zip(item.tolist(), reviewer.tolist(), strict=True):
        groups.join(first.setdefault(line, who), who)
    component = np.array([groups[who] for who in range(count)], dtype=np.int64)
    is_pair = np.bincount(component, minlength=count) == 2
    return np.where(is_pair[component], component, np.arange(count))


def _patterns(answers: Iterable[Answer]) -> list[tuple[Pattern, int]]:
    """Who answered what to questions that at least two reviewers answered, and how often, sorted.

    Questions that were answered alike are one line: most are.
    """
    by_item: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for question, reviewer, label in answers:
        by_item[question].append((reviewer, label))
    return sorted(Counter(tuple(sorted(given)) for given in by_item.values() if len(given) > 1).items())


def _factorize(column: Iterable[str]) -> tuple[list[str], npt.NDArray[np.int64]]:
    """The distinct names, sorted, and the position of each value among them."""
    values = list(column)
    names = sorted(set(values))
    position = {name: number for number, name in enumerate(names)}
    return names, np.array([position[value] for value in values])
