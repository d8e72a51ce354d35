"""Makes calls and answers again from rows of the lake's table `predictions` (schemas/lake.py). Pure.

for row in polars.scan_delta(f"{lake}/predictions").filter(…).collect().iter_rows(named=True):
    path, body = replay_request(call_of_row(row), labels)
    httpx.post(f"{server}{path}", json={**body, "model": row["model"]})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from schemas.conversation import Answer, Call

_CALL_JSON = ("messages", "tools", "tool_choice", "response_format", "parameters", "surrogates")
_CALL_FIELDS = ("api", "stream", "constrained", "truncated")
_ANSWER_FIELDS = ("refusal", "reasoning", "finish_reason")


def call_of_row(row: Mapping[str, Any]) -> Call:
    """Return the call of a row: equal to the event's. `row`: column → value."""
    fields = {name: json.loads(row[name]) for name in _CALL_JSON if row[name] is not None}
    return Call.model_validate({**fields, **{name: row[name] for name in _CALL_FIELDS}})


def answer_of_row(row: Mapping[str, Any]) -> Answer:
    """Return the answer of a row: equal to the event's, without its id and confidence."""
    tool_calls = json.loads(row["tool_calls"]) if row["tool_calls"] is not None else ()
    text = row["answer"] if row["text"] is None else row["text"]
    fields = {name: row[name] for name in _ANSWER_FIELDS}
    return Answer.model_validate(
        {**fields, "text": text, "tool_calls": tool_calls, "truncated": row["answer_truncated"]}
    )
