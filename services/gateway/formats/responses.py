"""OpenAI's responses API as vLLM serves it: one answer to a conversation that the request carries whole. No I/O.

In the event, `instructions` is the system message, the input's items are messages (`response_items.py`) and the output
is the answer.
A response's id is the prediction's id and nothing is stored under it, so requests that refer to an earlier response
are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from services.gateway.formats.api import (
    ApiAnswer,
    ApiRequest,
    Choice,
    StreamFailed,
    Token,
    TokenUsage,
    keep_tokens_measurable,
    token_usage,
    top_count,
    with_answer_tokens,
)
from services.gateway.formats.calls import logged_call
from services.gateway.formats.chat import names_form, offer_task_tools
from services.gateway.formats.chunks import DONE, parse_event
from services.gateway.formats.conversation import EventConversation, Object, tool_call
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.response_items import add_items, has_system_message
from services.gateway.formats.validation import bad_request, bool_field, text_field
from services.gateway.json_codec import encode_json
from services.gateway.tasks.served import ServedTask
from shared.http import HttpError

_LOGPROBS = "message.output_text.logprobs"
_UNSUPPORTED = {
    "previous_response_id": "responses are not stored here: send the whole conversation as `input`",
    "previous_input_messages": "what the model sees could not be logged: send it as `input`",
    "conversation": "conversations are not stored here: send all of it as `input`",
    "background": "responses are not stored here to be fetched later: wait for the answer, or stream it",
}
_OVERRULED_BY_LABELS = (
    "temperature", "top_p", "top_k", "min_p", "max_output_tokens", "stop", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output", "text", "structured_outputs", "tools", "tool_choice", "logit_bias",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "skip_special_tokens", "vllm_xargs",
)  # fmt: skip
_LAST_EVENTS = {"response.completed", "response.incomplete"}
_FINISH_REASONS = {"completed": "stop", "max_output_tokens": "length"}
_CALLS = ("function_call", "custom_tool_call")
_REASONING_DELTAS = {
    "response.reasoning_text.delta", "response.reasoning.delta", "response.reasoning_summary_text.delta",
}  # fmt: skip


class ResponsesRequest(ApiRequest):
    path: ClassVar[str] = "/v1/responses"
    prediction_count = 1
    __slots__ = ("_echoed", "_stream", "_top", "_wants_logprobs")

    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        self.task = task
        self._data = data
        self._stream = bool_field(data, "stream")
        for name, reason in _UNSUPPORTED.items():
            if data.get(name):
                raise bad_request(f"`{name}` is not supported: {reason}", name)
        self._echoed = {name: data.get(name) for name in ("instructions", "user", "metadata")}
        encode_json(self._echoed["metadata"])  # It must be possible to send it back.
        _prepare_input(data, task)
        if task.classifies:
            for name in _OVERRULED_BY_LABELS:
                data.pop(name, None)
            data |= {"temperature": 0.0, "structured_outputs": task.constraint}
        keep_tokens_measurable(data, task)
        _ask_for_task_format(data, task)
        if not _own_format(data):
            offer_task_tools(data, task.responses_tool_fields)
        if data.get("max_output_tokens") is None:
            data["max_output_tokens"] = task.spec.max_answer_tokens
        include = data.get("include")
        include = include if isinstance(include, list) else []
        self._top = data.get("top_logprobs")
        self._wants_logprobs = _LOGPROBS in include
        if not self._wants_logprobs:
            data["include"] = [*include, _LOGPROBS]
            data["top_logprobs"] = task.top_logprobs
        elif self._top is None or isinstance(self._top, int):
            data["top_logprobs"] = top_count(self._top or 0, task.top_logprobs)

    def do_without(self, field: str) -> bool:
        """vLLM has no log-probabilities of gpt-oss in this API, and OpenAI none of models that reason."""
        include = self._data.get("include") or []
        if field not in ("logprobs", "top_logprobs", "include") or self._wants_logprobs or _LOGPROBS not in include:
            return False
        self._data["include"] = [name for name in include if name != _LOGPROBS]
        self._data["top_logprobs"] = self._top
        return True

    def adapt_to_external(self, field: str) -> bool:
        """OpenAI's models that reason have no temperature either."""
        if field == "temperature" and self.task.classifies:
            return self._data.pop(field, None) is not None
        return self.do_without(field)

    def calls(self, media: MediaReferences, *, external: bool = False) -> list[Object]:
        asked, constrained = self._asked(external=external)
        conversation = EventConversation(media)
        if instructions := asked.get("instructions"):
            conversation.messages.append({"role": "system", "content": instructions})
        given = asked["input"]
        if isinstance(given, str):
            conversation.messages.append({"role": "user", "content": given})
        else:
            add_items(conversation, given)
        if not conversation.messages:
            raise bad_request("`input` has no message", "input")
        if asked.get("prompt"):  # A template that the provider stores: what the model sees is not here.
            conversation.truncated = True
        return [logged_call("responses", conversation, asked, constrained=constrained, format_field="text")]

    def parse_answer(self, body: Any) -> ApiAnswer:
        try:
            choice = _parse_output(body)
            usage = body.get("usage")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a response: {error!r}") from error
        return ApiAnswer([choice], with_answer_tokens(token_usage(usage, "input", "output"), [choice]))

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body |= {"id": ids[0], "model": self.task.name, **self._echoed}
        if not self._wants_logprobs:
            body["top_logprobs"] = None
        elif isinstance(self._top or 0, int):
            body["top_logprobs"] = self._top or 0
        for item in body.get("output") or ():
            self.drop_unrequested_logprobs(item)
        return body

    def drop_unrequested_logprobs(self, item: dict[str, Any]) -> None:
        """Drop log-probabilities from an output item. Parse the item before: confidence needs them."""
        for part in item.get("content") or ():
            if part.get("logprobs"):
                part["logprobs"] = self.requested_tokens(part["logprobs"]) if self._wants_logprobs else None

    def requested_tokens(self, tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the tokens with as many alternatives as the client asked for."""
        if not self._wants_logprobs:
            return []
        top = self._top if isinstance(self._top, int) else 0
        if top < 0:
            return list(tokens)
        return [{**token, "top_logprobs": (token.get("top_logprobs") or [])[:top]} for token in tokens]

    def open_relay(self, ids: Sequence[str]) -> ResponseRelay | None:
        return ResponseRelay(self, ids) if self._stream else None


class ResponseRelay:
    """A `StreamRelay` of response events. It holds back the last one, which has the whole answer.

    Of a stream that is cut, a call whose arguments had not all come is left out: nobody could run it.
    """

    def __init__(self, request: ResponsesRequest, ids: Sequence[str]) -> None:
        self._request = request
        self._ids = ids
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._refusal: list[str] = []
        self._calls: list[Object] = []
        self._tokens: list[Token] = []
        self._last: dict[str, Any] = {}
        self._answer: ApiAnswer | None = None
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        if data.startswith(DONE):
            return b""
        event = parse_event(data)
        kind = event.get("type")
        if kind in ("error", "response.failed"):
            raise StreamFailed(_error_body(event))
        try:
            return self._relay(str(kind), event)
        except (KeyError, TypeError, AttributeError, HttpError) as error:
            raise ValueError(f"not an event of a response: {error!r}") from error

    def _relay(self, kind: str, event: dict[str, Any]) -> bytes:
        if kind == "response.output_text.delta":
            self._text.append(str(event["delta"]))
            self._tokens += event.get("logprobs") or ()
        elif kind in _REASONING_DELTAS:
            self._reasoning.append(str(event["delta"]))
        elif kind == "response.refusal.delta":
            self._refusal.append(str(event["delta"]))
        elif kind == "response.output_item.done" and event["item"].get("type") in _CALLS:
            self._calls.append(_call_of(event["item"]))
        response = event.get("response")
        if kind in _LAST_EVENTS and response is not None:
            self._answer = self._request.parse_answer(response)
            if not self._answer.choices[0].tokens:  # vLLM sends them in the deltas only.
                whole = self._answer.choices[0]._replace(tokens=self._tokens)
                self._answer = self._answer._replace(choices=[whole])
        if event.get("logprobs"):
            event["logprobs"] = self._request.requested_tokens(event["logprobs"])
        for item in (event.get("item"), {"content": [event["part"]]} if event.get("part") else None):
            if item is not None:
                self._request.drop_unrequested_logprobs(item)
        if response is not None:
            self._request.rewrite_for_client(response, self._ids)
        if kind in _LAST_EVENTS:
            self._last, self.complete = event, True
            return b""
        return _encode_event(event)

    @property
    def may_end(self) -> bool:
        return self.complete

    def answer_so_far(self) -> ApiAnswer:
        if self._answer is not None:
            return self._answer
        refusal, reasoning = "".join(self._refusal) or None, "".join(self._reasoning) or None
        choice = Choice("".join(self._text), self._tokens, None, self._calls, refusal, reasoning)
        return ApiAnswer([choice], TokenUsage(answer_tokens=len(self._tokens)))

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        return _encode_event({**self._last, "ratchet": ratchet})


def _encode_event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + encode_json(event) + b"\n\n"


def _error_body(event: Mapping[str, Any]) -> bytes:
    """The error of a failure event, in the shape that the other APIs use."""
    reported = (event.get("response") or {}).get("error") or event
    error = {"message": str(reported.get("message") or "the model server failed"), "code": reported.get("code")}
    return orjson.dumps({"error": {"type": "server_error", "param": None, **error}})


def _parse_output(body: dict[str, Any]) -> Choice:
    texts: list[str] = []
    refusals: list[str] = []
    reasoning: list[str] = []
    tokens: list[Token] = []
    calls: list[Object] = []
    truncated = False
    for item in body["output"]:
        if item["type"] == "message":
            for part in item.get("content") or ():
                (refusals if part.get("refusal") else texts).append(str(part.get("text") or part.get("refusal") or ""))
                tokens += part.get("logprobs") or ()
        elif item["type"] in _CALLS:
            calls.append(_call_of(item))
            if item.get("namespace"):  # The model wrote a name that is made of both.
                truncated = True
        elif item["type"] == "reasoning":
            reasoning += [str(part.get("text") or "") for part in item.get("content") or item.get("summary") or ()]
        else:  # A call of a tool that the server ran itself.
            truncated = True
    reason = (body.get("incomplete_details") or {}).get("reason") or body.get("status")
    finish_reason = _FINISH_REASONS.get(str(reason), str(reason)) if reason else None
    if calls and finish_reason == "stop":
        finish_reason = "tool_calls"
    refusal, thought = "".join(refusals) or None, "\n".join(reasoning) or None
    return Choice("".join(texts), tokens, finish_reason, calls, refusal, thought, truncated)


def _call_of(item: Mapping[str, Any]) -> Object:
    """A call of a tool among the items of the output."""
    kind = "custom" if item.get("type") == "custom_tool_call" else "function"
    return tool_call(item.get("name"), item.get("arguments", item.get("input")), item.get("call_id"), kind)


def _ask_for_task_format(data: dict[str, Any], task: ServedTask) -> None:
    """Make the answer follow the task's schema, if it has one and the client names no format of its own."""
    text = data.get("text")
    if task.responses_format is None or _own_format(data) or data.get("structured_outputs") is not None:
        return
    if text is None or isinstance(text, dict):  # What is neither is the model server's to refuse.
        data["text"] = {**(text or {}), "format": task.responses_format}


def _own_format(data: dict[str, Any]) -> bool:
    """Return True if the client names the format of the answer, in the field that this API has for it."""
    text = data.get("text")
    return isinstance(text, dict) and names_form(text.get("format"))


def _prepare_input(data: dict[str, Any], task: ServedTask) -> None:
    """Check what is asked. The task's prompt becomes `instructions` if the client sent none. Raises HttpError 400."""
    instructions = text_field(data, "instructions")
    given = data.get("input")
    if not given or not isinstance(given, str | list):
        raise bad_request("`input` must be a text, or a list with at least one item", "input")
    if instructions is None and task.system is not None and not has_system_message(given):
        data["instructions"] = task.system["content"]
