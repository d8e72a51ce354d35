"""Streams of the chat and completions APIs: `data:` events, each a chunk of JSON, then `[DONE]`. No I/O.

Every chunk but the last ones goes on as soon as it is here, under our id and the task's name. Held back are the chunk
that ends the last answer and what follows it: they leave when the event is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.gateway.formats.api import ApiAnswer, Choice, StreamFailed, Token, finish_reason_of, token_count

_LONGEST_EVENT = 8 << 20
"""Bytes; a stream that has a longer one is no stream of answers."""
_DONE = b"[DONE]"


class ServerSentEventParser:
    """Cuts a stream of server-sent events into the data of each, wherever its pieces were cut."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The data of the events that are whole now. Raises ValueError if one has no end."""
        rest = self._rest + piece if self._rest else piece
        if b"\r" in rest:
            rest = rest.replace(b"\r\n", b"\n")
        *events, self._rest = rest.split(b"\n\n")
        if len(self._rest) > _LONGEST_EVENT:
            raise ValueError("an event without an end")
        for event in events:
            if event.startswith(b"data: ") and b"\n" not in event:
                yield event[6:]
            elif data := b"\n".join(_data(event)):
                yield data


def _data(event: bytes) -> Iterator[bytes]:
    for line in event.split(b"\n"):
        if line.startswith(b"data:"):
            yield line[5:].removeprefix(b" ")


def event_object(data: bytes) -> dict[str, Any]:
    """The data of an event. Raises ValueError if it is no object, StreamFailed if it tells of an error."""
    chunk = orjson.loads(data)
    if not isinstance(chunk, dict):
        raise ValueError("an event that is no object")
    if chunk.get("error"):
        raise StreamFailed(data)
    return chunk


class PartialChoice:
    """One answer as it arrives."""

    __slots__ = ("calls", "finish_reason", "text", "tokens")

    def __init__(self) -> None:
        self.text: list[str] = []
        self.tokens: list[Token] = []
        self.calls: dict[int, dict[str, Any]] = {}
        self.finish_reason: str | None = None


def _says_nothing(choice: Mapping[str, Any]) -> bool:
    """Whether vLLM sent it for its log-probabilities alone, which the client did not ask for."""
    return choice.get("delta") == {} and not any(
        choice.get(name) for name in ("finish_reason", "logprobs", "token_ids")
    )


Take = Callable[[PartialChoice, dict[str, Any]], None]
"""Puts what a chunk's choice holds into the part, and takes out of the choice what the client did not ask for."""


class ChunkRelay:
    """See `api.StreamRelay`."""

    def __init__(
        self, ids: Sequence[str], model: str, take: Take, text: Callable[[PartialChoice], str], include_usage: bool
    ) -> None:
        self._id = ids[0]
        self._model = model
        self._take = take
        self._text = text
        self._include_usage = include_usage
        self._parts = [PartialChoice() for _ in ids]
        self._open = len(ids)
        self._held: list[dict[str, Any]] = []
        self._usage: Any = None
        self._common: dict[str, Any] = {}
        self.complete = False

    def feed(self, data: bytes) -> bytes:
        if data == _DONE:
            self.complete = True
            return b""
        chunk = event_object(data)
        chunk["id"], chunk["model"] = self._id, self._model
        try:
            choices = chunk["choices"]
            for choice in choices:
                self._note(choice)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"no chunk of a completion: {error!r}") from error
        self._usage = chunk.get("usage") or self._usage
        if not self._common:
            self._common = {name: value for name, value in chunk.items() if name not in ("choices", "usage")}
        if choices and all(_says_nothing(choice) for choice in choices):
            return b""
        if self._open > 0 and choices:
            return b"data: " + orjson.dumps(chunk) + b"\n\n"
        if choices or self._include_usage:
            self._held.append(chunk)
        elif self._held and "system_fingerprint" in chunk:  # vLLM puts it into the last chunk that it sends.
            self._held[-1]["system_fingerprint"] = chunk["system_fingerprint"]
        return b""

    def _note(self, choice: dict[str, Any]) -> None:
        part = self._parts[choice.get("index", 0)]
        self._take(part, choice)
        if part.finish_reason is None and (reason := finish_reason_of(choice)):
            part.finish_reason = reason
            self._open -= 1

    def answer_so_far(self) -> ApiAnswer:
        choices = [Choice(self._text(part), part.tokens, part.finish_reason) for part in self._parts]
        told = token_count(self._usage, "completion_tokens") or sum(len(part.tokens) for part in self._parts)
        return ApiAnswer(choices, token_count(self._usage, "prompt_tokens"), told)

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        held = self._held or [{**self._common, "choices": []}]
        held[-1]["ratchet"] = ratchet
        return b"".join(b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in held) + b"data: [DONE]\n\n"
