"""Checks of what a client sends. Hand-written, because they run on every request. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from schemas.tasks import TaskSpec
from services.gateway.json_codec import decode_json
from shared.answers import InvalidAnswer, answer_form
from shared.http import HttpError

MAX_USER = 500
MAX_OWN_ID = 500
"""The most characters of an application's own id of an answer."""
MAX_REFERENCE = 63 + 1 + MAX_OWN_ID
"""The most characters of an id in feedback: `<task>/<own id>`, a task having at most 63; a signed id is shorter."""
MAX_FEEDBACK_TEXT = 500_000
"""The most characters of an answer as it should have been: the event of it fits Kafka in any alphabet."""
FEEDBACK_KINDS = ("thumbs", "accepted", "edited", "label")


def bad_request(message: str, param: str | None = None, status: int = 400) -> HttpError:
    """The error for a request that can never succeed; `param` is the invalid field."""
    return HttpError(status, message, "invalid_request", param)


def quoted(value: Any) -> str:
    """Quote at most 50 characters of a value in a message; lists and objects, however deeply nested, by their type."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(str(value)[:50])


def read_json(body: bytes) -> Any:
    """Decode a body. Raises HttpError 400."""
    try:
        return decode_json(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}", "malformed_json") from error


def read_object(body: bytes) -> dict[str, Any]:
    """Decode a body that must be a JSON object. Raises HttpError 400."""
    data = read_json(body)
    if not isinstance(data, dict):
        raise bad_request("the body must be a JSON object")
    return data


def bool_field(data: Mapping[str, Any], name: str) -> bool:
    """A field that is true or false; False if absent or null. Raises HttpError 400."""
    value = data.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad_request(f"`{name}` must be true or false", name)
    return bool(value)


def text_field(
    data: Mapping[str, Any], name: str, max_length: int | None = None, *, required: bool = False
) -> str | None:
    """A text field; None if absent or null. `max_length`: what is stored of it has a limit. Raises HttpError 400."""
    value = data.get(name)
    if value is None:
        if required:
            raise bad_request(f"`{name}` is missing", name)
        return None
    if not isinstance(value, str):
        raise bad_request(f"`{name}` must be a string", name)
    return value if max_length is None else checked_text(value, name, max_length)


def checked_text(text: str, field: str, max_length: int) -> str:
    """Return the text if an event can carry it. Raises HttpError 400."""
    if len(text) > max_length:
        raise bad_request(f"`{field}` has {len(text)} characters; at most {max_length} are allowed: shorten it", field)
    if "\x00" in text:
        raise bad_request(f"`{field}` has a NUL character, which cannot be stored", field)
    return text


def feedback_fields(data: dict[str, Any], spec: TaskSpec) -> tuple[Any, bool | None, str | None]:
    """Return kind, `positive` and `text`; each kind has exactly the one of the two that it needs."""
    kind = data.get("kind")
    if kind not in FEEDBACK_KINDS:
        raise bad_request(f"`kind` must be one of: {', '.join(FEEDBACK_KINDS)}", "kind")
    if kind in ("thumbs", "accepted"):
        positive = data.get("positive")
        if not isinstance(positive, bool):
            raise bad_request(f"{kind} needs `positive`: true or false", "positive")
        return kind, positive, None
    text = text_field(data, "text", MAX_FEEDBACK_TEXT, required=True) or ""
    if not text.strip():
        raise bad_request("`text` is empty: give the answer as it should have been", "text")
    if not spec.labels and kind == "label":
        raise bad_request(f"{spec.name} has no labels; send kind `edited`", "kind", 422)
    form = answer_form(spec)
    try:
        return kind, None, form.canonical(form.from_user(text))
    except InvalidAnswer as error:
        hint = '; write calls as [{"name": …, "arguments": "{…}"}]' if spec.tools else ""
        raise bad_request(f"`text` is no answer of {spec.name}: {error}{hint}", "text", 422) from error


def number_field(item: dict[str, Any], name: str, low: float, high: float, *, required: bool = False) -> float | None:
    """A number field; None if absent or null. Raises HttpError 400."""
    value = item.get(name)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad_request(f"`{name}` must be a number from {low:g} to {high:g}", name)
    return float(value)
