"""Builds the event of a request that was answered elsewhere, sent by HTTP, by Kafka or as a span: one rule for all.

An application's own ids are stored as keyed hashes only, made here for every source, so that the same id of an answer
is the same prediction, and the same user the same person, whichever way they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.base import MAX_EVENT_BYTES, Variant, utc_now
from services.gateway.domain import Identifiers, PredictionIds, unsigned_id
from services.gateway.formats.api import Choice, TokenUsage
from services.gateway.formats.calls import is_deep, parameters_of
from services.gateway.formats.conversation import EventConversation, Object
from services.gateway.formats.identity import Identity, identity_in, identity_of
from services.gateway.formats.media import MediaReferences
from services.gateway.formats.validation import bad_request
from services.gateway.recording.builder import (
    NEWEST,
    OLDEST,
    LoggedRequest,
    RecordedAnswer,
    encode_call,
    prediction_logged,
)
from services.gateway.recording.request import Caller
from shared.answers.measure import UNKNOWN, ConfidenceMeasure
from shared.identity import load_or_create_key
from shared.spool import Record
from shared.tracing import TraceHeaders

_EXTERNAL = "external"
"""The model of an answer whose sender names none."""


@dataclass(frozen=True, kw_only=True)
class ExternalReport:
    """What a sender says of a request that was answered elsewhere. `call`: the event's `Call`, from `external_call` or
    `call_of_messages`.

    `own_id`: the sender's own of the answer; of further answers it has a number behind it. None: it has none.
    """

    task: str
    task_revision: str
    call: Object
    answers: Sequence[Choice]
    caller: Caller
    own_id: str | None = None
    model: str | None = None
    adapter: str | None = None
    confidence: ConfidenceMeasure = UNKNOWN
    usage: TokenUsage = field(default_factory=TokenUsage)
    latency_ms: float = 0.0
    occurred_at: datetime | None = None


class ExternalPredictions:
    """Makes the records, with the gateway's keys. `event_bytes`: the most of an event's texts."""

    def __init__(
        self,
        identifiers: Identifiers,
        event_bytes: int = MAX_EVENT_BYTES,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.identifiers = identifiers
        self.media = MediaReferences(identifiers.subjects_key)
        self.now = now
        self._event_bytes = event_bytes

    def time_of(self, occurred_at: datetime) -> datetime:
        """The time, or now where a clock was ahead: by that one it would be of after an erasure.

        Raises HttpError 400 for a time that no reader would take: before what Kafka keeps, or far in the future.
        """
        now = self.now()
        if not OLDEST <= occurred_at - now <= NEWEST:
            raise bad_request(
                f"`occurred_at` is {occurred_at.isoformat()}; it must be in the last {-OLDEST.days} days, and at most "
                "an hour ahead: is the clock right?",
                "occurred_at",
            )
        return min(occurred_at, now)

    def caller(
        self,
        user: Any,
        session: str | None,
        metadata: Any,
        app: str | None = None,
        trace: TraceHeaders = (),
        parameters: Any = None,
    ) -> Caller:
        """Who a sender says asked: hashes of the user and the session, and what is kept of `metadata`.

        `parameters`: of the request; they name who asked where nothing else does, and their names are not kept. Raises
        HttpError 400 for a user that is not a text, or metadata that cannot be encoded.
        """
        identity = identity_of({"user": user, "metadata": metadata})
        given = identity_in(parameters) if isinstance(parameters, dict) else Identity()
        ids = self.identifiers
        session_hash = ids.session_hash(session or identity.session or given.session)
        user_hash = ids.user_hash(identity.user or given.user)
        return Caller(user_hash, session_hash, _stored_name(app), identity.metadata, trace)

    def prediction_ids(self, task: str, own_id: str | None, count: int = 1) -> list[str]:
        """The ids of the answers to a request: derived from the sender's own, else new ones."""
        ids = self.identifiers.predictions
        if own_id is None:
            return [ids.new(task) for _ in range(count)]
        return [ids.derive(task, own_id if number == 0 else f"{own_id}-{number}") for number in range(count)]

    def record(self, report: ExternalReport) -> tuple[list[str], Record]:
        """The ids of the answers, and the record. Raises HttpError 400 for what an event cannot carry."""
        occurred_at = self.time_of(report.occurred_at or self.now())
        prediction_ids = self.prediction_ids(report.task, report.own_id, len(report.answers))
        caller = report.caller
        request = LoggedRequest(
            report.task, report.task_revision, unsigned_id(prediction_ids[0]),
            encode_call(report.call, self._event_bytes), _stored_name(report.model) or _EXTERNAL,
            _stored_name(report.adapter), Variant.EXTERNAL, report.usage, report.latency_ms, caller.user_hash,
            caller.session_hash, caller.subject, caller.app, caller.metadata, occurred_at, caller.trace,
        )  # fmt: skip
        answers = [
            RecordedAnswer(
                prediction_id, choice.text, choice.tool_calls, choice.refusal, choice.reasoning, choice.finish_reason,
                report.confidence, report.usage.answer_tokens if len(prediction_ids) == 1 else 0, choice.truncated,
            )
            for prediction_id, choice in zip(prediction_ids, report.answers, strict=True)
        ]  # fmt: skip
        return prediction_ids, prediction_logged(request, answers, self._event_bytes)


def load_identifiers(secrets_folder: Path) -> Identifiers:
    """The gateway's keys, created on first use: the processes of a home have the same ones."""
    signing_key = load_or_create_key(secrets_folder, "prediction-ids")
    return Identifiers(PredictionIds(signing_key), load_or_create_key(secrets_folder, "subjects"))


def external_call(messages: Sequence[Any], media: MediaReferences, added: int = 0, **fields: Any) -> Object:
    """The `Call` of an answer made elsewhere. `messages`: of the chat API, `added` of them not by the sender; `fields`:
    as of `call_of_messages`.

    Raises HttpError 400 that names the sender's message.
    """
    conversation = EventConversation(media).add_chat_messages(messages, added=added)
    return call_of_messages(conversation.messages, truncated=conversation.truncated, **fields)


def call_of_messages(
    messages: Sequence[Object], *, truncated: bool = False, parameters: Mapping[str, Any] | None = None, **fields: Any
) -> Object:
    """The `Call` of messages in the event's form. `fields`: others of the call.

    As of the gateway's own answers, what is nested deeper than readers of an event take is left out and marked, and so
    is what names people or signs in; the role `developer` is `system`, as in chats.
    """
    kept = {name: value for name, value in fields.items() if not is_deep(value)}
    said, cut = parameters_of(parameters or {})
    named = [{**each, "role": "system"} if each["role"] == "developer" else each for each in messages]
    call: Object = {"api": _EXTERNAL, "messages": named, **kept, "parameters": said}
    if truncated or cut or len(kept) < len(fields):
        call["truncated"] = True
    return call


def _stored_name(name: str | None) -> str | None:
    """A name without NUL, which no database stores; None for an empty one."""
    return name.replace("\x00", "") or None if name else None
