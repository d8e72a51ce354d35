"""What OpenAI's APIs have in common, as the use case in `answering.py` needs it: a request, its outcome, its stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import orjson

from services.gateway.domain import ChatMessage
from services.gateway.formats.validation import bad_request
from services.gateway.tasks.served import ServedTask

Token = Mapping[str, Any]
"""`token`, `logprob` and `top_logprobs`, as in `choices[].logprobs.content` of OpenAI's chat format."""
MAX_PREDICTIONS = 128
"""Most answers of one request: OpenAI's own limit of `n`."""


class Choice(NamedTuple):
    """One answer: its text, as an event has it, and its tokens, if the upstream gave their log-probabilities."""

    text: str
    tokens: Sequence[Token]
    finish_reason: str | None


class ApiAnswer(NamedTuple):
    """All answers to one request, in order. `answer_tokens`: of all of them together."""

    choices: Sequence[Choice]
    prompt_tokens: int
    answer_tokens: int


class StreamRelay(Protocol):
    """A stream on its way from the upstream to the client, and what was in it."""

    complete: bool
    """Whether the upstream has sent all of the answer."""

    def feed(self, data: bytes) -> bytes:
        """Take one event's data; returns the events that go to the client now. The last are held back.

        Raises ValueError if it is nothing that belongs here, StreamFailed if it is the upstream's word of a failure.
        """

    def answer_so_far(self) -> ApiAnswer:
        """What has arrived so far."""

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        """The events held back, the last one with `ratchet` in it, and the end of the stream."""


class StreamFailed(Exception):
    """The upstream said, in its stream, that it failed. `raw`: in its own words, JSON."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw[:200])
        self.raw = raw


class ApiRequest(Protocol):
    """A sound request of one of the APIs. Its class is made with the decoded body, which it then owns."""

    path: ClassVar[str]

    @property
    def prediction_count(self) -> int:
        """How many answers are asked for; each is a prediction."""

    def __init__(self, data: dict[str, Any], facts: ServedTask) -> None:
        """Raises HttpError 400 with the field at fault."""

    def messages_for_event(self, number: int) -> list[ChatMessage]:
        """What was asked, for the event of this prediction."""

    def encode_for_upstream(self, model: str) -> bytes:
        """What the upstream is asked. Raises HttpError 400 if it cannot be written as JSON."""

    def parse_answer(self, body: Any) -> ApiAnswer:
        """The upstream's answer, read. Raises ValueError if it is none."""

    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        """The client's answer: under the task's name and our id, without what it did not ask for. Changes `body`."""

    def open_relay(self, ids: Sequence[str]) -> StreamRelay | None:
        """For an answer that is to be streamed; None: it is to come in one piece."""


def encode_json(body: Mapping[str, Any]) -> bytes:
    """JSON for the upstream. Raises HttpError 400: what was decoded may be nested too deeply to be encoded."""
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise bad_request(f"the body cannot be passed on: {error}") from error


def read_choices(body: Any, of_one: Callable[[Any], Choice], most: int, kind: str) -> ApiAnswer:
    """The answers that an upstream's body lists. Raises ValueError if it is none of this kind, or has too many."""
    try:
        listed = body["choices"]
        if len(listed) > 1:  # Ids are given in the order of the index.
            listed.sort(key=lambda choice: choice.get("index", 0))
        choices = [of_one(choice) for choice in listed]
        usage = body.get("usage")
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no {kind}: {error!r}") from error
    if not 1 <= len(choices) <= most:
        raise ValueError(f"{len(choices)} answers to a request for {most}")
    answer_tokens = token_count(usage, "completion_tokens") or sum(len(choice.tokens) for choice in choices)
    return ApiAnswer(choices, token_count(usage, "prompt_tokens"), answer_tokens)


def token_count(usage: Any, name: str) -> int:
    """A count of the upstream's usage, 0 where it has none."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return max(0, value) if isinstance(value, int) else 0


def finish_reason_of(choice: Mapping[str, Any]) -> str | None:
    """Why an answer ended, None where nothing is said."""
    reason = choice.get("finish_reason")
    return str(reason) if reason else None


def bool_field(data: Mapping[str, Any], name: str) -> bool:
    """A field that is true, false, null or absent. Raises HttpError 400."""
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"`{name}` must be true or false", name)
    return bool(value)


def answer_count(data: Mapping[str, Any], name: str, facts: ServedTask) -> int:
    """How many answers are asked for. Raises HttpError 400."""
    value = data.get(name)
    if value is None:
        return 1
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PREDICTIONS:
        raise bad_request(f"`{name}` must be a whole number from 1 to {MAX_PREDICTIONS}", name)
    if value > 1 and facts.classifies:
        raise bad_request(
            f"`{name}` must be 1: {facts.name} is a classification, all its answers would be the same", name
        )
    return value


def request_stream_usage(data: dict[str, Any], *, streams: bool) -> bool:
    """Have a stream end with its usage; returns whether the client asked for that itself. Raises HttpError 400."""
    options = data.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise bad_request("`stream_options` must be an object", "stream_options")
    if streams:
        data["stream_options"] = {**options, "include_usage": True}
    return bool(options.get("include_usage"))
