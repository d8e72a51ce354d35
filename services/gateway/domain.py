"""What a message and a prediction id are in the gateway. Pure."""

from __future__ import annotations

import hmac
from uuid import uuid4

from shared.identity import keyed_hash

_MAC_HEX_DIGITS = 12

ChatMessage = dict[str, str]
"""A message as an event carries it: `role` (system, user, assistant) and `content`."""


class PredictionIds:
    """Ids that say which task they belong to and that nobody else can make: `<task>.<uuid4 hex>.<12 hex HMAC>`.

    An invented or altered id is refused without a look-up in any store. An application that names its answers itself
    (a span, or what the `ratchet` package sends) says `<task>/<its own id>`; for those it is `<task>.x<hash>.<HMAC>`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, task: str) -> str:
        return self._signed(f"{task}.{uuid4().hex}")

    def of(self, task: str, own_id: str) -> str:
        """The id of an answer that the application calls `own_id`: always the same."""
        return self._signed(f"{task}.x{keyed_hash(self._key, f'{task}/{own_id}', 32)}")

    def resolve(self, given: str) -> str | None:
        """The id that a client means by ours, or by `<task>/<own id>`; None for any other text."""
        task, named, own_id = given.partition("/")
        if named:
            return self.of(task, own_id) if task and own_id else None
        return given if self.task_of(given) is not None else None

    def _signed(self, name: str) -> str:
        return f"{name}.{keyed_hash(self._key, name, _MAC_HEX_DIGITS)}"

    def task_of(self, prediction_id: str) -> str | None:
        """The task of an id that we signed; None for any other text."""
        name, _, mac = prediction_id.rpartition(".")
        # As bytes: compare_digest refuses str that is not ASCII, and anything may be sent to us.
        genuine = hmac.compare_digest(mac.encode(), keyed_hash(self._key, name, _MAC_HEX_DIGITS).encode())
        return name.partition(".")[0] if genuine else None
