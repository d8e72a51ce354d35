"""Answers that are generated text; they may call the application's own tools."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from schemas.tasks import TaskKind
from shared.answers.form import AnswerForm
from shared.answers.measure import ConfidenceMeasure, Tokens, text_measure
from shared.grading.grade import RIGHT, WRONG, Grade
from shared.grading.overlap import WORD_METRICS, rouge_l
from shared.grading.text import exact_match
from shared.grading.tool_calls import split_calls, with_calls_as_in


class WrittenText(AnswerForm):
    """Any text."""

    kind = TaskKind.GENERATION
    is_exact: ClassVar[bool] = False

    def canonical(self, text: str) -> str:
        return text

    def grade(self, expected: str, given: str | None) -> Grade:
        """Calls of tools are compared as calls: a text with other ones is worth nothing.

        A metric that needs a model is ROUGE-L here.
        """
        compared = None if given is None else with_calls_as_in(given, expected)
        if given is None or compared is None:
            return WRONG
        if exact_match(split_calls(given)[0], split_calls(expected)[0]):
            return RIGHT
        return Grade(WORD_METRICS.get(self.spec.evaluation.text_metric, rouge_l)(compared, expected), right=False)

    def is_free_text(self, answer: str) -> bool:
        return not split_calls(answer)[1]

    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        return text_measure(logprobs, total)

    @property
    def summary(self) -> str:
        return "free text"
