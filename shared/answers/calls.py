"""Answers that call the task's functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from schemas.tasks import TaskKind
from schemas.tools import NO_CALL, CallsPerAnswer, ToolChoice
from shared.answers.field_confidence import call_probabilities
from shared.answers.form import AnswerForm, Editor, InvalidAnswer
from shared.answers.measure import ConfidenceMeasure, Tokens, text_measure
from shared.grading.call_fields import grade_calls
from shared.grading.fields import Fields, fields_f1
from shared.grading.grade import Grade
from shared.grading.tool_calls import ReadCall, calls_text, loose_calls, read_call, split_calls


class Calls(AnswerForm):
    """Calls of functions; a text where no function fits, if the task allows it."""

    kind = TaskKind.TOOLS
    editor: ClassVar[Editor] = "calls"
    valid_title: ClassVar[str] = "Calls that can be run"

    def canonical(self, text: str) -> str:
        """Arguments are one line with keys in the order of the schema, as guided decoding writes them. A text beside
        calls is left out, since calls alone are judged."""
        said, calls = self._read(text)
        return calls_text(calls, self.spec.functions) if calls else said.strip()

    def _read(self, text: str) -> tuple[str, tuple[ReadCall, ...]]:
        """An answer's text and its calls. Raises InvalidAnswer that says what no program could run."""
        said, written = split_calls(text)
        try:
            if not written and self.spec.tool_choice is ToolChoice.REQUIRED:
                raise ValueError(f"no call; every answer calls a function: {', '.join(self.spec.functions)}")
            if len(written) > 1 and self.spec.calls_per_answer is CallsPerAnswer.ONE:
                raise ValueError(f"{len(written)} calls; an answer has one")
            return said, tuple(read_call(call.name, call.arguments, self.spec.functions) for call in written)
        except ValueError as error:
            raise InvalidAnswer(str(error), "breaks_tools") from error

    @classmethod
    def _same_beside_calls(cls, text: str, other: str) -> bool:
        return True

    def grade(self, expected: str, given: str | None) -> Grade:
        """The score is the F1 over functions and arguments. Calls that could not be run are worth nothing.

        Where the right answer is a text, any text is right, an empty one is none: whether to call is what is judged.
        """
        fields = Fields(self.spec.output_fields, self.spec.comparators)
        wanted, in_order = loose_calls(expected), self.spec.calls_per_answer is CallsPerAnswer.IN_ORDER
        try:
            if given is None or not given.strip():
                raise InvalidAnswer("no answer", "breaks_tools")
            _, calls = self._read(given)
        except InvalidAnswer:
            return Grade(0.0, right=False, valid=False, fields=grade_calls(None, wanted, fields, in_order=in_order))
        grades = grade_calls(calls, wanted, fields, in_order=in_order)
        score = fields_f1(grades)
        return Grade(score, right=score == 1.0, fields=grades)

    def strata(self, answers: Sequence[str]) -> Callable[[str], str]:
        """The functions that an answer calls."""
        return lambda answer: " ".join(sorted({call.name for call in split_calls(answer)[1]})) or NO_CALL

    def measure(self, tokens: Tokens, logprobs: Sequence[float], total: float) -> ConfidenceMeasure:
        """As sure as the least sure function or argument; a text instead, as any text."""
        measured = text_measure(logprobs, total)
        probabilities = call_probabilities(tokens, self.spec.output_fields)
        return measured._replace(score=min(probabilities.values()), fields=probabilities) if probabilities else measured

    @property
    def parts(self) -> Sequence[str]:
        return tuple(self.spec.functions)

    parts_title: ClassVar[str] = "Functions"

    @classmethod
    def part_noun(cls, path: str) -> str:
        return "argument" if "." in path else "function"
