"""An engine for tests that ask models: it answers by a function, keeps what it was asked, and fails where told to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.conversation import JsonObject
from shared.model.inference import Completion


@dataclass(frozen=True)
class Request:
    """What `FakeEngine.complete` was called with. `text`: the last message's."""

    model: str
    messages: Sequence[dict[str, Any]]
    tools: Sequence[JsonObject]
    choices: tuple[str, ...]
    max_tokens: int
    fields: Mapping[str, Any]

    @property
    def text(self) -> str:
        return str(self.messages[-1]["content"])


class FakeEngine:
    """What an evaluation asks of an `InferenceClient`. An `answer` that is an error is raised, at every request.

    `errors`: by a request's text, what is raised before it is answered, one a request.
    """

    def __init__(
        self,
        answer: Callable[[Request], str | Completion | Exception],
        errors: Mapping[str, list[Exception]] | None = None,
    ) -> None:
        self._answer = answer
        self._errors = errors or {}
        self.requests: list[Request] = []

    async def complete(
        self,
        model: str,
        messages: Sequence[dict[str, Any]],
        *,
        tools: Sequence[JsonObject],
        choices: Sequence[str],
        max_tokens: int,
        fields: Mapping[str, Any],
    ) -> Completion:
        request = Request(model, messages, tools, tuple(choices), max_tokens, fields)
        self.requests.append(request)
        if errors := self._errors.get(request.text):
            raise errors.pop(0)
        answer = self._answer(request)
        if isinstance(answer, Exception):
            raise answer
        return Completion(answer, None, 1, 5, "stop", 10.0) if isinstance(answer, str) else answer


def first_letter(request: Request) -> Completion:
    """Answer "a" or "b", the first letter of the question, three times as probable as the other."""
    letter = request.text[0]
    listed = [
        {"token": letter, "logprob": math.log(0.6)},
        {"token": "ab"[letter == "a"], "logprob": math.log(0.2)},
    ]
    token = {**listed[0], "top_logprobs": listed}
    return Completion(letter, token["logprob"], 1, 5, "stop", 10.0, (token,))
