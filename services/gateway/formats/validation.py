"""Checks of what a client sends, with refusals in its own terms. Hand-written: they run on every request. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

from schemas.base import MAX_TEXT
from schemas.tasks import TaskKind, TaskSpec
from shared.http import HttpError

MAX_USER = 500
FEEDBACK_KINDS = ("thumbs", "accepted", "edited", "label")


def bad_request(message: str, param: str | None = None, status: int = 400) -> HttpError:
    """The refusal of a request that can never succeed as it is."""
    return HttpError(status, message, "invalid_request", param)


def quoted(value: Any) -> str:
    """At most fifty characters of it for a message; what may be nested deeper than Python can show, by its kind."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(str(value)[:50])


def read_json(body: bytes) -> Any:
    """The body, decoded. Raises HttpError 400."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise HttpError(400, f"the body is not valid JSON: {error}", "malformed_json") from error


def read_object(body: bytes) -> dict[str, Any]:
    """The body, which must be a JSON object. Raises HttpError 400."""
    data = read_json(body)
    if not isinstance(data, dict):
        raise bad_request("the body must be a JSON object")
    return data


def text_field(data: dict[str, Any], name: str, longest: int = MAX_TEXT, *, required: bool = False) -> str | None:
    """A text of an object, checked; absent or null: None. Raises HttpError 400."""
    value = data.get(name)
    if value is None:
        if required:
            raise bad_request(f"`{name}` is missing", name)
        return None
    if not isinstance(value, str):
        raise bad_request(f"`{name}` must be a string", name)
    return checked_text(value, name, longest)


def checked_text(text: str, where: str, longest: int = MAX_TEXT) -> str:
    """The text, if an event can carry it. Raises HttpError 400."""
    if len(text) > longest:
        raise bad_request(f"`{where}` has {len(text)} characters; at most {longest} are taken", where)
    if "\x00" in text:
        raise bad_request(f"`{where}` has a NUL character, which no text store takes", where)
    return text


def feedback_fields(data: dict[str, Any], spec: TaskSpec) -> tuple[Any, bool | None, str | None]:
    """Kind, `positive` and `text`, where each kind has exactly the one it needs."""
    kind = data.get("kind")
    if kind not in FEEDBACK_KINDS:
        raise bad_request(f"`kind` must be one of: {', '.join(FEEDBACK_KINDS)}", "kind")
    if kind in ("thumbs", "accepted"):
        positive = data.get("positive")
        if not isinstance(positive, bool):
            raise bad_request(f"{kind} needs `positive`: true or false", "positive")
        return kind, positive, None
    text = text_field(data, "text", required=True) or ""
    if not text.strip():
        raise bad_request("`text` is empty: give the answer as it should have been", "text")
    if spec.kind is TaskKind.CLASSIFICATION and text not in spec.labels:
        raise bad_request(f"{text[:100]!r} is no label of {spec.name}; one of: {', '.join(spec.labels)}", "text", 422)
    if spec.kind is TaskKind.GENERATION and kind == "label":
        raise bad_request(f"{spec.name} has no labels; send kind `edited`", "kind", 422)
    return kind, None, text


def number_field(item: dict[str, Any], name: str, low: float, high: float, *, required: bool = False) -> float | None:
    """A number of an object, checked; absent or null: None. Raises HttpError 400."""
    value = item.get(name)
    if value is None and not required:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise bad_request(f"`{name}` must be a number from {low:g} to {high:g}", name)
    return float(value)
