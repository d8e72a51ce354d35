"""A request while it is being answered: shared by the answerers and the recorder."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from services.gateway.asgi.exchange import Exchange, Headers
from services.gateway.domain import unsigned_id
from services.gateway.formats.api import ApiRequest, Choice
from services.gateway.formats.media import InlineMedia
from services.gateway.routing.arms import Arm
from services.gateway.tasks.served import ServedTask
from shared.answers.measure import ConfidenceMeasure
from shared.tracing import TraceHeaders

_MAX_IDS_BYTES = 3_000
"""Many proxies refuse an answer whose headers are over 4 KiB together, nginx's default, and clients one over 8 KiB."""


class Caller(NamedTuple):
    """Who sent a request, as its events say it. `trace`: the trace headers of the events.

    `subject`: see `Identifiers.subject`; None for an answer made elsewhere.
    """

    user_hash: str | None = None
    session_hash: str | None = None
    app: str | None = None
    metadata: dict[str, str] = {}  # noqa: RUF012 - never changed
    trace: TraceHeaders = ()
    subject: str | None = None


class InFlightRequest:
    """A request that is being answered, and the attribution of its answer.

    `prediction_ids`: one for each answer asked for; a request without predictions has one, for its observation.
    `calls`: what its events say was asked, one for each event. `instead_of`: the chosen arm, once another one had to
    stand in. `media`: what is to be kept of it; None, as a rule. `questions`: see `EncodedCalls`.
    """

    __slots__ = (
        "caller", "calls", "exchange", "instead_of", "media", "parsed", "prediction_ids", "questions", "request_id",
        "task",
    )  # fmt: skip

    def __init__(
        self,
        exchange: Exchange,
        task: ServedTask,
        parsed: ApiRequest,
        calls: Sequence[bytes],
        prediction_ids: Sequence[str],
        caller: Caller,
    ) -> None:
        self.exchange = exchange
        self.task = task
        self.parsed = parsed
        self.calls = calls
        self.prediction_ids = prediction_ids
        self.caller = caller
        self.request_id = unsigned_id(prediction_ids[0])
        self.instead_of: Arm | None = None
        self.media: Collection[InlineMedia] | None = None
        self.questions: Sequence[str] = ()

    def attribution_headers(self, arm: Arm) -> Headers:
        """Response headers that tell the client who answered. The ids of several answers, in order, have their own,
        unless they are too long: the body of such an answer has them, too."""
        headers = [
            (b"x-ratchet-prediction-id", self.prediction_ids[0].encode()),
            (b"x-ratchet-variant", _header_value(arm.variant)),
            (b"x-ratchet-adapter", _header_value(arm.adapter or "")),
        ]
        if len(self.prediction_ids) > 1 and len(ids := ",".join(self.prediction_ids)) <= _MAX_IDS_BYTES:
            headers.append((b"x-ratchet-prediction-ids", ids.encode()))
        if self.instead_of is not None:
            headers.append((b"x-ratchet-instead-of", _header_value(self.instead_of.variant)))
        return headers

    def attribution(
        self, arm: Arm, choices: Sequence[Choice], confidences: Sequence[ConfidenceMeasure], logged: bool
    ) -> dict[str, Any]:
        """The object `ratchet` at the end of a stream: who answered, and how confidently."""
        attribution: dict[str, Any] = {
            "prediction_id": self.prediction_ids[0],
            "variant": arm.variant,
            "adapter": arm.adapter,
            "confidence": confidences[0].score if confidences else None,
        }
        if len(self.prediction_ids) > 1:
            attribution["choices"] = [
                {"prediction_id": self.prediction_ids[choice.number], "confidence": confidence.score}
                for choice, confidence in zip(choices, confidences, strict=True)
            ]
        if not logged:
            attribution["logged"] = False
        return attribution


@lru_cache(maxsize=1_000)
def _header_value(text: str) -> bytes:
    """Text as a header may carry it: a flag's payload is typed by people."""
    return "".join(c if " " <= c <= "~" else "?" for c in text).encode()
