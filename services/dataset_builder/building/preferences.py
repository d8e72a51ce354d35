"""What people chose of two answers, blind: nothing is trained on it, a judge of texts is measured by it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from schemas.datasets import PreferredAnswer
from schemas.labels import CorrectionSubmitted, Preference
from schemas.tasks import TaskSpec
from shared.conversation import never_trained

MAX_PREFERENCES = 1_000
"""Those of the newest pairs are published."""


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
