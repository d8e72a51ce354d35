"""Answers that are several of the task's labels, or none: JSON lists. Order and repetition say nothing."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import ClassVar

from schemas.tasks import TaskKind
from shared.answers.field_confidence import label_probabilities
from shared.answers.form import AnswerForm, Editor, InvalidAnswer
from shared.answers.label import unknown_label
from shared.answers.measure import ConfidenceMeasure, Tokens, text_measure
from shared.grading.fields import FieldGrade, fields_f1
from shared.grading.grade import WRONG, Grade
from shared.grading.json_values import json_or_nothing, read_json


class LabelSet(AnswerForm):
    """Labels of a list, as JSON."""

    kind = TaskKind.MULTI_LABEL
    editor: ClassVar[Editor] = "ticks"
    accuracy_title: ClassVar[str] = "Subset accuracy: the whole set is right"
    valid_title: ClassVar[str] = "Answers that are a list of labels"

    def canonical(self, text: str) -> str:
        """The labels in the task's order, each once; an empty list: none of them fits."""
        return json.dumps(self._read(text), ensure_ascii=False)

    def _read(self, text: str) -> list[str]:
        form = f"expected a JSON list of labels, such as {json.dumps(self.spec.labels[:2], ensure_ascii=False)}"
        try:
            value = read_json(text)
        except ValueError as error:
            raise InvalidAnswer(f"no JSON ({error}): {form}", "invalid_json") from error
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise InvalidAnswer(f"no list of labels: {form}", "invalid_json")
        found = frozenset(value)
        if unknown := sorted(found.difference(self.spec.labels)):
            raise unknown_label(unknown[0], self.spec)
        most = (self.spec.answer_schema or {}).get("maxItems")
        if isinstance(most, int) and len(found) > most:
            raise InvalidAnswer(f"{len(found)} labels; an answer has at most {most}", "too_many_labels")
        return self._ordered(found)

    def _ordered(self, found: frozenset[str]) -> list[str]:
        return [label for label in self.spec.labels if label in found] + sorted(found.difference(self.spec.labels))

    def labels(self, text: str) -> frozenset[str] | None:
        found = listed_labels(text)
        return found if found is not None and found.issubset(self.spec.labels) else None

    @classmethod
    def named_labels(cls, text: str) -> frozenset[str]:
        return listed_labels(text) or frozenset()

    def from_user(self, text: str) -> str:
        """A user names one label as it is called, also by a former name; anything else stays as it is."""
        is_label = text in self.spec.labels or text in self.spec.renamed_labels
        return json.dumps([text], ensure_ascii=False) if is_label else text

    def renamed(self, text: str) -> str:
        if (found := listed_labels(text)) is None or found.isdisjoint(self.spec.renamed_labels):
            return text
        known = frozenset(self.spec.renamed_labels.get(label, label) for label in found)
        return json.dumps(self._ordered(known), ensure_ascii=False)

    @classmethod
    def same(cls, one: str, other: str) -> bool:
        if (labels := listed_labels(one)) is not None:
            return labels == listed_labels(other)
        return super().same(one, other)

    def grade(self, expected: str, given: str | None) -> Grade:
        """The score is the F1 of this answer's labels, right is the whole set. Each label is a field.

        The right answer may have labels that the task no longer has; then they are missed.
        """
        if (wanted := listed_labels(expected)) is None:
            return WRONG
        try:
            found, valid = frozenset(self._read(given or "")), True
        except InvalidAnswer:
            found, valid = frozenset(), False
        fields = tuple(
            FieldGrade(label, int(label in found and label in wanted), int(label in found), int(label in wanted))
            for label in sorted(found | wanted)
        )
        return Grade(fields_f1(fields) if valid else 0.0, right=valid and found == wanted, valid=valid, fields=fields)

    @property
    def possible_answers(self) -> float:
        return 2.0 ** len(self.spec.labels)

    def strata(self, answers: Sequence[str]) -> Callable[[str], str]:
        """The rarest label of a set. Sets are too many to hold rows out of each, and common labels get their share too,
        as in iterative stratification (Sechidis, Tsoumakas & Vlahavas 2011)."""
        times = Counter(label for answer in answers for label in self.labels(answer) or ())
        return lambda answer: min(self.labels(answer) or ("",), key=lambda label: (times[label], label))

    @classmethod
    def part_noun(cls, path: str) -> str:
        return "label"

    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        """As sure as all tokens together: which labels, in which order, and that no other follows."""
        fields = label_probabilities(tokens, self.spec.labels)
        return text_measure(logprobs, total)._replace(score=math.exp(total), fields=fields)


def listed_labels(text: str) -> frozenset[str] | None:
    """The labels of a list, whichever they are; None for what is no JSON list of texts."""
    value = json_or_nothing(text)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return None
    return frozenset(value)
