"""Grades tool calls: the right functions with the right arguments. Pure.

A function is a field named as it is, an argument one behind it: `book_room.date`, and `book_room.(not in the schema)`
one that the function does not declare. Calls are paired before their arguments are compared, each with one of the same
function: in the order of the answer where the task says so, else so that all pairs together have most in common. An
answer without a call has the field `NO_CALL`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from schemas.tools import NO_CALL
from shared.grading.fields import UNDECLARED, FieldGrade, Fields, grade_fields
from shared.grading.pairs import best_pairs
from shared.grading.tool_calls import ReadCall

_Grades = tuple[FieldGrade, ...]


def grade_calls(
    given: Sequence[ReadCall] | None, expected: Sequence[ReadCall], fields: Fields, *, in_order: bool
) -> _Grades:
    """Return every function and argument that either has, in the order of their paths. `given` None: no answer."""
    matched, have, want = Counter[str](), Counter[str](), Counter[str]()
    for name, one, other in _pairs(given or (), expected, fields, in_order):
        for field in _compare(name, one, other, fields):
            matched[field.path] += field.matched
            have[field.path] += field.given
            want[field.path] += field.expected
    if not expected:
        want[NO_CALL] += 1
    if given is not None and not given:
        have[NO_CALL] += 1
    matched[NO_CALL] = min(have[NO_CALL], want[NO_CALL])
    paths = sorted(path for path in have.keys() | want.keys() if have[path] or want[path])
    return tuple(FieldGrade(path, matched[path], have[path], want[path]) for path in paths)


def _pairs(
    given: Sequence[ReadCall], expected: Sequence[ReadCall], fields: Fields, in_order: bool
) -> Iterator[tuple[str, ReadCall | None, ReadCall | None]]:
    """Yield each function that is called, with the call in the answer and the right one; None: it has no counterpart.

    In order, a call has its counterpart at its own place.
    """
    common = {
        (i, j): sum(field.matched for field in _compare(one.name, one, other, fields))
        for i, one in enumerate(given)
        for j, other in enumerate(expected)
        if one.name == other.name and (i == j or not in_order)
    }
    left_given, left_expected = dict(enumerate(given)), dict(enumerate(expected))
    for i, j in best_pairs(common):
        one = left_given.pop(i)
        yield one.name, one, left_expected.pop(j)
    yield from ((call.name, call, None) for call in left_given.values())
    yield from ((call.name, None, call) for call in left_expected.values())


def _compare(name: str, one: ReadCall | None, other: ReadCall | None, fields: Fields) -> Iterator[FieldGrade]:
    both = one is not None and other is not None
    function = fields.name(name)
    yield FieldGrade(function, int(both), int(one is not None), int(other is not None))
    for field in grade_fields(_tree(one), _tree(other), fields):
        # Without a dot it is one that is not declared, or all of a function that declares none.
        yield field if "." in field.path else replace(field, path=f"{function}.{UNDECLARED}")


def _tree(call: ReadCall | None) -> Any:
    """The arguments, where the paths of fields have them."""
    return {call.name: call.arguments} if call is not None and call.arguments else None
