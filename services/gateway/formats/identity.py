"""Who asks: the user and the conversation that a request names, and the metadata that its event keeps. No I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import orjson

from schemas.predictions import MAX_METADATA
from services.gateway.formats.validation import text_field
from services.gateway.json_codec import encode_json

USER_HEADER = b"x-ratchet-user"
"""Names the user where the body does not, so that a canary is sticky for the whole session."""
SESSION_HEADER = b"x-ratchet-session"
CLIENT_METADATA = "client_metadata"
"""Codex's, by the responses API: ids of its installation, of the session and of the turn."""
_SESSION_FIELDS = ("session_id", "conversation_id", "thread_id")
"""Of `metadata` and of Codex's."""
_IDENTIFIERS = frozenset(("user_id", *_SESSION_FIELDS))
SESSION_FIELD, XARGS = "session_id", "vllm_xargs"
"""vLLM's own names of the session: a field of the body, and one of its extra arguments."""
_PERSONAL_FIELDS = ("user", "safety_identifier", "metadata", CLIENT_METADATA, "prompt_cache_key", SESSION_FIELD)
"""Fields that do not reach the model server: each may name a person."""
_MAX_NAME, _MAX_VALUE = 64, 512

_NAMING = (str, int)
"""A tuple: `str | int` makes an object each time that it is asked for."""
_NOTHING: dict[str, str] = {}

Headers = Iterable[tuple[bytes, bytes]]


class Identity(NamedTuple):
    """The user and the session as the application calls them, and the rest of its `metadata`, bounded."""

    user: str | None = None
    session: str | None = None
    metadata: dict[str, str] = {}  # noqa: RUF012 - never changed


def identity_of(data: Mapping[str, Any], headers: Headers = ()) -> Identity:
    """Return who asks, of a body as the client sent it: a classification's loses fields that name the session.

    The user is the first of `user`, `safety_identifier`, `metadata.user_id` (Anthropic's) and the header; the session
    that of `metadata`, of Codex's and vLLM's own fields, of Claude Code's user, and of the header. Raises HttpError 400
    for a user that is not a text.
    """
    user = text_field(data, "user") or text_field(data, "safety_identifier") or None
    session, kept = None, _NOTHING
    if isinstance(metadata := data.get("metadata"), dict):
        user = user or _first([metadata.get("user_id")])
        session = _first([metadata.get(name) for name in _SESSION_FIELDS])
        kept = bounded_metadata(metadata)
    if isinstance(metadata := data.get(CLIENT_METADATA), dict):
        session = session or _first([metadata.get(name) for name in _SESSION_FIELDS])
    session = session or _first([data.get(SESSION_FIELD)])
    if isinstance(xargs := data.get(XARGS), dict):
        session = session or _first([xargs.get(SESSION_FIELD)])
    if user and (known := _of_claude_code(user)):
        user, session = known.user, session or known.session
    for name, value in headers:
        if name == USER_HEADER:
            user = user or value.decode("utf-8", "replace")
        elif name == SESSION_HEADER:
            session = session or value.decode("utf-8", "replace")
    return Identity(user, session, kept)


def identity_in(parameters: Mapping[str, Any]) -> Identity:
    """Return who asks, by the parameters of a request that was answered elsewhere; what is no name is passed over."""
    found: dict[str, Any] = {name: value for name, value in parameters.items() if isinstance(value, str)}
    for name, value in parameters.items():
        if isinstance(value, dict):
            found[name] = {inner: named for inner, named in value.items() if inner in _IDENTIFIERS}
    return identity_of(found)


def remove_identity(data: dict[str, Any]) -> None:
    """Remove from a body what says who asks."""
    for field in _PERSONAL_FIELDS:
        data.pop(field, None)
    if isinstance(xargs := data.get(XARGS), dict):
        xargs.pop(SESSION_FIELD, None)  # In place: the body of another API's request may hold the same object.


def bounded_metadata(metadata: dict[str, Any]) -> dict[str, str]:
    """Return the entries that an event keeps: so many, so long, and without the ids, of which it has hashes."""
    kept = [(name, value) for name, value in metadata.items() if name not in _IDENTIFIERS and value is not None]
    return {name[:_MAX_NAME].replace("\x00", ""): _text(value) for name, value in kept[:MAX_METADATA]}


def _of_claude_code(user: str) -> Identity | None:
    """Return the person, who is an account or else a device, and the session that Claude Code calls its user together.

    Taken as it is, each of a person's sessions would be another person. None: another application named the user.
    """
    if not user.startswith("{"):
        return None
    try:
        ids = orjson.loads(user)
    except orjson.JSONDecodeError:
        return None
    session = _first([ids.get("session_id")])
    person = _first([ids.get("account_uuid"), ids.get("device_id")])
    return Identity(person, session) if person and session else None


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else encode_json(value).decode()
    kept = text[:_MAX_VALUE]
    if len(text) > _MAX_VALUE:  # Of half an address nobody could tell that it is one, so that it is to be redacted.
        whole_words, space, _ = kept.rpartition(" ")
        kept = whole_words if space else kept
    return kept.replace("\x00", "")


def _first(values: Iterable[Any]) -> str | None:
    """The first value that names somebody: a text, or the number that an application's database has."""
    for value in values:
        if value is not None and isinstance(value, _NAMING) and not isinstance(value, bool) and value != "":
            return str(value)
    return None
