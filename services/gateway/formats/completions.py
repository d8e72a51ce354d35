"""OpenAI's older completions API: prompts are passed on unchanged; each answer is a prediction. No I/O.

The task's system prompt is not used here. In the event a prompt is a user message; a prompt of token ids is a part of
its own type with that list as JSON, and one of embeddings is by reference, as a picture is. A request with several
prompts is as many requests that came together: each has an event, with its own prompt alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.formats.api import (
    MAX_PREDICTIONS,
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
from shared.conversation.requests import EMBEDS, TOKEN_IDS


class CompletionRequest(ChoicesRequest):
    path: ClassVar[str] = "/v1/completions"
    answer_kind: ClassVar[str] = "completion"
    __slots__ = ("_echo", "_embeds", "_n", "_prompts", "_top")

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data
        self._stream = bool_field(data, "stream")
        self._n = answer_count(data, "n", task)
        self._embeds = _embeds(data.get("prompt_embeds"))
        prompt = data.get("prompt")
        self._prompts = [] if prompt is None and self._embeds else _prompts(prompt)
        self.prediction_count = self._n * (len(self._embeds) + len(self._prompts))
        if self.prediction_count > MAX_PREDICTIONS:
            message = f"{self.prediction_count} answers in one request; at most {MAX_PREDICTIONS} are allowed"
            raise bad_request(message, "prompt")
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

    def calls(self, media: MediaReferences, *, external: bool = False) -> list[Object]:
        asked, constrained = self._asked(external=external)
        # vLLM answers those of embeddings first.
        embeds = [[{"type": EMBEDS, "media": media.reference(EMBEDS, part)}] for part in self._embeds]
        prompts = [*({"role": "user", "content": content} for content in embeds), *self._prompts]
        return [_call(prompt, media, asked, constrained=constrained) for prompt in prompts]

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


def _call(prompt: Object, media: MediaReferences, asked: dict[str, Any], *, constrained: bool) -> Object:
    conversation = EventConversation(media)
    conversation.messages.append(prompt)
    return logged_call("completions", conversation, asked, constrained=constrained, format_field="response_format")


def _prompts(prompt: Any) -> list[Object]:
    """The prompts as messages, for the events. Raises HttpError 400."""
    several = isinstance(prompt, list) and bool(prompt) and all(isinstance(item, str | list) for item in prompt)
    return [{"role": "user", "content": _content(item)} for item in (prompt if several else [prompt])]


def _embeds(given: Any) -> list[Object]:
    """The prompts that are embeddings, each as vLLM's part of the chat API. Raises HttpError 400."""
    texts = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(text, str) for text in texts):
        raise bad_request("`prompt_embeds` must be base64, or a list of it", "prompt_embeds")
    return [{"type": EMBEDS, "data": text} for text in texts]


def _content(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(type(token) is int for token in prompt):
        raise bad_request("`prompt` must be a text, a list of texts, or token ids", "prompt")
    return [{"type": TOKEN_IDS, "text": encode_json(prompt).decode()}]
