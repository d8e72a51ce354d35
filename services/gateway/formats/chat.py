"""OpenAI's chat completions: the client's request, what is sent to vLLM, what is sent back. No I/O.

Every field goes to vLLM unchanged except: `model` (the adapter that answers), the task's
system prompt if the client sent none, log-probabilities and a stream's usage (always requested; the client gets them
only if it asked), for a classification the fields that would change the answer's format, and the task's schema or
functions where the client names none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from services.gateway.formats.chunks import ChoicesRequest, PartialChoice
from services.gateway.formats.conversation import EventConversation, Object, answer_text, tool_calls_of
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import bad_request, bool_field
from services.gateway.tasks.served import ServedTask

_OVERRULED_BY_LABELS = (
    "temperature", "top_p", "top_k", "min_p", "max_tokens", "max_completion_tokens", "min_tokens", "stop",
    "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "response_format", "structured_outputs", "tools",
    "tool_choice", "functions", "function_call", "parallel_tool_calls", "logit_bias", "bad_words", "allowed_token_ids",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "length_penalty", "use_beam_search", "echo",
    "suffix", "best_of", "skip_special_tokens", "spaces_between_special_tokens", "continue_final_message",
    "add_generation_prompt", "vllm_xargs", "repetition_detection",
)  # fmt: skip
"""Removed from a classification's request: the answer must be one of the labels, whole."""


_OWN_FORMATS = ("response_format", "structured_outputs")
_OWN_TOOLS = ("tools", "functions")
_LOGPROBS = ("logprobs", "top_logprobs")


def constrain_to_labels(data: dict[str, Any], task: ServedTask) -> None:
    """Make a chat or completions request answer with one of the task's labels."""
    for name in _OVERRULED_BY_LABELS:
        data.pop(name, None)
    data["temperature"] = 0.0
    data["structured_outputs"] = task.constraint
    data["max_tokens"] = task.spec.max_answer_tokens


def names_form(wanted: Any) -> bool:
    """Return True for a format that says which form an answer has. `text` is each API's default: what sends it, as n8n
    does, asks for nothing."""
    return bool(wanted) and not (isinstance(wanted, dict) and wanted.get("type") == "text")


def ask_for_task_format(data: dict[str, Any], task: ServedTask) -> None:
    """Make a chat or completions request answer by the task's schema, if it has one and the client names no format."""
    if task.response_format is not None and not any(names_form(data.get(name)) for name in _OWN_FORMATS):
        data["response_format"] = task.response_format


def offer_task_tools(data: dict[str, Any], fields: Mapping[str, Any]) -> None:
    """Make a request offer a task's functions, if the client names none and no format; each of `fields` if it is unset.

    `fields`: of the request's API.
    """
    if not fields or any(map(data.get, _OWN_TOOLS)) or any(names_form(data.get(name)) for name in _OWN_FORMATS):
        return
    for name, value in fields.items():
        if data.get(name) in (None, []):  # Agents without tools send an empty list.
            data[name] = value


