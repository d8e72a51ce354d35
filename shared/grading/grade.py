"""Grades an answer as its task's kind asks."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.tasks import TaskKind, TaskSpec
from shared.grading.text import exact_match, token_f1
from shared.grading.tool_calls import same_calls, split_calls


@dataclass(frozen=True)
class Grade:
    """`score`: in [0, 1], 1 for a right answer. `right`: as a whole."""

    score: float
    right: bool


WRONG = Grade(0.0, False)
RIGHT = Grade(1.0, True)


def grade(spec: TaskSpec, expected: str, given: str | None) -> Grade:
    """Grade an answer, as one text, beside the right one. None, a request that failed, is wrong."""
    if given is None:
        return WRONG
    if spec.kind is TaskKind.CLASSIFICATION:
        return RIGHT if given.strip() == expected.strip() else WRONG
    return _grade_text(expected, given)


def _grade_text(expected: str, given: str) -> Grade:
    """Generated text may call tools, which are compared as calls."""
    (text, calls), (wanted_text, wanted_calls) = split_calls(given), split_calls(expected)
    if exact_match(text, wanted_text) and same_calls(calls, wanted_calls):
        return RIGHT
    return Grade(token_f1(given, expected), right=False)
