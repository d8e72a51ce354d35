"""What every OpenAI API format implements: a request, the answer to it, the relay of a stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from schemas.base import MAX_COUNT
from services.gateway.formats.conversation import Object
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import bad_request
from services.gateway.json_codec import encode_json
from services.gateway.tasks.served import ServedTask
from services.gateway.upstreams.external import external_fields

Token = Mapping[str, Any]
"""`token`, `logprob` and `top_logprobs`, as in `choices[].logprobs.content` of OpenAI's chat format."""
MAX_PREDICTIONS = 128
"""Answers per request: OpenAI's own limit of `n`."""


class Choice(NamedTuple):
    """One answer, with its tokens if the upstream sent their log-probabilities. `tool_calls`: as events have them.

    `truncated`: it has something that an event cannot say, such as sound. `number`: among the answers that the client
    wants, of which an upstream may leave some out.
    """

    text: str
    tokens: Sequence[Token]
    finish_reason: str | None
    tool_calls: Sequence[Object] = ()
    refusal: str | None = None
    reasoning: str | None = None
    truncated: bool = False
    number: int = 0


class TokenUsage(NamedTuple):
    """The tokens of a request, all answers together: `schemas.predictions.Usage`."""

    prompt_tokens: int = 0
    answer_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


class ApiAnswer(NamedTuple):
    """All answers to one request, by their number."""

    choices: Sequence[Choice]
    usage: TokenUsage = TokenUsage()


class StreamFailed(Exception):
    """The upstream reported an error inside its stream. `raw` is that event's JSON."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(raw[:200])
        self.raw = raw


class StreamRelay(Protocol):
    """Rewrites a stream on its way from the upstream to the client and collects the answer in it."""

    complete: bool
    """True once the upstream has said that it has sent everything."""

    @property
    def may_end(self) -> bool:
        """True once every answer is finished: some servers close the stream then, and say nothing."""

    def feed(self, data: bytes) -> bytes:
        """Take the data of one event; return the events to send to the client now. The last events are held back.

        Raises ValueError for an unexpected event, StreamFailed if the upstream reports an error.
        """

    def answer_so_far(self) -> ApiAnswer:
        """Return what has arrived so far."""

    def final_events(self, ratchet: Mapping[str, Any]) -> bytes:
        """Return the events held back, with `ratchet` added to the last one, and the end of the stream."""


class ApiRequest(ABC):
    """A valid request of one API. It takes over the decoded body it is made from."""

    path: ClassVar[str]
    task: ServedTask
    prediction_count: int
    """How many answers the client wants; each is a prediction."""
    _data: dict[str, Any]
    __slots__ = ("_data", "task")

    @abstractmethod
    def __init__(self, data: dict[str, Any], task: ServedTask) -> None:
        """Raises HttpError 400 that names the invalid field."""

    @abstractmethod
    def calls(self, media: MediaReferences, *, external: bool = False) -> list[Object]:
        """Return what is asked, as events have it: a `Call` for each conversation, with as many answers each.

        `external`: of the external API. To be called before the request is encoded for an upstream. Raises HttpError
        400 that names the invalid field.
        """

    def _asked(self, *, external: bool) -> tuple[dict[str, Any], bool]:
        """The body, and whether the answer is constrained to the task's labels: an external API is only told them."""
        if not external:
            return self._data, self.task.classifies
        asked = external_fields(self._data)
        if self.task.classifies:
            asked.pop("structured_outputs", None)  # The task's revision has the labels.
        return asked, False

    @property
    def upstream_path(self) -> str:
        """The path of the model server's API that answers it."""
        return self.path

    def encode_for_upstream(self, model: str) -> bytes:
        """Return the body to send to the upstream. Raises HttpError 400 if it cannot be encoded as JSON."""
        self._data["model"] = model
        return encode_json(self._data)

    def do_without(self, field: str) -> bool:
        """Leave out what the gateway added and the model server refuses under this name, or say it otherwise.

        Returns False if it added nothing of the kind. The calls may be others then.
        """
        return False

    def adapt_to_external(self, field: str) -> bool:
        """Leave out, or say otherwise, what the external API refuses, also where vLLM would take it."""
        return self.do_without(field)

    @abstractmethod
    def parse_answer(self, body: Any) -> ApiAnswer:
        """Parse the upstream's answer. Raises ValueError if it is malformed."""

    @abstractmethod
    def rewrite_for_client(self, body: dict[str, Any], ids: Sequence[str]) -> dict[str, Any]:
        """Put in the task's name and the prediction's id, drop what the client did not ask for. Changes `body`."""

    @abstractmethod
    def open_relay(self, ids: Sequence[str]) -> StreamRelay | None:
        """Return a relay if the client wants a stream; None if it wants the answer in one piece."""