class ChatRequest(ChoicesRequest):
    path: ClassVar[str] = "/v1/chat/completions"
    api: ClassVar[str] = "chat"
    answer_kind: ClassVar[str] = "chat completion"
    __slots__ = ("_added_messages", "_top", "_wants_logprobs")

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data
        self._stream = bool_field(data, "stream")
        self.prediction_count = answer_count(data, "n", task)
        self.include_usage = request_stream_usage(data, streams=self._stream)
        self._wants_logprobs = bool_field(data, "logprobs")
        self._top = data.get("top_logprobs")
        self._added_messages = prepare_messages(data, task)
        if task.classifies:
            constrain_to_labels(data, task)
        keep_tokens_measurable(data, task)
        ask_for_task_format(data, task)
        offer_task_tools(data, task.tool_fields)
        if data.get("max_tokens") is None and data.get("max_completion_tokens") is None:
            data["max_tokens"] = task.spec.max_answer_tokens
        data.update(task.confidence_fields)
        if not self._wants_logprobs:
            if "top_logprobs" not in task.confidence_fields:
                data.pop("top_logprobs", None)
        elif isinstance(self._top, int):
            data["top_logprobs"] = top_count(self._top, task.top_logprobs)

    def adapt_to_external(self, field: str) -> bool:
        """OpenAI's models that reason have no log-probabilities, no temperature, and another name for the limit."""
        data = self._data
        if field in _LOGPROBS and not self._wants_logprobs:
            return any([data.pop(name, None) is not None for name in _LOGPROBS])
        if field == "temperature" and self.task.classifies:
            return data.pop(field, None) is not None
        if field == "max_tokens" and (limit := data.pop(field, None)) is not None:
            data.setdefault("max_completion_tokens", limit)
            return True
        return self.do_without(field)

    def calls(self, media: MediaReferences, *, external: bool = False) -> list[Object]:
        asked, constrained = self._asked(external=external)
        conversation = EventConversation(media).add_chat_messages(asked["messages"], added=self._added_messages)
        return [logged_call(self.api, conversation, asked, constrained=constrained, format_field="response_format")]

    def parse_choice(self, choice: Any) -> Choice:
        logprobs = choice.get("logprobs")
        tokens = (logprobs.get("content") or ()) if logprobs else ()
        return choice_of_message(choice["message"], tokens, finish_reason_of(choice))

    def add_chunk(self, part: PartialChoice, choice: dict[str, Any]) -> None:
        delta = choice.get("delta") or {}
        content = delta.get("content")
        if type(content) is str and len(delta) == 1:  # As most are.
            part.text.append(content)
        else:
            self._add_delta(part, delta)
        if logprobs := choice.get("logprobs"):
            part.tokens += logprobs.get("content") or ()
            self.drop_unrequested_logprobs(choice)

    @staticmethod
    def _add_delta(part: PartialChoice, delta: dict[str, Any]) -> None:
        part.text.append(answer_text(delta.get("content")))
        if has_more_than_text(delta):
            part.truncated = True
        if refusal := delta.get("refusal"):
            part.refusal.append(str(refusal))
        if reasoning := delta.get("reasoning") or delta.get("reasoning_content"):
            part.reasoning.append(str(reasoning))
        for call in delta.get("tool_calls") or ():
            part.add_call(call)
        if function := delta.get("function_call"):  # OpenAI's older form of one call.
            part.add_call({"function": function})

    def drop_unrequested_logprobs(self, choice: dict[str, Any]) -> None:
        logprobs = choice.get("logprobs")
        if not logprobs:
            return
        if not self._wants_logprobs:
            choice["logprobs"] = None
        elif isinstance(self._top or 0, int) and 0 <= (self._top or 0) < self.task.top_logprobs:
            # Copies, because confidence still needs the tokens with all alternatives.
            tokens = logprobs.get("content") or ()
            cut = [{**token, "top_logprobs": (token.get("top_logprobs") or [])[: self._top or 0]} for token in tokens]
            choice["logprobs"] = {**logprobs, "content": cut}


def prepare_messages(data: dict[str, Any], task: ServedTask) -> int:
    """Change `data["messages"]` to what the model sees; return how many are added in front. Raises HttpError 400."""
    messages = data.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_request("`messages` must be a list with at least one message", "messages")
    has_system = False
    for message in messages:
        if isinstance(message, dict) and (role := message.get("role")) in ("system", "developer"):
            has_system = True
            # OpenAI's newer name of `system`; chat templates know the old one. vLLM reads `tools` of the new one only.
            if role == "developer" and not message.get("tools"):
                message["role"] = "system"
    if task.system is None or has_system:
        return 0
    messages.insert(0, task.system)
    return 1


def choice_of_message(message: Any, tokens: Sequence[Token], finish_reason: str | None) -> Choice:
    """The answer in a message of the assistant. Raises ValueError if it is no message."""
    if not isinstance(message, dict):
        raise ValueError("not a message")
    content, calls = message.get("content"), message.get("tool_calls")
    refusal, reasoning = message.get("refusal"), message.get("reasoning") or message.get("reasoning_content")
    if calls is None and isinstance(message.get("function_call"), dict):
        calls = [{"function": message["function_call"]}]
    return Choice(
        answer_text(content),
        tokens,
        finish_reason,
        tool_calls_of(calls, "tool_calls") if isinstance(calls, list) and calls else (),
        refusal if isinstance(refusal, str) and refusal else None,
        reasoning if isinstance(reasoning, str) and reasoning else None,
        has_more_than_text(message),
    )


def has_more_than_text(message: Mapping[str, Any]) -> bool:
    """Return True for an answer, or a piece of one, that has sound, or parts where a text is expected."""
    content = message.get("content")
    return message.get("audio") is not None or not (content is None or isinstance(content, str))
