"""Answers that are one of the task's labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

from schemas.tasks import TaskKind, TaskSpec
from shared.answers.form import AnswerForm, Editor, InvalidAnswer
from shared.answers.label_confidence import label_measure, spelled_label
from shared.answers.measure import TOP_LOGPROBS, ConfidenceMeasure, Tokens
from shared.grading.grade import RIGHT, WRONG, Grade

_SHOWN_CHARS = 100
_SHOWN_LABELS = 20


class OneLabel(AnswerForm):
    """One label of a list."""

    kind = TaskKind.CLASSIFICATION
    editor: ClassVar[Editor] = "buttons"
    confidence_fields: ClassVar[Mapping[str, Any]] = {"logprobs": True, "top_logprobs": TOP_LOGPROBS}

    def canonical(self, text: str) -> str:
        if text not in self.spec.labels:
            raise unknown_label(text, self.spec)
        return text

    def labels(self, text: str) -> frozenset[str] | None:
        return frozenset({text}) if text in self.spec.labels else None

    @classmethod
    def named_labels(cls, text: str) -> frozenset[str]:
        return frozenset({text})

    def renamed(self, text: str) -> str:
        return self.spec.renamed_labels.get(text, text)

    def grade(self, expected: str, given: str | None) -> Grade:
        return RIGHT if given is not None and given.strip() == expected.strip() else WRONG

    @property
    def possible_answers(self) -> float:
        return len(self.spec.labels)

    def strata(self, answers: Sequence[str]) -> Callable[[str], str]:
        return lambda answer: answer

    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        return label_measure(self.spec.labels, tokens, total)

    def spelled_label(self, tokens: Tokens) -> str | None:
        return spelled_label(self.spec.labels, tokens)


def unknown_label(word: str, spec: TaskSpec) -> InvalidAnswer:
    """The error for a label that the task does not have, with the one that was probably meant."""
    if near := get_close_matches(word[:_SHOWN_CHARS], spec.labels, n=1):
        hint = f"did you mean {near[0]!r}?"
    else:
        more = len(spec.labels) - _SHOWN_LABELS
        hint = f"its labels: {', '.join(spec.labels[:_SHOWN_LABELS])}" + (f" and {more} more" if more > 0 else "")
    return InvalidAnswer(f"{word[:_SHOWN_CHARS]!r} is not a label of the task; {hint}", "unknown_label")