def token_usage(usage: Any, prompt: str, answer: str) -> TokenUsage:
    """The upstream's `usage`, in which the counts of prompt and answer have these names; 0 for what is missing."""
    return TokenUsage(
        token_count(usage, f"{prompt}_tokens"),
        token_count(usage, f"{answer}_tokens"),
        _token_detail(usage, f"{prompt}_tokens_details", "cached_tokens"),
        _token_detail(usage, f"{answer}_tokens_details", "reasoning_tokens"),
    )


def with_answer_tokens(usage: TokenUsage, choices: Sequence[Choice]) -> TokenUsage:
    """The usage; where the upstream did not count the answers' tokens, those that came with log-probabilities count."""
    return usage if usage.answer_tokens else usage._replace(answer_tokens=sum(len(choice.tokens) for choice in choices))


def token_count(usage: Any, name: str) -> int:
    """A count in the upstream's `usage`; 0 if it is missing, or none that a lake could store."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and 0 <= value <= MAX_COUNT else 0


def _token_detail(usage: Any, details: str, name: str) -> int:
    held = usage.get(details) if isinstance(usage, dict) else None
    return token_count(held, name) if held is not None else 0


def finish_reason_of(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return str(reason) if reason else None


def answer_count(data: Mapping[str, Any], name: str, task: ServedTask) -> int:
    """How many answers the client wants. Raises HttpError 400."""
    value = data.get(name)
    if value is None:
        return 1
    if isinstance(value, float) and value.is_integer():  # As clients without integers write it.
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_PREDICTIONS:
        raise bad_request(f"`{name}` must be a whole number from 1 to {MAX_PREDICTIONS}", name)
    if value > 1 and task.classifies:
        message = f"`{name}` must be 1: {task.name} is a classification, all answers would be the same"
        raise bad_request(message, name)
    return value


def top_count(asked_for: int, own: int) -> int:
    """How many alternatives of each token to request: as many as the client and the gateway need.

    What a negative number means is for the model server to say: in vLLM, -1 is all of them.
    """
    return asked_for if asked_for < 0 else max(asked_for, own)


def keep_tokens_measurable(data: dict[str, Any], task: ServedTask) -> None:
    """Remove the fields for which vLLM reports log-probabilities that do not say how sure the task's answer is.

    Only that of free text is computed without the tokens' texts; a label's needs the likeliest tokens, where vLLM would
    list the named ones alone.
    """
    if task.form.is_exact:
        data.pop("return_tokens_as_token_ids", None)
    if task.classifies:
        data.pop("logprob_token_ids", None)


def request_stream_usage(data: dict[str, Any], *, streams: bool) -> bool:
    """Make a stream end with its usage; return True if the client itself asked for it. Raises HttpError 400."""
    options = data.get("stream_options")
    if options is None:
        options = {}
    if not isinstance(options, dict):
        raise bad_request("`stream_options` must be an object", "stream_options")
    if streams:
        data["stream_options"] = {**options, "include_usage": True}
    return bool(options.get("include_usage"))
