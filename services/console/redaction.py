"""Personal data out of what reviewers type, before it is stored or told to anybody."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace

from schemas.labels import LabelRequested
from schemas.tasks import RedactionSettings, TaskChanged
from services.console.domain import ReviewAnswer
from shared.errors import DependencyUnavailable
from shared.privacy.redaction import Redacted, Rules, TextRedactor


class AnswerRedactor:
    """Redacts answers. The redactor loads a language model, so it is built in a thread, when first needed."""

    def __init__(self, build: Callable[[], TextRedactor]) -> None:
        self._build = build
        self._redactor: TextRedactor | None = None
        self._one_at_a_time = asyncio.Lock()

    async def clean(
        self, request: LabelRequested, answer: ReviewAnswer, task: TaskChanged | None
    ) -> tuple[ReviewAnswer, int]:
        """The answer without personal data, and how many pieces were replaced. A label that was chosen has none.

        The names in the question are made up already; copied into an answer they stay, so that the two agree.
        `task` None: not known yet, everything is redacted. Raises DependencyUnavailable: never let it through raw.
        """
        if answer.label is None or request.labels:
            return answer, 0
        rules = Rules.of(task.spec.redaction if task is not None else RedactionSettings())
        asked = [message.content for message in request.messages]
        async with self._one_at_a_time:
            try:
                redacted = await asyncio.to_thread(self._redact, answer.label, rules, [*asked, *request.answers])
            except Exception as error:
                raise DependencyUnavailable(
                    f"the answer cannot be redacted: {error!r}", "It was not stored. Read the console's log."
                ) from error
        return replace(answer, label=redacted.text), redacted.count

    def _redact(self, text: str, rules: Rules, already: Sequence[str]) -> Redacted:
        if self._redactor is None:
            self._redactor = self._build()
        return self._redactor.redact([text], rules, already)[0]
