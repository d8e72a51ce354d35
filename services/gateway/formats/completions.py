"""OpenAI's (older) completions, in and out: prompts go on as they are; each answer is a prediction. No I/O.

The task's system prompt has no place in them. For the event a prompt is a message of the user; one that is a list of
token ids is that list as JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.domain import ChatMessage
from services.gateway.formats.api import (
    MAX_PREDICTIONS,
    ApiAnswer,
    Choice,
    Token,
    answer_count,
    bool_field,
    encode_json,
    finish_reason_of,
    read_choices,
    request_stream_usage,
)
from services.gateway.formats.chat import constrain
from services.gateway.formats.chunks import ChunkRelay, PartialChoice
from services.gateway.formats.rendering import compact_json
from services.gateway.formats.validation import bad_request, checked_text
from services.gateway.tasks.served import ServedTask


class CompletionRequest:
    """See `api.Asked`."""

    path: ClassVar[str] = "/v1/completions"
    __slots__ = (
        "_data",
        "_echo",
        "_include_usage",
        "_n",
        "_prompts",
        "_stream",
        "_wanted",
        "facts",
        "prediction_count",
    )

    def __init__(self, data: dict[str, Any], facts: ServedTask) -> None:
        self.facts = facts
        self._data = data
        self._stream = bool_field(data, "stream")
        self._n = answer_count(data, "n", facts)
        self._prompts = _prompts(data.get("prompt"))
        self.prediction_count = self._n * len(self._prompts)
        if self.prediction_count > MAX_PREDICTIONS:
            raise bad_request(
                f"{self.prediction_count} answers in one request; at most {MAX_PREDICTIONS} are given", "prompt"
            )
        self._include_usage = request_stream_usage(data, streams=self._stream)
        if facts.classifies:
            constrain(data, facts)
        self._echo = bool_field(data, "echo")
        self._wanted = data.get("logprobs")
        # With `echo` vLLM would send the prompt's too, and there is no confidence to be had.
        if (self._wanted is None and not self._echo) or isinstance(self._wanted, int):
            data["logprobs"] = max(int(self._wanted or 0), facts.top_logprobs)
        data.pop("user", None)

    def messages_for_event(self, number: int) -> list[ChatMessage]:
        return [{"role": "user", "content": self._prompts[number // self._n]}]

    def encode_for_upstream(self, model: str) -> bytes:
        self._data["model"] = model
        return encode_json(self._data)

    def parse_answer(self, body: Any) -> ApiAnswer:
        return read_choices(body, self._choice, self.prediction_count, "completion")

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["id"], body["model"] = ids[0], self.facts.name
        for choice in body["choices"]:
            self._without_what_was_not_asked(choice)
        return body

    def open_relay(self, ids: Sequence[str]) -> ChunkRelay | None:
        if not self._stream:
            return None
        return ChunkRelay(ids, self.facts.name, self._take, lambda part: "".join(part.text), self._include_usage)

    def _take(self, part: PartialChoice, choice: dict[str, Any]) -> None:
        part.text.append(str(choice.get("text") or ""))
        part.tokens += self._tokens(choice)
        self._without_what_was_not_asked(choice)

    def _choice(self, choice: Any) -> Choice:
        return Choice(str(choice["text"]), self._tokens(choice), finish_reason_of(choice))

    def _tokens(self, choice: dict[str, Any]) -> Sequence[Token]:
        """In the chat API's format. None with `echo`: the prompt's tokens would count as the answer's."""
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

    def _without_what_was_not_asked(self, choice: dict[str, Any]) -> None:
        if self._wanted is None:
            if "logprobs" in choice:
                choice["logprobs"] = None
        elif isinstance(self._wanted, int) and self._wanted < self.facts.top_logprobs and choice.get("logprobs"):
            logprobs = choice["logprobs"]
            # vLLM gives the chosen token beside those that were asked for.
            cut = [dict(list(top.items())[: self._wanted + 1]) if top else top for top in logprobs["top_logprobs"]]
            choice["logprobs"] = {**logprobs, "top_logprobs": cut}


def _prompts(prompt: Any) -> list[str]:
    """The texts of a prompt for the events. Raises HttpError 400."""
    several = isinstance(prompt, list) and bool(prompt) and all(isinstance(one, str | list) for one in prompt)
    texts = []
    for one in prompt if several else [prompt]:
        if not isinstance(one, str):
            if not isinstance(one, list) or not one or not all(type(token) is int for token in one):
                raise bad_request("`prompt` must be a text, a list of texts, or token ids", "prompt")
            one = compact_json(one)
        texts.append(checked_text(one, "prompt"))
    return texts
