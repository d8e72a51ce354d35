"""What the chat and completions APIs share: answers are `choices`, a stream is chunks of them, then `[DONE]`. No I/O.

A chunk is sent on as soon as it arrives, under the prediction's id and the task's name. The chunk that ends the last
answer, and what follows it, are held back until the event is in the spool.
"""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, ClassVar

from services.gateway.formats.api import (
    ApiAnswer,
    ApiRequest,
    Choice,
    StreamFailed,
    Token,
    finish_reason_of,
    token_usage,
    with_answer_tokens,
)
from services.gateway.formats.conversation import Object, arguments_text, begins_another_call, tool_call
from services.gateway.json_codec import decode_json, encode_json
from shared.http import HttpError

_MAX_EVENT_BYTES = 8 << 20
"""A longer event is taken as a broken stream."""
DONE = b"[DONE]"
"""How the data of a stream's last event begins: OpenAI's client asks for no more."""


class ServerSentEventParser:
    """Splits a stream of server-sent events into the data of each event, wherever the pieces were cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterable[bytes]:
        """Return the data of the events that are complete now. Raises ValueError if an event does not end."""
        rest = self._rest + piece if self._rest else piece
        if rest.startswith(b"data: ") and rest.endswith(b"\n\n") and b"\r" not in rest:
            events = rest[6:-2].split(b"\n\ndata: ")
            if rest.count(b"\n") == 2 * len(events) and b"" not in events:
                self._rest = b""
                return events
        return self._split(rest)

    def _split(self, rest: bytes) -> Iterator[bytes]:
        """Split what is not just whole events of one line of data each, as most pieces are."""
        if b"\r" in rest:
            rest = rest.replace(b"\r\n", b"\n")
        *events, self._rest = rest.split(b"\n\n")
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise ValueError(f"an event is longer than {_MAX_EVENT_BYTES} bytes")
        for event in events:
            is_usual = event.startswith(b"data: ") and b"\n" not in event
            if data := event[6:] if is_usual else b"\n".join(_data_lines(event)):
                yield data


def _data_lines(event: bytes) -> Iterator[bytes]:
    for line in event.removeprefix(codecs.BOM_UTF8).split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].removeprefix(b" ")


def parse_event(data: bytes) -> dict[str, Any]:
    """Decode an event's data. Raises ValueError if it is not an object, StreamFailed if it reports an error."""
    event = decode_json(data)
    if not isinstance(event, dict):
        raise ValueError("an event is not an object")
    if event.get("error"):
        raise StreamFailed(data)
    return event


class PartialChoice:
    """One answer while its chunks arrive."""

    __slots__ = ("begun", "calls", "finish_reason", "number", "reasoning", "refusal", "text", "tokens", "truncated")

    def __init__(self, number: int) -> None:
        self.number = number
        self.begun = False
        self.text: list[str] = []
        self.refusal: list[str] = []
        self.reasoning: list[str] = []
        self.tokens: list[Token] = []
        self.calls: list[Object] = []
        """In the order of their arrival, each with the pieces of its arguments."""
        self.finish_reason: str | None = None
        self.truncated = False

    def add_call(self, delta: dict[str, Any]) -> None:
        """Add a piece of a tool call: its name comes first, then its arguments bit by bit."""
        index = delta.get("index") or 0
        index = int(index)  # A text or a list that is no number ends the stream here, not where calls are sorted.
        call = next((call for call in reversed(self.calls) if call["index"] == index), None)
        if call is None or begins_another_call(call["id"], call["name"], call["arguments"], delta):
            call = {"index": index, "name": None, "id": None, "arguments": [], "kind": "function"}
            self.calls.append(call)
        if delta.get("custom") is not None:
            call["kind"] = "custom"
        function = delta.get(call["kind"]) or {}
        call["id"] = call["id"] or delta.get("id")
        call["name"] = function.get("name") or call["name"]
        call["arguments"].append(arguments_text(function.get("arguments") or function.get("input")))

    def so_far(self) -> Choice:
        """The answer as far as it has arrived."""
        return Choice(
            "".join(self.text),
            self.tokens,
            self.finish_reason,
            [self._call(call) for call in sorted(self.calls, key=lambda call: call["index"])] if self.calls else (),
            "".join(self.refusal) or None,
            "".join(self.reasoning) or None,
            self.truncated,
            self.number,
        )

    @staticmethod
    def _call(call: dict[str, Any]) -> Object:
        return tool_call(call["name"], "".join(call["arguments"]), call["id"], call["kind"])


class ChoicesRequest(ApiRequest):
    """A request of the chat or the completions API."""

    answer_kind: ClassVar[str]
    include_usage: bool
    _stream: bool
    __slots__ = ("_stream", "include_usage", "prediction_count")

    @abstractmethod
    def parse_choice(self, choice: Any) -> Choice:
        """Parse one of an answer's `choices`."""

    @abstractmethod
    def add_chunk(self, part: PartialChoice, choice: dict[str, Any]) -> None:
        """Add a chunk's choice to `part`, then drop from the choice what the client did not ask for."""

    @abstractmethod
    def drop_unrequested_logprobs(self, choice: dict[str, Any]) -> None:
        """Drop from a choice the log-probabilities that the client did not ask for."""

    def parse_answer(self, body: Any) -> ApiAnswer:
        try:
            listed, count = body["choices"], self.prediction_count
            if not 1 <= len(listed) <= count:
                raise ValueError(f"invalid: {len(listed)} choices, but the request asked for {count}")
            numbers = _put_in_order(listed, count)
            choices = [self.parse_choice(choice) for choice in listed]
            if len(choices) > 1 or numbers[0]:
                choices = [choice._replace(number=n) for choice, n in zip(choices, numbers, strict=True)]
            usage = body.get("usage")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a {self.answer_kind}: {error!r}") from error
        return _answer(choices, usage)

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        body["id"], body["model"] = ids[0], self.task.name
        for choice in body["choices"]:
            self.drop_unrequested_logprobs(choice)
        if len(ids) > 1:
            body["ratchet"] = {"choices": [{"prediction_id": ids[choice["index"]]} for choice in body["choices"]]}
        return body

    def open_relay(self, ids: Sequence[str]) -> ChunkRelay | None:
        return ChunkRelay(self, ids) if self._stream else None


