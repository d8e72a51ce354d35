"""Identifiers of the gateway: the ids of predictions, users and conversations. Pure."""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from shared.identity import keyed_hash, random_id

_MAC_HEX_DIGITS = 12


class PredictionIds:
    """Creates and checks prediction ids, which name their task and are signed: `<task>.<uuid4 hex>.<12 hex HMAC>`.

    An invented or altered id is refused without a look-up in any store. An application that has an id of its own for an
    answer (a span, or what the `ratchet` package sends) refers to it as `<task>/<own id>`; the prediction id of such an
    answer is `<task>.x<hash>.<HMAC>`.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def new(self, task: str, unique: str | None = None) -> str:
        """A new id. `unique`: a uuid4 in hex that names nothing else."""
        return self._signed(f"{task}.{unique or random_id()}")

    def derive(self, task: str, own_id: str) -> str:
        """The id of an answer that the application calls `own_id`. Deterministic."""
        return self._signed(f"{task}.x{keyed_hash(self._key, f'{task}/{own_id}', 32)}")

    def resolve(self, given: str) -> str | None:
        """The prediction id for a signed id or for `<task>/<own id>`; None for any other text."""
        task, slash, own_id = given.partition("/")
        if slash:  # A dot would end the task's name within the id: `<task>.<anything>/x` would be signed as the task's.
            return self.derive(task, own_id) if task and "." not in task and own_id else None
        return given if self.task_of(given) is not None else None

    def task_of(self, prediction_id: str) -> str | None:
        """The task of a signed id; None for any other text."""
        name, _, mac = prediction_id.rpartition(".")
        # As bytes: compare_digest raises for str that is not ASCII, and a client may send anything.
        genuine = hmac.compare_digest(mac.encode(), keyed_hash(self._key, name, _MAC_HEX_DIGITS).encode())
        return name.partition(".")[0] if genuine else None

    def _signed(self, name: str) -> str:
        return f"{name}.{keyed_hash(self._key, name, _MAC_HEX_DIGITS)}"


def unsigned_id(prediction_id: str) -> str:
    """The part of a prediction's id that is its own, without the task and the signature: it names its request, too."""
    return prediction_id.split(".", 2)[1]


@dataclass(frozen=True)
class Identifiers:
    """How events name predictions (signed ids) and users (hashes with the key of data subjects)."""

    predictions: PredictionIds
    subjects_key: bytes

    def user_hash(self, user: str | None) -> str | None:
        """The user as events name them; None without a user."""
        return keyed_hash(self.subjects_key, user) if user else None

    def session_hash(self, session: str | None) -> str | None:
        """The conversation as events name it; None without one. Equal names of a user and a session differ."""
        return keyed_hash(self.subjects_key, f"session/{session}") if session else None

    def subject(
        self, user_hash: str | None, session_hash: str | None, app: str | None, opening: str | None
    ) -> str | None:
        """Whom a request is taken to be from: the user, else the session, else who began a conversation so in the app.

        `opening`: what the conversation began with, as it was sent: this is the only place that knows it unredacted,
        so the subject travels in the events. White space around it does not count.
        None: it has no conversation (embeddings).
        """
        if (known := user_hash or session_hash) or opening is None:
            return known
        return keyed_hash(self.subjects_key, f"conversation/{app or ''}\n{opening.strip()}")
