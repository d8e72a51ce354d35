"""Grades JSON field by field: each value of an answer is matched with the right one at its place.

A value that is null, an empty list or an empty object counts as absent. Items of a list are compared in any order: they
are paired with those of the right answer so that all pairs together have most values in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from schemas.tasks import Comparator, Compare
from shared.grading.json_values import same_json
from shared.grading.pairs import best_pairs
from shared.grading.text import casefolded, words

_ROUNDING = 1e-14
"""Relative: what 0.1 + 0.2 is off by, and less than a cent of a thousand million."""

UNDECLARED = "(not in the schema)"
"""Stands for every field that the task's schema does not name: what people and models call things is quoted nowhere."""


class Fields:
    """What is judged: the fields of the task's schema by their paths, and how they are compared."""

    def __init__(self, paths: Iterable[str], comparators: Mapping[str, Comparator]) -> None:
        self.comparators = comparators
        self._paths = frozenset(paths)
        self._outer = {path[:end] for path in self._paths for end in range(len(path)) if path[end] in ".["} | {""}

    def has_inner(self, path: str) -> bool:
        """Return True for an object or a list whose fields the schema names: others are compared as a whole."""
        return path in self._outer

    def name(self, path: str) -> str:
        return path if path in self._paths else UNDECLARED


@dataclass(frozen=True)
class FieldGrade:
    """One field of one answer: how many values are right, of those that were given and those that were expected.

    A field outside lists has 0 or 1 of each.
    """

    path: str
    matched: int
    given: int
    expected: int


def grade_fields(given: Any, expected: Any, fields: Fields) -> tuple[FieldGrade, ...]:
    """Compare two JSON values; returns every field that either has, in the order of their paths."""
    matched = _matched(given, expected, "", fields)
    have, want = (Counter(_leaves(value, "", fields)) for value in (given, expected))
    return tuple(FieldGrade(path, matched[path], have[path], want[path]) for path in sorted(have.keys() | want.keys()))


def fields_f1(grades: Iterable[FieldGrade]) -> float:
    """Return the F1 over all values, in [0, 1]; 1 where nothing was expected and nothing given."""
    matched = total = 0
    for field in grades:
        matched += field.matched
        total += field.given + field.expected
    return 2 * matched / total if total else 1.0


def same_value(given: Any, expected: Any, comparator: Comparator | None) -> bool:
    """Return True if a field's value counts as the right one."""
    if same_json(given, expected):
        return True
    if comparator is None or isinstance(given, bool) or isinstance(expected, bool):
        return False
    if isinstance(given, str) and isinstance(expected, str):
        return _same_text(given, expected, comparator)
    if comparator.compare is Compare.NUMBER and isinstance(given, int | float) and isinstance(expected, int | float):
        return _near(given, expected, comparator.tolerance)
    return False


def _near(given: float, expected: float, tolerance: float) -> bool:
    if isinstance(given, int) and isinstance(expected, int):  # Exact, also where no float has so many digits.
        return abs(given - expected) <= tolerance
    try:
        return abs(given - expected) <= tolerance + _ROUNDING * max(abs(given), abs(expected))
    except OverflowError:  # A whole number that is larger than any float.
        return False


def _same_text(given: str, expected: str, comparator: Comparator) -> bool:
    match comparator.compare:
        case Compare.CASEFOLD:
            return casefolded(given).split() == casefolded(expected).split()
        case Compare.NORMALISED:
            return words(given) == words(expected) != []
        case Compare.DATE:
            one, other = _day(given), _day(expected)
            return one is not None and other is not None and abs((one - other).days) <= comparator.tolerance
    return False


def _matched(given: Any, expected: Any, path: str, fields: Fields) -> Counter[str]:
    """Count the values that match, by field."""
    matched = Counter[str]()
    if fields.has_inner(path) and isinstance(given, dict) and isinstance(expected, dict):
        for name in given.keys() & expected.keys():
            matched += _matched(given[name], expected[name], _inner(path, name), fields)
    elif fields.has_inner(path) and isinstance(given, list) and isinstance(expected, list):
        matched = _matched_items(given, expected, f"{path}[]", fields)
    elif not _is_absent(given) and same_value(given, expected, fields.comparators.get(path)):
        matched[fields.name(path)] += 1
    return matched


def _matched_items(given: list[Any], expected: list[Any], path: str, fields: Fields) -> Counter[str]:
    common = {
        (i, j): found
        for i, one in enumerate(given)
        for j, other in enumerate(expected)
        if (found := _matched(one, other, path, fields))
    }
    matched = Counter[str]()
    for pair in best_pairs({pair: found.total() for pair, found in common.items()}):
        matched += common[pair]
    return matched


def _leaves(value: Any, path: str, fields: Fields) -> Iterator[str]:
    """The fields of an answer's values, each as often as it has a value."""
    if _is_absent(value):
        return
    if isinstance(value, dict) and fields.has_inner(path):
        for name, inner in value.items():
            yield from _leaves(inner, _inner(path, name), fields)
    elif isinstance(value, list) and fields.has_inner(path):
        for inner in value:
            yield from _leaves(inner, f"{path}[]", fields)
    else:
        yield fields.name(path)


def _inner(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_absent(value: Any) -> bool:
    return value is None or (isinstance(value, list | dict) and not value)


def _day(text: str) -> date | None:
    try:
        return datetime.fromisoformat(text.strip()).date()
    except ValueError:
        return None
