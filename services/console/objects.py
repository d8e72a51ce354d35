"""Answers as reviewers give them: JSON by an extraction's schema, several labels, calls, or what is wrong. Pure."""

from __future__ import annotations

import json
from dataclasses import replace

from schemas.tasks import TaskKind, TaskSpec
from services.console.calls import checked_calls
from services.console.domain import ReviewAnswer
from shared.errors import InvalidMessage
from shared.grading.json_schema import canonical, read_answer
from shared.grading.json_values import NOT_JSON, json_or_nothing
from shared.grading.labels import canonical_labels


def as_object(answer: ReviewAnswer, spec: TaskSpec | None) -> ReviewAnswer:
    """Return a reviewer's answer in the spelling that is trained on; one label and free text as they are.

    Raises InvalidMessage that names the places where the answer breaks the schema. `spec` None: not known yet.
    """
    if answer.label is not None and spec is not None and spec.tools:
        return replace(answer, label=checked_calls(answer.label, spec))
    if answer.label is not None and spec is not None and spec.kind is TaskKind.MULTI_LABEL:
        try:
            return replace(answer, label=canonical_labels(answer.label, spec))
        except ValueError as error:
            raise InvalidMessage(f"label: {error}") from error
    if answer.label is None or spec is None or spec.output_schema is None:
        return answer
    if (problem := object_problem(answer.label, spec)) is not None:
        raise InvalidMessage(f"label: {problem}", f"Answers of {spec.name} are JSON by its output_schema.")
    return replace(answer, label=canonical(json_or_nothing(answer.label), spec.output_schema))


def object_problem(text: str, spec: TaskSpec | None) -> str | None:
    """Return what is wrong with an answer, for the person who writes it; None if nothing is."""
    if spec is None or spec.output_schema is None:
        return None
    try:
        read_answer(text, spec.output_schema)
    except ValueError as error:
        return str(error)
    return None


def laid_out(text: str, spec: TaskSpec | None) -> str:
    """Return an extraction's answer one field a line, to be edited; what is no JSON as it is."""
    if spec is None or spec.output_schema is None or (value := json_or_nothing(text)) is NOT_JSON:
        return text
    return json.dumps(value, indent=2, ensure_ascii=False)
