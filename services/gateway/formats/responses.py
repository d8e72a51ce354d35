"""OpenAI's responses, in and out, as vLLM serves them: one answer, to a conversation that is sent whole. No I/O.

For the event, instructions are the system's message, the input's items are messages and what came out is the answer.
Nothing is stored under the response's id (that is the prediction's), so what refers to an earlier one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import orjson

from services.gateway.domain import ChatMessage
from services.gateway.formats.api import ApiAnswer, Choice, StreamFailed, Token, bool_field, encode_json, token_count
from services.gateway.formats.chunks import event_object
from services.gateway.formats.rendering import (
    check_message_count,
    compact_json,
    message_of,
    text_of,
    with_tool_calls,
)
from services.gateway.formats.validation import bad_request, checked_text, text_field
from services.gateway.tasks.served import ServedTask

_LOGPROBS = "message.output_text.logprobs"
_REFUSED = {
    "previous_response_id": "no earlier answer is stored here: send the whole conversation as `input`",
    "previous_input_messages": "what the model sees could not be logged: send it as `input`",
    "conversation": "no conversation is stored here: send all of it as `input`",
    "background": "no answer is stored here to be fetched later: wait for it, or stream it",
}
_OVERRULED_BY_LABELS = (
    "temperature", "top_p", "top_k", "min_p", "max_output_tokens", "stop", "stop_token_ids", "ignore_eos",
    "include_stop_str_in_output", "text", "structured_outputs", "tools", "tool_choice", "logit_bias",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "skip_special_tokens", "vllm_xargs", "reasoning",
)  # fmt: skip
_ENDS = {"response.completed", "response.incomplete"}
_FINISH = {"completed": "stop", "max_output_tokens": "length"}


class ResponsesRequest:
    """See `api.Asked`."""

    path: ClassVar[str] = "/v1/responses"
    prediction_count = 1
    __slots__ = ("_client", "_data", "_stream", "_top", "_turns", "_wants_logprobs", "facts")

    def __init__(self, data: dict[str, Any], facts: ServedTask) -> None:
        self.facts = facts
        self._data = data
        self._stream = bool_field(data, "stream")
        for name, why in _REFUSED.items():
            if data.get(name):
                raise bad_request(f"`{name}` is not taken: {why}", name)
        self._client = {"instructions": data.get("instructions"), "user": data.pop("user", None)}
        self._turns = _turns(data, facts)
        if facts.classifies:
            for name in _OVERRULED_BY_LABELS:
                data.pop(name, None)
            data |= {"temperature": 0.0, "structured_outputs": facts.constraint}
        if data.get("max_output_tokens") is None:
            data["max_output_tokens"] = facts.spec.max_answer_tokens
        include = data.get("include")
        include = include if isinstance(include, list) else []
        self._top = data.get("top_logprobs")
        self._wants_logprobs = _LOGPROBS in include
        if not self._wants_logprobs:
            data["include"] = [*include, _LOGPROBS]
            data["top_logprobs"] = facts.top_logprobs
        elif self._top is None or isinstance(self._top, int):
            data["top_logprobs"] = max(self._top or 0, facts.top_logprobs)

    def messages_for_event(self, number: int) -> list[ChatMessage]:
        return self._turns

    def encode_for_upstream(self, model: str) -> bytes:
        self._data["model"] = model
        return encode_json(self._data)

    def parse_answer(self, body: Any) -> ApiAnswer:
        try:
            choice = _choice(body)
            usage = body.get("usage")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no response: {error!r}") from error
        told = token_count(usage, "output_tokens") or len(choice.tokens)
        return ApiAnswer([choice], token_count(usage, "input_tokens"), told)

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body |= {"id": ids[0], "model": self.facts.name, **self._client}
        if not self._wants_logprobs:
            body["top_logprobs"] = None
        elif isinstance(self._top or 0, int):
            body["top_logprobs"] = self._top or 0
        for item in body.get("output") or ():
            self.without_what_was_not_asked(item)
        return body

    def without_what_was_not_asked(self, item: dict[str, Any]) -> None:
        """Take log-probabilities out of an output item; what is read of it later is read before."""
        for part in item.get("content") or ():
            if part.get("logprobs"):
                part["logprobs"] = self.asked_of(part["logprobs"]) if self._wants_logprobs else None

    def asked_of(self, tokens: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The tokens as far as the client asked for them."""
        if not self._wants_logprobs:
            return []
        top = self._top if isinstance(self._top, int) else 0
        return [{**token, "top_logprobs": (token.get("top_logprobs") or [])[:top]} for token in tokens]

    def open_relay(self, ids: Sequence[str]) -> ResponseRelay | None:
        if not self._stream:
            return None
        return ResponseRelay(self, ids)


