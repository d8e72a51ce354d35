"""OpenAI's chat completions, in and out: what a client may send, what vLLM is asked, what the client gets. No I/O.

What the client sends goes to vLLM as it came, whatever vLLM takes. The gateway's own are: `model` (the task's arm),
`user` (never passed on), the task's system prompt where the client has none, log-probabilities (asked for always, given
to who asked), a stream's usage (the same), and for a classification the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from services.gateway.domain import ChatMessage
from services.gateway.formats.api import (
    ApiAnswer,
    Choice,
    answer_count,
    bool_field,
    encode_json,
    finish_reason_of,
    read_choices,
    request_stream_usage,
)
from services.gateway.formats.chunks import ChunkRelay, PartialChoice
from services.gateway.formats.rendering import answer_text, check_message_count, messages_of, with_tool_calls
from services.gateway.formats.validation import bad_request
from services.gateway.tasks.served import ServedTask

_OVERRULED_BY_LABELS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "min_tokens", "stop",
    "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "response_format", "structured_outputs", "tools",
    "tool_choice", "functions", "function_call", "parallel_tool_calls", "logit_bias", "bad_words", "allowed_token_ids",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "use_beam_search", "echo",
    "suffix", "best_of", "skip_special_tokens", "spaces_between_special_tokens", "continue_final_message",
    "add_generation_prompt", "vllm_xargs",
)  # fmt: skip
"""A classification's answer is one of the labels, whole: what could change or cut it is not passed on."""


def constrain(data: dict[str, Any], facts: ServedTask) -> None:
    """Make a request, of chat or completions, answer with one of the task's labels."""
    for name in _OVERRULED_BY_LABELS:
        data.pop(name, None)
    data["temperature"] = 0.0
    data["structured_outputs"] = facts.constraint
    data["max_tokens"] = facts.spec.max_answer_tokens


class ChatRequest:
    """See `api.Asked`."""

    path: ClassVar[str] = "/v1/chat/completions"
    __slots__ = ("_data", "_include_usage", "_stream", "_top", "_turns", "_wants_logprobs", "facts", "prediction_count")

    def __init__(self, data: dict[str, Any], facts: ServedTask) -> None:
        self.facts = facts
        self._data = data
        self._stream = bool_field(data, "stream")
        self.prediction_count = answer_count(data, "n", facts)
        self._include_usage = request_stream_usage(data, streams=self._stream)
        self._wants_logprobs = bool_field(data, "logprobs")
        self._top = data.get("top_logprobs")
        self._turns = prepare_messages(data, facts)
        if facts.classifies:
            constrain(data, facts)
        elif data.get("max_tokens") is None and data.get("max_completion_tokens") is None:
            data["max_tokens"] = facts.spec.max_answer_tokens
        data.pop("user", None)
        data.update(facts.asks)
        if not self._wants_logprobs:
            if "top_logprobs" not in facts.asks:
                data.pop("top_logprobs", None)
        elif isinstance(self._top, int):
            data["top_logprobs"] = max(self._top, facts.top_logprobs)

    def messages_for_event(self, number: int) -> list[ChatMessage]:
        return self._turns

    def encode_for_upstream(self, model: str) -> bytes:
        self._data["model"] = model
        return encode_json(self._data)

    def parse_answer(self, body: Any) -> ApiAnswer:
        return read_choices(body, _choice, self.prediction_count, "chat completion")

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["id"], body["model"] = ids[0], self.facts.name
        for choice in body["choices"]:
            self._without_what_was_not_asked(choice)
        return body

    def open_relay(self, ids: Sequence[str]) -> ChunkRelay | None:
        if not self._stream:
            return None
        return ChunkRelay(ids, self.facts.name, self._take, _text, self._include_usage)

    def _take(self, part: PartialChoice, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        if text := delta.get("content") or delta.get("refusal"):
            part.text.append(str(text))
        for call in delta.get("tool_calls") or ():
            _add_call(part.calls, call)
        if logprobs := choice.get("logprobs"):
            part.tokens += logprobs.get("content") or ()
        self._without_what_was_not_asked(choice)

    def _without_what_was_not_asked(self, choice: dict[str, Any]) -> None:
        logprobs = choice.get("logprobs")
        if not logprobs:
            return
        if not self._wants_logprobs:
            choice["logprobs"] = None
        elif isinstance(self._top or 0, int) and (self._top or 0) < self.facts.top_logprobs:
            # Copies: the tokens themselves are still needed whole.
            tokens = logprobs.get("content") or ()
            cut = [{**token, "top_logprobs": token.get("top_logprobs", [])[: self._top or 0]} for token in tokens]
            choice["logprobs"] = {**logprobs, "content": cut}


def prepare_messages(data: dict[str, Any], facts: ServedTask) -> list[ChatMessage]:
    """The conversation for the event; in `data` it is made the one that the model is to see. Raises HttpError 400."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a list with at least one message", "messages")
    turns = messages_of(messages)
    for message in messages:  # OpenAI's newer name of the same; chat templates know the old one.
        if message["role"] == "developer":
            message["role"] = "system"
    if facts.system is not None and all(turn["role"] != "system" for turn in turns):
        messages.insert(0, facts.system)
        turns.insert(0, facts.system)
    check_message_count(turns, "messages")
    return turns


def _choice(choice: Any) -> Choice:
    logprobs = choice.get("logprobs")
    tokens = (logprobs.get("content") or ()) if logprobs else ()
    return Choice(answer_text(choice["message"]), tokens, finish_reason_of(choice))


def _add_call(calls: dict[int, dict[str, Any]], delta: dict[str, Any]) -> None:
    """A tool call arrives in pieces: its name first, then its arguments bit by bit."""
    call = calls.setdefault(delta.get("index", 0), {"name": None, "arguments": ""})
    function = delta.get("function") or {}
    call["name"] = function.get("name") or call["name"]
    call["arguments"] += function.get("arguments") or ""


def _text(part: PartialChoice) -> str:
    text = "".join(part.text)
    calls = [{"function": part.calls[number]} for number in sorted(part.calls)]
    return with_tool_calls(text, calls) if calls else text
