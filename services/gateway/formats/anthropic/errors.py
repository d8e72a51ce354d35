"""Errors in Anthropic's shape, made of those in OpenAI's, which the rest of the gateway makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    401: "authentication_error", 403: "permission_error", 404: "not_found_error", 409: "conflict_error",
    413: "request_too_large", 429: "rate_limit_error", 503: "overloaded_error", 504: "timeout_error",
    529: "overloaded_error",
}  # fmt: skip


def error_body(status: int, body: Mapping[str, Any], request_id: str) -> dict[str, Any]:
    """Return the error in Anthropic's shape. `body`: the same in OpenAI's; its code is in `details`."""
    openai = body["error"]
    kind = _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
    error: dict[str, Any] = {"type": kind, "message": openai["message"]}
    if isinstance(openai.get("code"), str):
        error["details"] = {"error_code": openai["code"]}
    return {"type": "error", "error": error, "request_id": request_id}
