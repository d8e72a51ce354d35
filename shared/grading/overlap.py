"""Grades text by what it shares with the right one: ROUGE (Lin 2004), as F1 in [0, 1]. Pure.

Google's `rouge-score` keeps ASCII alone, so that any text in Greek is equal to none; here words are those of `text.py`.
On English the values are its own, without stemming.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from schemas.evaluation_settings import TextMetric
from shared.grading.text import exact_match, token_f1, words


def rouge_n(given: str, expected: str, n: int) -> float:
    """Return the F1 over runs of n words; of a text that is shorter, 0, unless both are the same words."""
    have, want = words(given), words(expected)
    runs, wanted = _runs(have, n), _runs(want, n)
    if not runs or not wanted:
        return float(have == want)
    return 2 * (runs & wanted).total() / (runs.total() + wanted.total())


def rouge_l(given: str, expected: str) -> float:
    """Return the F1 of the longest common subsequence of words: their order counts, and words may stand between."""
    have, want = words(given), words(expected)
    if not have or not want:
        return float(have == want)
    return 2 * _longest_common(have, want) / (len(have) + len(want))


WORD_METRICS: Mapping[TextMetric, Callable[[str, str], float]] = {
    TextMetric.EXACT_MATCH: lambda given, expected: float(exact_match(given, expected)),
    TextMetric.TOKEN_F1: token_f1,
    TextMetric.ROUGE_1: lambda given, expected: rouge_n(given, expected, 1),
    TextMetric.ROUGE_2: lambda given, expected: rouge_n(given, expected, 2),
    TextMetric.ROUGE_L: rouge_l,
}
"""The metrics that need no model."""


def _runs(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[start:] for start in range(n)), strict=False))


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, a row of the table at once as bits (Hyyrö 2004)."""
    places = dict[str, int]()
    for position, token in enumerate(one):
        places[token] = places.get(token, 0) | 1 << position
    row = everything = (1 << len(one)) - 1
    for token in other:
        matching = row & places.get(token, 0)
        row = (row + matching | row - matching) & everything
    return len(one) - row.bit_count()