class ChunkRelay:
    """A `StreamRelay` of chunks."""

    def __init__(self, request: ChoicesRequest, ids: Sequence[str]) -> None:
        self._id = ids[0]
        self._model = request.task.name
        self._add_chunk = request.add_chunk
        self._include_usage = request.include_usage
        self._parts = [PartialChoice(number) for number in range(len(ids))]
        self._unfinished = len(ids)
        self._held: list[dict[str, Any]] = []
        self._usage: Any = None
        self._common: dict[str, Any] = {}
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        if data.startswith(DONE):
            if not any(part.begun for part in self._parts):
                raise ValueError("it has no answer")
            self.complete = True
            return b""
        chunk = parse_event(data)
        try:
            choices = chunk.get("choices")
            if choices is None:
                choices = _add_empty_choices(chunk)
            for choice in choices:
                self._add(choice)
            if usage := chunk.get("usage"):
                self._usage = usage
            return self.relay(chunk)
        except (KeyError, TypeError, AttributeError, HttpError) as error:
            raise ValueError(f"not a chunk of a completion: {error!r}") from error

    def relay(self, chunk: dict[str, Any]) -> bytes:
        """Return what the client gets of a chunk now."""
        chunk["id"], chunk["model"] = self._id, self._model
        choices = chunk["choices"]
        if not self._common:
            self._common = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        if choices and not choices[0].get("delta") and all(_is_empty(choice) for choice in choices):
            return b""
        if self._unfinished > 0 and choices:
            return b"data: " + encode_json(chunk) + b"\n\n"
        if choices or self._include_usage:
            self._held.append(chunk)
        elif self._held and "system_fingerprint" in chunk:  # vLLM puts it into the last chunk that it sends.
            self._held[-1]["system_fingerprint"] = chunk["system_fingerprint"]
        return b""

    def _add(self, choice: dict[str, Any]) -> None:
        index = choice.get("index")
        part = self._parts[0] if index == 0 and type(index) is int else self._part_of(choice)
        part.begun = True
        self._add_chunk(part, choice)
        if choice.get("finish_reason") and part.finish_reason is None:
            part.finish_reason = finish_reason_of(choice)
            self._unfinished -= 1

    def _part_of(self, choice: dict[str, Any]) -> PartialChoice:
        """The answer that a choice is a piece of. The only one need not be numbered. Raises ValueError."""
        index, count = choice.get("index"), len(self._parts)
        if index is None and count == 1:
            choice["index"] = index = 0
        if type(index) is not int or not 0 <= index < count:
            raise ValueError(f"the `index` of a choice is no whole number below {count}, the number of answers")
        return self._parts[index]

    @property
    def may_end(self) -> bool:
        return self._unfinished <= 0

    def answer_so_far(self) -> ApiAnswer:
        """An answer of which a complete stream has nothing is none; one that was cut may not have begun."""
        return _answer([part.so_far() for part in self._parts if part.begun or not self.complete], self._usage)

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        held = self._held or [{**self._common, "choices": []}]
        held[-1]["ratchet"] = ratchet
        return b"".join(b"data: " + encode_json(chunk) + b"\n\n" for chunk in held) + b"data: [DONE]\n\n"


def _put_in_order(choices: list[Any], count: int) -> Sequence[int]:
    """Sort choices by their index, the order of the ids; return the indexes. The only one may have any, or none.

    `count`: of the answers that the client wants. Raises ValueError if it is not known which of them a choice is, and
    as malformed choices do.
    """
    if count == 1:
        if choices[0].get("index") is None:
            choices[0]["index"] = 0
        return range(1)
    indexes = [choice.get("index") for choice in choices]
    if not all(type(index) is int and 0 <= index < count for index in indexes) or len(set(indexes)) < len(indexes):
        raise ValueError(f"ambiguous: the indexes of its choices are {indexes!r:.100}, of {count} answers")
    choices.sort(key=itemgetter("index"))
    return sorted(indexes)


def _add_empty_choices(chunk: dict[str, Any]) -> list[Any]:
    """Give a chunk without choices the empty list that clients expect: one that says null, or has the usage alone.

    Raises KeyError for an object that is no chunk, such as an error in a server's own form.
    """
    if "choices" not in chunk and not chunk.get("usage"):
        raise KeyError("choices")
    choices: list[Any] = []
    chunk["choices"] = choices
    return choices


def _is_empty(choice: Mapping[str, Any]) -> bool:
    """Return True for a chunk that vLLM sent for its log-probabilities alone, which the client did not ask for."""
    return choice.get("delta") == {} and not any(
        choice.get(name) for name in ("finish_reason", "logprobs", "token_ids")
    )


def _answer(choices: Sequence[Choice], usage: Any) -> ApiAnswer:
    return ApiAnswer(choices, with_answer_tokens(token_usage(usage, "prompt", "completion"), choices))
