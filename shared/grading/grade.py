"""Grades an answer as its task's kind asks."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.tasks import TaskKind, TaskSpec
from schemas.tools import CallsPerAnswer
from shared.grading.call_fields import grade_calls
from shared.grading.fields import FieldGrade, Fields, fields_f1, grade_fields
from shared.grading.json_schema import read_answer
from shared.grading.json_values import NOT_JSON, json_or_nothing
from shared.grading.labels import label_set, read_labels
from shared.grading.overlap import WORD_METRICS, rouge_l
from shared.grading.text import exact_match
from shared.grading.tool_calls import loose_calls, read_calls, split_calls, with_calls_as_in


@dataclass(frozen=True)
class Grade:
    """`score`: in [0, 1], 1 for a right answer. `right`: as a whole.

    `valid`: of an extraction, whether the answer is JSON by the task's schema, of calls, whether they could be run, of
    several labels, whether it is a list of them; `fields`: what of it is right.
    """

    score: float
    right: bool
    valid: bool = True
    fields: tuple[FieldGrade, ...] = ()


WRONG = Grade(0.0, False)
RIGHT = Grade(1.0, True)


def grade(spec: TaskSpec, expected: str, given: str | None) -> Grade:
    """Grade an answer, as one text, beside the right one. None, a request that failed, is wrong."""
    if spec.kind is TaskKind.EXTRACTION:
        return _grade_json(spec, expected, given)
    if spec.kind is TaskKind.TOOLS:
        return _grade_calls(spec, expected, given)
    if spec.kind is TaskKind.MULTI_LABEL:
        return _grade_labels(spec, expected, given)
    if given is None:
        return WRONG
    if spec.kind is TaskKind.CLASSIFICATION:
        return RIGHT if given.strip() == expected.strip() else WRONG
    return _grade_text(spec, expected, given)


def _grade_text(spec: TaskSpec, expected: str, given: str) -> Grade:
    """Generated text may call tools, which are compared as calls: a text with other ones is worth nothing.

    A metric that needs a model is ROUGE-L here.
    """
    compared = with_calls_as_in(given, expected)
    if compared is None:
        return WRONG
    if exact_match(split_calls(given)[0], split_calls(expected)[0]):
        return RIGHT
    return Grade(WORD_METRICS.get(spec.evaluation.text_metric, rouge_l)(compared, expected), right=False)


def _grade_json(spec: TaskSpec, expected: str, given: str | None) -> Grade:
    """The score is the F1 over all values. An answer that breaks the schema is worth nothing: no program can read it.

    The right answer may break a schema that was changed since; then it is compared as it is.
    """
    fields = Fields(spec.output_fields, spec.comparators)
    wanted = json_or_nothing(expected)
    if wanted is NOT_JSON:
        return WRONG
    try:
        value = read_answer(given or "", spec.output_schema or {})
    except ValueError:
        return Grade(0.0, right=False, valid=False, fields=grade_fields(None, wanted, fields))
    grades = grade_fields(value, wanted, fields)
    score = fields_f1(grades)
    return Grade(score, right=score == 1.0, fields=grades)


def _grade_labels(spec: TaskSpec, expected: str, given: str | None) -> Grade:
    """The score is the F1 of this answer's labels, right is the whole set. Each label is a field.

    The right answer may have labels that the task no longer has; then they are missed.
    """
    if (wanted := label_set(expected)) is None:
        return WRONG
    try:
        found, valid = frozenset(read_labels(given or "", spec)), True
    except ValueError:
        found, valid = frozenset(), False
    fields = tuple(
        FieldGrade(label, int(label in found and label in wanted), int(label in found), int(label in wanted))
        for label in sorted(found | wanted)
    )
    return Grade(fields_f1(fields) if valid else 0.0, right=valid and found == wanted, valid=valid, fields=fields)


def _grade_calls(spec: TaskSpec, expected: str, given: str | None) -> Grade:
    """The score is the F1 over functions and arguments. Calls that could not be run are worth nothing.

    Where the right answer is a text, any text is right, an empty one is none: whether to call is what is judged. The
    right answer may break what the task allows since; then it is compared as it is.
    """
    fields = Fields(spec.output_fields, spec.comparators)
    wanted, in_order = loose_calls(expected), spec.calls_per_answer is CallsPerAnswer.IN_ORDER
    try:
        if given is None or not given.strip():
            raise ValueError("no answer")
        _, calls = read_calls(given, spec)
    except ValueError:
        return Grade(0.0, right=False, valid=False, fields=grade_calls(None, wanted, fields, in_order=in_order))
    grades = grade_calls(calls, wanted, fields, in_order=in_order)
    score = fields_f1(grades)
    return Grade(score, right=score == 1.0, fields=grades)
