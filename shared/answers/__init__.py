"""What the answers of a task are: one class for each kind, each in a file of its own.

What a service does with an answer, it asks of the task's form; `form.py` has everything that a form says. A new kind is
a file here and its name in `_FORMS`; what else it needs, CONTRIBUTING says.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas.tasks import TaskKind, TaskSpec
from shared.answers.calls import Calls
from shared.answers.extraction import Extraction
from shared.answers.form import AnswerForm as AnswerForm
from shared.answers.form import InvalidAnswer as InvalidAnswer
from shared.answers.label import OneLabel
from shared.answers.label_set import LabelSet
from shared.answers.text import WrittenText

_FORMS: Mapping[TaskKind, type[AnswerForm]] = {
    form.kind: form for form in (OneLabel, LabelSet, Extraction, Calls, WrittenText)
}


def answer_form(spec: TaskSpec) -> AnswerForm:
    """The form of a task's answers."""
    return _FORMS[spec.kind](spec)


def form_of_kind(kind: TaskKind) -> type[AnswerForm]:
    """The form of a kind of answers: its class methods need no task."""
    return _FORMS[kind]
