"""Makes golden rows of what people write, of predictions in the lake and of reviewers' corrections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from schemas.base import utc_now
from schemas.conversation import Answer, Call
from schemas.golden import GoldenPart, GoldenRow
from schemas.labels import CorrectionSubmitted
from schemas.tasks import TaskSpec
from services.dataset_builder.building.chat_format import answer_message
from services.scheduler.golden.file import GoldenLine, row_problem
from shared.answers import answer_form
from shared.conversation import chat_tools, form_asked_for, has_own_form, never_trained, tool_choice_asked_for
from shared.errors import ConfigurationError
from shared.privacy.redaction import Rules
from shared.privacy.redaction.spans import TextSpan
from shared.storage.predictions import LakePredictions

_WAY_OUT = "A golden row is a question with one right answer: docs/evaluation.md, `The golden set`."
FindPersonalData = Callable[[Sequence[str], Rules], Sequence[Sequence[TextSpan]]]
"""`Redactor.find`."""


def row_of_text(spec: TaskSpec, text: str, label: str, part: GoldenPart) -> GoldenRow:
    """Return the row of a question and its answer. Raises ConfigurationError for an answer that the task has not."""
    try:
        return GoldenLine(text=text, label=label, part=part).row(spec)
    except ValueError as error:
        raise ConfigurationError(f"this is no golden row: {row_problem(error)}", _WAY_OUT) from error


def row_of_prediction(spec: TaskSpec, lake: str, prediction_id: str, label: str, part: GoldenPart) -> GoldenRow:
    """Return the row of a prediction in the lake with its right answer.

    Raises ConfigurationError if it is not there or cannot be asked again, DependencyUnavailable while the lake is away.
    """
    predictions = LakePredictions(lake)
    found = predictions.find(spec.name, [prediction_id], utc_now().date()).get(prediction_id)
    if found is None and not predictions.exist():
        reason = f"the lake at {lake} has no predictions yet"
        raise ConfigurationError(reason, "prediction_log writes them there. Another lake is named by RATCHET_LAKE.")
    if found is None:
        raise ConfigurationError(
            f"the lake at {lake} has no prediction {prediction_id} of {spec.name}",
            "The id may be misspelt, or of another task. One that is older than three months, or that was forgotten, "
            "is given as a --file.",
        )
    whose = _Origin(prediction_id, found.user_hash, found.occurred_at)
    return _row(spec, found.call, [found.answer], label, part, whose)


def row_of_correction(spec: TaskSpec, correction: CorrectionSubmitted, part: GoldenPart) -> GoldenRow:
    """Return the row of a correction. Raises ConfigurationError for one that is no label or cannot be asked again."""
    if correction.label is None:
        raise ConfigurationError(
            f"{correction.correction_id} is a preference between two answers, not a label", _WAY_OUT
        )
    author = correction.suggested_by
    whose = _Origin(correction.prediction_id, correction.user_hash, correction.predicted_at, author)
    return _row(spec, correction.call, correction.answers, correction.label.strip(), part, whose)


class _Origin(NamedTuple):
    prediction_id: str
    user_hash: str | None
    predicted_at: datetime | None
    author_hash: str | None = None


def personal_data_in(spec: TaskSpec, rows: Sequence[GoldenRow], find: FindPersonalData) -> dict[str, str]:
    """Return, by row id, the kinds of personal data that seem to be in what people wrote: nothing replaces it there."""
    written = [
        (row.row_id, message.text)
        for row in rows if row.prediction_id is None  # What was logged has surrogates, which look alike.
        for message in row.messages if answer_form(spec).labels(message.text) is None
    ]  # fmt: skip
    found: dict[str, set[str]] = {}
    for (row_id, _), spans in zip(written, find([text for _, text in written], Rules.of(spec.redaction)), strict=True):
        found.setdefault(row_id, set()).update(span.kind for span in spans)
    return {row_id: ", ".join(sorted(kinds)) for row_id, kinds in found.items() if kinds}


def _row(
    spec: TaskSpec,
    call: Call,
    answers: Sequence[Answer],
    label: str,
    part: GoldenPart,
    whose: _Origin,
) -> GoldenRow:
    if (reason := never_trained(call, ())) is not None:
        raise ConfigurationError(
            f"{whose.prediction_id} cannot be asked again: {reason[1]}", "Choose another prediction."
        )
    tools = chat_tools(call.tools)
    asked: dict[str, Any] = {}
    if not has_own_form(spec) and not spec.labels:
        choice = tool_choice_asked_for(call) if tools else None
        asked = {"response_format": form_asked_for(call), "tool_choice": choice}
    messages = (*call.messages, answer_message(label, answers, tools))
    try:
        return GoldenLine(messages=messages, tools=tools, part=part, **asked, **whose._asdict()).row(spec)
    except ValueError as error:
        raise ConfigurationError(f"{whose.prediction_id} is no golden row: {row_problem(error)}", _WAY_OUT) from error
