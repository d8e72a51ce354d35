"""Builds the event of an answer that was made elsewhere: sent by HTTP, by Kafka or as a span. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas.base import Variant
from services.gateway.formats.conversation import EventConversation, Object
from services.gateway.formats.media import MediaReferences
from services.gateway.recording.builder import LoggedAnswer, LoggedRequest, encode_call, prediction_logged
from shared.spool import Record


def external_call(messages: Sequence[Any], media: MediaReferences, **fields: Any) -> Object:
    """The `Call` of an answer made elsewhere. `messages`: of the chat API. Raises HttpError 400."""
    conversation = EventConversation(media).add_chat_messages(messages)
    call: Object = {"api": "external", "messages": conversation.messages, **fields}
    if conversation.truncated:
        call["truncated"] = True
    return call


def external_prediction(task: str, revision: str, call: Object, answer: LoggedAnswer, **facts: Any) -> Record:
    """The record of an answer made elsewhere. It is a request of its own, named as its prediction is.

    `facts`: fields of `LoggedRequest`. Raises HttpError 400 for a call that cannot be encoded.
    """
    request = LoggedRequest(
        task, revision, answer.prediction_id, encode_call(call), facts.pop("model", "external"),
        variant=Variant.EXTERNAL, **facts,
    )  # fmt: skip
    return prediction_logged(request, [answer])
