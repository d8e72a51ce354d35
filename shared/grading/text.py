"""Grades generated text: exact match, and the F1 of its words (SQuAD's, Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
from collections import Counter

from schemas.tasks import TaskKind
from shared.grading.json_values import NOT_JSON, json_or_nothing, same_json
from shared.grading.labels import label_set
from shared.grading.tool_calls import same_call, split_calls

_TOKEN = re.compile(
    r"""(?<!\w)[-+\u2212]?\d+(?:[.,:/]\d+)*   # A number with its sign, separators and decimals.
      | \w+
      | [^\w\s.,;:!?'"\u2018\u2019\u201c\u201d]  # A symbol, such as % or <; punctuation of sentences says nothing.
    """,
    re.VERBOSE,
)
_LOOKS_LIKE_JSON = ("{", "[")


def words(text: str) -> list[str]:
    """Return the words, numbers and symbols of a text, without case, space and the punctuation of sentences."""
    return _TOKEN.findall(text.casefold())


def exact_match(given: str, expected: str) -> bool:
    """Return True if both texts say the same.

    JSON is compared as JSON, so that its keys may be in any order and broken JSON equals none. Other texts are
    compared by their words; a number's sign and decimals count.
    """
    value, wanted = json_or_nothing(given), json_or_nothing(expected)
    if value is not NOT_JSON and wanted is not NOT_JSON:
        return same_json(value, wanted)
    if any(text.lstrip().startswith(_LOOKS_LIKE_JSON) for text in (given, expected)):
        return given.strip() == expected.strip()
    given_words, expected_words = words(given), words(expected)
    if not given_words or not expected_words:  # Punctuation alone.
        return given.strip() == expected.strip()
    return given_words == expected_words


def same_answer(one: str, other: str, kind: TaskKind) -> bool:
    """Return True if two answers to one question differ in nothing but case and space; as JSON, in its layout alone.

    Tool calls are compared by their arguments, several labels as a set. It tells whether a person changed an answer,
    and whether two arms said the same: no punctuation is passed over.
    """
    if kind is TaskKind.MULTI_LABEL and (labels := label_set(one)) is not None:
        return labels == label_set(other)
    (text, calls), (other_text, other_calls) = split_calls(one), split_calls(other)
    if calls and len(calls) == len(other_calls):
        return text.split() == other_text.split() and all(map(same_call, calls, other_calls))
    values = json_or_nothing(one), json_or_nothing(other)
    if all(isinstance(value, dict | list) for value in values):
        return same_json(*values)
    return one.casefold().split() == other.casefold().split()


def token_f1(given: str, expected: str) -> float:
    """Return the F1 over the words of both, in [0, 1]: 0 where they share none. Its order of words does not count."""
    have, want = Counter(words(given)), Counter(words(expected))
    if not have and not want:
        return float(given.strip() == expected.strip())
    common = (have & want).total()
    return 2 * common / (have.total() + want.total())
