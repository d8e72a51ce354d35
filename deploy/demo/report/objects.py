"""Measures an extraction's answers: whole objects right, and each field's values. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from deploy.demo.clients import GatewayAnswer
from deploy.demo.report.measure import Measurement, measure
from schemas.tasks import TaskSpec
from services.evaluator.statistics.intervals import wilson
from shared.answers import answer_form
from shared.grading.fields import fields_f1


def measure_objects(answers: Sequence[GatewayAnswer], spec: TaskSpec) -> Measurement:
    """Score answers field by field, as the task says. `accuracy` is that of whole objects.

    `by_label` has each field with its right values and those that were expected.
    """
    grades = [answer_form(spec).grade(answer.row.label, answer.text if answer.ok else None) for answer in answers]
    fields = [field for each in grades for field in each.fields]
    matched: Counter[str] = Counter()
    expected: Counter[str] = Counter()
    for field in fields:
        matched[field.path] += field.matched
        expected[field.path] += field.expected
    return replace(
        measure(answers),
        accuracy=wilson(sum(each.right for each in grades), len(grades)),
        by_label={path: (matched[path], expected[path]) for path in spec.output_fields if expected[path]},
        confusions=(),
        field_f1=fields_f1(fields),
        valid=sum(each.valid for each in grades),
    )
