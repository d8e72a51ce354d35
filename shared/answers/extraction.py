"""Answers that are JSON by the task's schema."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.tasks import TaskKind
from shared.answers.field_confidence import field_probabilities
from shared.answers.form import AnswerForm, InvalidAnswer
from shared.answers.measure import ConfidenceMeasure, Tokens, text_measure
from shared.grading.fields import Fields, fields_f1, grade_fields
from shared.grading.grade import WRONG, Grade
from shared.grading.json_schema import canonical, read_answer
from shared.grading.json_values import NOT_JSON, json_or_nothing


class Extraction(AnswerForm):
    """JSON by `output_schema`."""

    kind = TaskKind.EXTRACTION

    def canonical(self, text: str) -> str:
        return canonical(self._read(text), self.spec.output_schema or {})

    def _read(self, text: str) -> Any:
        try:
            return read_answer(text, self.spec.output_schema or {})
        except ValueError as error:
            broken = json_or_nothing(text) is NOT_JSON
            raise InvalidAnswer(str(error), "invalid_json" if broken else "breaks_schema") from error

    def laid_out(self, text: str) -> str:
        """One field a line; what is no JSON as it is."""
        value = json_or_nothing(text)
        return text if value is NOT_JSON else json.dumps(value, indent=2, ensure_ascii=False)

    def grade(self, expected: str, given: str | None) -> Grade:
        """The score is the F1 over all values. An answer that breaks the schema is worth nothing."""
        fields = Fields(self.spec.output_fields, self.spec.comparators)
        wanted = json_or_nothing(expected)
        if wanted is NOT_JSON:
            return WRONG
        try:
            value = self._read(given or "")
        except InvalidAnswer:
            return Grade(0.0, right=False, valid=False, fields=grade_fields(None, wanted, fields))
        grades = grade_fields(value, wanted, fields)
        score = fields_f1(grades)
        return Grade(score, right=score == 1.0, fields=grades)

    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        """As sure as the least sure field; what is no JSON, as all its tokens together."""
        probabilities = field_probabilities(tokens, self.spec.output_fields)
        score = min(probabilities.values()) if probabilities else math.exp(total)
        return text_measure(logprobs, total)._replace(score=score, fields=probabilities)

    @property
    def parts(self) -> Sequence[str]:
        return tuple(self.spec.output_fields)

    parts_title: ClassVar[str] = "Fields"
