"""Everything that a form of answers says; its defaults are those of most kinds. Pure.

An answer is one text here, as `Answer.plain` has it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from schemas.tasks import TaskKind, TaskSpec
from shared.answers.measure import ConfidenceMeasure, Tokens
from shared.grading.grade import Grade
from shared.grading.json_values import composed, json_or_nothing, same_json
from shared.grading.text import casefolded
from shared.grading.tool_calls import same_call, split_calls

Editor = Literal["buttons", "ticks", "calls", "text"]
"""How a reviewer gives an answer: a button a label, a list of labels to tick, a form of functions, or a text field."""


class InvalidAnswer(ValueError):
    """A text that is no answer of its task. `reason`: a code, by which data sets count what they leave out."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class AnswerForm(ABC):
    """The form of a task's answers."""

    kind: ClassVar[TaskKind]
    editor: ClassVar[Editor] = "text"
    is_exact: ClassVar[bool] = True
    """Whether answers are right or wrong as a whole. Generated text hardly ever equals the right one."""
    confidence_fields: ClassVar[Mapping[str, Any]] = {"logprobs": True}
    """The fields of a chat request by which the engine reports what `measure` needs."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    # What a text says.

    @abstractmethod
    def canonical(self, text: str) -> str:
        """An answer in the spelling that is trained on: equal answers are equal texts. Raises InvalidAnswer."""

    def problem(self, text: str) -> InvalidAnswer | None:
        """What is wrong with an answer, in words for who wrote it; None if nothing is."""
        try:
            self.canonical(text)
        except InvalidAnswer as error:
            return error
        return None

    def labels(self, text: str) -> frozenset[str] | None:
        """The task's labels that an answer has; None if it is none of such a task."""
        return None

    @classmethod
    def named_labels(cls, text: str) -> frozenset[str]:
        """The labels that an answer names, whether or not a task has them."""
        return frozenset()

    def counts_by_label(self, answers: Mapping[str, float]) -> dict[str, float]:
        """How often each label is given, of how often each answer is; what is no answer of the task stays."""
        found = defaultdict[str, float](float)
        for answer, count in answers.items():
            labels = self.labels(answer)
            for label in {answer} if labels is None else labels:
                found[label] += count
        return dict(found)

    def counts_by_answer(self, answers: Mapping[str, int]) -> dict[str, int]:
        """How often each answer is given, in whichever way its labels are written."""
        found = Counter[str]()
        for answer, count in answers.items():
            is_known = self.labels(answer) is not None and self.problem(answer) is None
            found[self.canonical(answer) if is_known else answer] += count
        return dict(found)

    def from_user(self, text: str) -> str:
        """What a user wrote that an answer should have been, as an answer."""
        return text

    def renamed(self, text: str) -> str:
        """An answer with the names that its labels have today."""
        return text

    def laid_out(self, text: str) -> str:
        """An answer as a person edits it."""
        return text

    # How answers compare.

    @classmethod
    def same(cls, one: str, other: str) -> bool:
        """Whether two answers to one question differ in nothing but case, space and Unicode form.

        Of JSON, in its layout and the Unicode form of its texts alone; calls are compared by their arguments. It tells
        whether a person changed an answer, and whether two arms said the same: no punctuation is passed over.
        """
        (text, calls), (other_text, other_calls) = split_calls(one), split_calls(other)
        if calls and len(calls) == len(other_calls):
            return cls._same_beside_calls(text, other_text) and all(map(same_call, calls, other_calls))
        values = json_or_nothing(one), json_or_nothing(other)
        if all(isinstance(value, dict | list) for value in values):
            return same_json(*values)
        return casefolded(one).split() == casefolded(other).split()

    @classmethod
    def _same_beside_calls(cls, text: str, other: str) -> bool:
        return composed(text).split() == composed(other).split()

    @abstractmethod
    def grade(self, expected: str, given: str | None) -> Grade:
        """How good an answer is beside the right one. None, a request that failed, is wrong.

        The right answer may break what the task allows since; then it is compared as it is.
        """

    def is_free_text(self, answer: str) -> bool:
        """Whether a right answer is generated text alone, so that hardly any answer equals it."""
        return False

    @property
    def possible_answers(self) -> float:
        """How many different answers there are; infinity where nobody can count them."""
        return math.inf

    def strata(self, answers: Sequence[str]) -> Callable[[str], str]:
        """What names the stratum of an answer, by which rows are held out. `answers`: all of the data set."""
        return lambda answer: ""

    # How sure an answer is.

    @abstractmethod
    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        """How sure an answer is, by the log-probabilities of its tokens and their sum in nats."""

    def spelled_label(self, tokens: Tokens) -> str | None:
        """The label that an answer's tokens spell, on which a second opinion can be asked."""
        return None

    # How it is called.

    @property
    def summary(self) -> str:
        """What answers are, in a few words."""
        return f"{len(self.parts)} {self.parts_title.casefold()}"

    @property
    def parts(self) -> Sequence[str]:
        """What is judged of an answer by itself."""
        return self.spec.labels

    parts_title: ClassVar[str] = "Labels"
    accuracy_title: ClassVar[str] = "Accuracy"
    valid_title: ClassVar[str] = "Answers by the schema"

    @classmethod
    def part_noun(cls, path: str) -> str:
        """What a part of an answer is called."""
        return "field"