class ResponseRelay:
    """See `api.StreamRelay`. The last event, `response.completed`, has the whole answer: it is the one held back."""

    def __init__(self, asked: ResponsesRequest, ids: Sequence[str]) -> None:
        self._asked = asked
        self._ids = ids
        self._text: list[str] = []
        self._tokens: list[Token] = []
        self._last: dict[str, Any] = {}
        self._outcome: ApiAnswer | None = None
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        if data == b"[DONE]":
            return b""
        event = event_object(data)
        kind = event.get("type")
        if kind in ("error", "response.failed"):
            raise StreamFailed(_failure(event))
        try:
            return self._fed(str(kind), event)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no event of a response: {error!r}") from error

    def _fed(self, kind: str, event: dict[str, Any]) -> bytes:
        if kind == "response.output_text.delta":
            self._text.append(str(event["delta"]))
            self._tokens += event.get("logprobs") or ()
        response = event.get("response")
        if kind in _ENDS and response is not None:
            self._outcome = self._asked.parse_answer(response)
            if not self._outcome.choices[0].tokens:  # vLLM has them in the pieces only.
                whole = self._outcome.choices[0]._replace(tokens=self._tokens)
                self._outcome = self._outcome._replace(choices=[whole])
        if event.get("logprobs"):
            event["logprobs"] = self._asked.asked_of(event["logprobs"])
        for holder in (event.get("item"), {"content": [event["part"]]} if event.get("part") else None):
            if holder is not None:
                self._asked.without_what_was_not_asked(holder)
        if response is not None:
            self._asked.rewrite_for_client(response, self._ids)
        if kind in _ENDS:
            self._last, self.complete = event, True
            return b""
        return _event(event)

    def answer_so_far(self) -> ApiAnswer:
        if self._outcome is not None:
            return self._outcome
        return ApiAnswer([Choice("".join(self._text), self._tokens, None)], 0, len(self._tokens))

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        return _event({**self._last, "ratchet": ratchet})


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + str(event.get("type")).encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"


def _failure(event: Mapping[str, Any]) -> bytes:
    """An event that tells of a failure, as an error object of the other APIs."""
    told = (event.get("response") or {}).get("error") or event
    error = {"message": str(told.get("message") or "the model server failed"), "code": told.get("code")}
    return orjson.dumps({"error": {"type": "server_error", "param": None, **error}})


def _choice(body: dict[str, Any]) -> Choice:
    texts: list[str] = []
    tokens: list[Token] = []
    calls = []
    for item in body["output"]:
        if item["type"] == "message":
            for part in item.get("content") or ():
                texts.append(str(part.get("text") or part.get("refusal") or ""))
                tokens += part.get("logprobs") or ()
        elif item["type"] == "function_call":
            calls.append({"function": item})
    why = (body.get("incomplete_details") or {}).get("reason") or body.get("status")
    text = "".join(texts)
    return Choice(
        with_tool_calls(text, calls) if calls else text, tokens, _FINISH.get(str(why), str(why)) if why else None
    )


def _turns(data: dict[str, Any], facts: ServedTask) -> list[ChatMessage]:
    """The conversation for the event; the task's prompt becomes the instructions if the client has none."""
    instructions = text_field(data, "instructions")
    asked = data.get("input")
    if isinstance(asked, str) and asked:
        turns: list[ChatMessage] = [{"role": "user", "content": checked_text(asked, "input")}]
    elif isinstance(asked, list) and asked:
        turns = [turn for number, item in enumerate(asked) for turn in _item(item, f"input.{number}")]
    else:
        raise bad_request("`input` must be a text, or a list with at least one item", "input")
    if not turns:
        raise bad_request("`input` has nothing but reasoning", "input")
    if instructions is None and facts.system is not None and all(turn["role"] != "system" for turn in turns):
        instructions = data["instructions"] = facts.system["content"]
    if instructions:
        turns.insert(0, {"role": "system", "content": instructions})
    check_message_count(turns, "input")
    return turns


def _item(item: Any, where: str) -> list[ChatMessage]:
    kind = item.get("type", "message") if isinstance(item, dict) else None
    if not isinstance(kind, str):
        raise bad_request(f"`{where}` must be an object with a `type`", where)
    if kind == "message":
        return [message_of({"role": item.get("role"), "content": item.get("content")}, where)]
    if kind == "function_call":
        return [{"role": "assistant", "content": checked_text(with_tool_calls("", [{"function": item}]), where)}]
    if kind == "function_call_output":
        output = item.get("output")
        told = {"tool_call_id": item.get("call_id"), "content": text_of(output, f"{where}.output")}
        return [{"role": "user", "content": checked_text(compact_json(told), where)}]
    return [] if kind == "reasoning" else [{"role": "user", "content": f"[{kind[:50]}]"}]
