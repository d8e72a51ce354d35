"""Which of two generated answers people prefer. Pure.

What they chose of two, blind: a judge of texts is measured by it. And what they made of production's answer. By both a
model is trained where the task wants it (`training.preferences`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from schemas.conversation import Answer, Message
from schemas.datasets import Example, PreferredAnswer
from schemas.labels import CorrectionSubmitted, Preference
from schemas.tasks import TaskKind, TaskSpec
from services.dataset_builder.building.rows import BY_AGE, Row
from shared.answers import form_of_kind
from shared.conversation import chat_tools, never_trained
from shared.model.near_copies import AskedQuestions

MAX_PREFERENCES = 1_000
"""Those of the newest pairs of either source are published."""


class Preferences:
    """Collects choices as they are read; a person's newest one counts."""

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], CorrectionSubmitted] = {}

    def add(self, corrections: Iterable[CorrectionSubmitted]) -> None:
        """Note the choices among these."""
        for given in corrections:
            if given.preference is None:
                continue
            key = given.request_id, given.reviewer
            if key not in self._newest or _age(self._newest[key]) <= _age(given):
                self._newest[key] = given

    def newest(self, spec: TaskSpec) -> list[PreferredAnswer]:
        """Return the newest pairs of this revision of the task on which anyone could tell, oldest first."""
        by_pair: dict[str, list[CorrectionSubmitted]] = {}
        for given in sorted(self._newest.values(), key=_age):
            if given.preference != "cannot_tell" and _is_comparable(given, spec):
                by_pair.setdefault(given.request_id, []).append(given)
        pairs = sorted(by_pair.values(), key=lambda choices: _age(choices[-1]))
        return [_row(choices) for choices in pairs[-MAX_PREFERENCES:]]


def edits(train: Iterable[Example], rows: Iterable[Row], kind: TaskKind) -> list[PreferredAnswer]:
    """Return the newest pairs that corrections of generated answers make, oldest first: of rows to train on alone.

    `rows`: all that have a label. An answer that was cut, or accepted as it is, makes none.
    """
    examples = {} if kind.has_labels else {example.prediction_ids[0]: example for example in train}
    pairs = []
    for row in sorted((row for row in rows if row.prediction_id in examples), key=BY_AGE):
        example = examples[row.prediction_id]
        if not any(form_of_kind(kind).same(answer.plain, example.answer) for answer in row.answers) and (
            answered := next((answer for answer in row.answers if answer.is_whole), None)
        ):
            pairs.append(_edit(example, answered))
    return pairs[-MAX_PREFERENCES:]


def mark_held_out(
    pairs: Sequence[PreferredAnswer], held_out: Iterable[Sequence[Message]], spec: TaskSpec
) -> list[PreferredAnswer]:
    """Return the pairs, each marked whose prompt is one of those held out, or nearly. `held_out`: prompts."""
    questions = AskedQuestions(held_out, spec)
    return [pair.model_copy(update={"held_out": questions.contains(pair.prompt)}) for pair in pairs]


def _edit(example: Example, answered: Answer) -> PreferredAnswer:
    *_, written = example.messages
    text = written.content if isinstance(written.content, str) else ""
    return PreferredAnswer(
        source="edited",
        prompt=example.prompt,
        tools=example.tools,
        answers=(Answer(text=text, tool_calls=written.tool_calls), answered),
        preferred="a",
        prediction_ids=example.prediction_ids,
        correction_ids=example.correction_ids,
        user_hash=example.user_hash,
        author_hashes=example.author_hashes,
        predicted_at=example.predicted_at,
    )


def _age(given: CorrectionSubmitted) -> tuple[datetime, str]:
    return given.occurred_at, given.correction_id


def _is_comparable(given: CorrectionSubmitted, spec: TaskSpec) -> bool:
    """Return False for pairs of other prompts, and for those that cannot be shown to anyone again as they were."""
    whole = len(given.answers) == 2 and never_trained(given.call, given.answers) is None
    return whole and given.task_revision == spec.revision


def _row(choices: Sequence[CorrectionSubmitted]) -> PreferredAnswer:
    first = choices[0]
    return PreferredAnswer(
        prompt=first.call.messages,
        tools=chat_tools(first.call.tools),
        answers=(first.answers[0], first.answers[1]),
        preferred=_of_most([given.preference for given in choices if given.preference is not None]),
        prediction_ids=(first.prediction_id,),
        correction_ids=tuple(given.correction_id for given in choices),
        user_hash=first.user_hash,
        predicted_at=first.predicted_at,
    )


def _of_most(preferences: Sequence[Preference]) -> Preference:
    (first, count), *others = Counter(preferences).most_common(2)
    return "both_wrong" if others and others[0][1] == count else first
