"""OpenAI's older completions API: a prompt is passed on unchanged; each answer is a prediction. No I/O.

The task's system prompt is not used here. In the event a prompt is a user message; a prompt of token ids is a part of
its own type with that list as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.formats.api import (
    Choice,
    Token,
    answer_count,
    finish_reason_of,
    keep_tokens_measurable,
    request_stream_usage,
    top_count,
)
from services.gateway.formats.calls import logged_call
from services.gateway.formats.chat import ask_for_task_format, constrain_to_labels
from services.gateway.formats.chunks import ChoicesRequest, PartialChoice
from services.gateway.formats.conversation import EventConversation, Object
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import bad_request, bool_field
from services.gateway.json_codec import encode_json
from services.gateway.tasks.served import ServedTask
from shared.conversation.requests import TOKEN_IDS


class CompletionRequest(ChoicesRequest):
    path: ClassVar[str] = "/v1/completions"
    answer_kind: ClassVar[str] = "completion"
    __slots__ = ("_echo", "_prompt", "_top")

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data
        self._stream = bool_field(data, "stream")
        self.prediction_count = answer_count(data, "n", task)
        self._prompt = _content(data.get("prompt"))
        self.include_usage = request_stream_usage(data, streams=self._stream)
        if task.classifies:
            constrain_to_labels(data, task)
        if task.tool_fields:
            raise bad_request(f"{task.name} answers by calling functions: send its requests to /v1/chat/completions")
        keep_tokens_measurable(data, task)
        ask_for_task_format(data, task)
        self._echo = bool_field(data, "echo")
        self._top = data.get("logprobs")
        # With `echo` vLLM would send the prompt's log-probabilities too, and confidence cannot be computed.
        if (self._top is None and not self._echo) or isinstance(self._top, int):
            data["logprobs"] = top_count(int(self._top or 0), task.top_logprobs)

    def call(self, media: MediaReferences) -> Object:
        data, constrained = self._data, self.task.classifies
        conversation = EventConversation(media)
        conversation.messages.append({"role": "user", "content": self._prompt})
        return logged_call("completions", conversation, data, constrained=constrained, format_field="response_format")

    def parse_choice(self, choice: Any) -> Choice:
        return Choice(str(choice["text"]), self._tokens(choice), finish_reason_of(choice))

    def add_chunk(self, part: PartialChoice, choice: dict[str, Any]) -> None:
        part.text.append(str(choice.get("text") or ""))
        part.tokens += self._tokens(choice)
        self.drop_unrequested_logprobs(choice)

    def _tokens(self, choice: dict[str, Any]) -> Sequence[Token]:
        """The tokens in the chat API's format; empty with `echo`, where the prompt's would count as the answer's."""
        logprobs = choice.get("logprobs")
        if not logprobs or self._echo:
            return ()
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        return [
            {
                "token": token, "logprob": logprob,
                "top_logprobs": [{"token": name, "logprob": value} for name, value in (top or {}).items()],
            }
            for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
        ]  # fmt: skip

    def drop_unrequested_logprobs(self, choice: dict[str, Any]) -> None:
        if self._top is None:
            if "logprobs" in choice:
                choice["logprobs"] = None
        elif isinstance(self._top, int) and 0 <= self._top < self.task.top_logprobs and choice.get("logprobs"):
            logprobs = choice["logprobs"]
            # vLLM gives the chosen token in addition to those that were asked for.
            if (tops := logprobs.get("top_logprobs")) is not None:
                cut = [dict(list(top.items())[: self._top + 1]) if top else top for top in tops]
                choice["logprobs"] = {**logprobs, "top_logprobs": cut}


def _content(prompt: Any) -> Any:
    """The content of the event's message. Raises HttpError 400."""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
        message = "`prompt` must be a text or token ids; send each of several prompts in a request of its own"
        raise bad_request(message, "prompt")
    return [{"type": TOKEN_IDS, "text": encode_json(prompt).decode()}]
