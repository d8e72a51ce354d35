"""Redacts personal data in what reviewers type, before it is stored or published."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from schemas.conversation import ToolCall, plain_answer
from schemas.labels import LabelRequested
from schemas.task_settings import RedactionSettings
from schemas.tasks import TaskChanged
from services.console.domain import ReviewAnswer
from shared.answers import answer_form
from shared.errors import DependencyUnavailable
from shared.grading.tool_calls import WrittenCall, split_calls
from shared.privacy.redaction import Redacted, Redactor, Rules
from shared.privacy.redaction.json_texts import literals_of_answer, with_replacements


class AnswerRedactor:
    """Redacts answers. The redactor loads a language model, so it is built in a thread, when it is first needed."""

    def __init__(self, build: Callable[[], Redactor]) -> None:
        self._build = build
        self._redactor: Redactor | None = None
        self._lock = asyncio.Lock()

    async def redact(
        self, request: LabelRequested, answer: ReviewAnswer, task: TaskChanged | None, earlier: Sequence[str] = ()
    ) -> tuple[ReviewAnswer, Redacted]:
        """Return the answer without personal data, and what was replaced; nothing in labels chosen from a list.

        Surrogates in the question stay when they are copied into the answer, so that both agree; so do the `earlier`
        ones of an answer that is changed. `task` None: its settings are unknown, so the defaults apply. Raises
        DependencyUnavailable: never pass the answer on unredacted. JSON is redacted value by value, and stays JSON.
        """
        if answer.label is None or request.labels:
            return answer, Redacted(answer.label or "", 0, {})
        if task is not None and answer_form(task.spec).labels(answer.label) is not None:
            return answer, Redacted(answer.label, 0, {})
        rules = Rules.of(task.spec.redaction if task is not None else RedactionSettings())
        async with self._lock:
            try:
                redacted = await asyncio.to_thread(self._redact, answer.label, rules, [*_texts(request), *earlier])
            except Exception as error:  # Whatever the models raise, an answer that is not redacted is not stored.
                raise DependencyUnavailable(
                    f"the answer cannot be redacted: {error!r}", "The answer was not stored. Read the console's log."
                ) from error
        return replace(answer, label=redacted.text), redacted

    def _redact(self, text: str, rules: Rules, already: Sequence[str]) -> Redacted:
        if self._redactor is None:
            self._redactor = self._build()
        said, calls = split_calls(text)
        if calls:
            return self._redact_calls(said, calls, rules, already)
        if (found := literals_of_answer(text)) is None:
            return self._redactor.redact([text], rules, already)[0]
        kinds: Counter[str] = Counter()
        surrogates: list[str] = []
        results = self._redactor.redact([literal.text for literal in found], rules, already)
        for literal, result in zip(found, results, strict=True):
            if result.count:
                literal.put(result.text[literal.cue_length :])
                kinds.update(result.kinds)
                surrogates += result.surrogates
        return Redacted(with_replacements(text, found), kinds.total(), kinds, surrogates=tuple(surrogates))

    def _redact_calls(self, said: str, calls: Sequence[WrittenCall], rules: Rules, already: Sequence[str]) -> Redacted:
        """Arguments are JSON by themselves. Their functions' names are the task's."""
        parts = [self._redact(part, rules, already) for part in (said, *(call.arguments for call in calls))]
        redacted = [ToolCall(name=call.name, arguments=part.text) for call, part in zip(calls, parts[1:], strict=True)]
        kinds = sum((Counter(part.kinds) for part in parts), Counter[str]())
        surrogates = tuple(surrogate for part in parts for surrogate in part.surrogates)
        text = plain_answer(parts[0].text, None, tuple(redacted))
        return Redacted(text, kinds.total(), dict(kinds), surrogates=surrogates)


def _texts(request: LabelRequested) -> list[str]:
    """Return everything that the reviewer could copy."""
    messages, answers = request.call.messages, request.answers
    reasoning = [message.reasoning or "" for message in messages] + [answer.reasoning or "" for answer in answers]
    suggestion = [request.suggestion or ""]
    return [message.text for message in messages] + [answer.plain for answer in answers] + reasoning + suggestion
