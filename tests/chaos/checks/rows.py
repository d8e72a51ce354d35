"""Makes a call and its answer again from a row of the lake's table `predictions`, and from what the ledger says of it.

Both become the same form, `Facts`: field → value, with messages and calls of tools as OpenAI's chat API has them. The
columns are those of the published contract (schemas/lake.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

Facts = dict[str, Any]
JSON_COLUMNS = ("messages", "tools", "tool_choice", "response_format", "parameters", "metadata")
PLAIN_COLUMNS = ("api", "stream", "constrained", "truncated", "model", "variant", "app")
_EMPTY: Facts = {"parameters": {}, "metadata": {}, "stream": False, "constrained": False, "truncated": False}


def facts_of_row(row: Mapping[str, Any]) -> Facts:
    """Return what a row says. `row`: column → value."""
    facts: Facts = {name: row[name] for name in PLAIN_COLUMNS}
    facts |= {name: None if row[name] is None else json.loads(row[name]) for name in JSON_COLUMNS}
    facts["messages"] = [_message_of_row(message) for message in facts["messages"]]
    facts["tools"] = facts["tools"] or None
    facts["answer"] = {
        "text": row["answer"] if row["text"] is None else row["text"],
        "tool_calls": [_call_of_row(call) for call in json.loads(row["tool_calls"] or "[]")],
        "refusal": row["refusal"],
        "reasoning": row["reasoning"],
        "truncated": row["answer_truncated"],
        "finish_reason": row["finish_reason"],
    }
    facts["usage"] = [row[f"{name}_tokens"] for name in ("prompt", "answer", "cached", "reasoning")]
    facts["latency_ms"], facts["occurred_at"] = row["latency_ms"], row["occurred_at"].isoformat()
    facts["logprob"], facts["confidence"] = row["logprob"], row["confidence"]
    return facts


def facts_of_said(said: Mapping[str, Any], number: int) -> Facts:
    """Return what a row must say of the answer of this number. Facts that are not there may be any."""
    answer = dict(said["answers"][number])
    facts = {name: said.get(name, _EMPTY.get(name)) for name in (*PLAIN_COLUMNS, *JSON_COLUMNS)}
    facts["messages"] = [_message_sent(message) for message in said["messages"]]
    facts["tools"] = said.get("tools") or None
    facts |= {name: answer.pop(name) for name in ("logprob", "confidence") if name in answer}
    facts["answer"] = {"refusal": None, "reasoning": None, "truncated": False, **answer}
    asked, answered, cached, reasoning = said["usage"]
    facts["usage"] = [asked, answered if len(said["answers"]) == 1 else 1, cached, reasoning]
    return facts | {name: said[name] for name in ("latency_ms", "occurred_at") if name in said}


def plain_answer(row: Mapping[str, Any]) -> str:
    """Return the answer as one text, as the column `answer` must have it: said, refused and called."""
    if row["text"] is None and row["tool_calls"] is None and row["refusal"] is None:
        return str(row["answer"])
    calls = [
        {"name": call["name"], "arguments": call.get("arguments", "")} for call in json.loads(row["tool_calls"] or "[]")
    ]
    called = json.dumps(calls, ensure_ascii=False, separators=(",", ":")) if calls else ""
    return "\n".join(text for text in (row["text"], row["refusal"], called) if text)


def is_equal_number(sent: float, stored: float | None) -> bool:
    return stored is not None and math.isclose(sent, stored, rel_tol=1e-9)


def _message_of_row(message: Mapping[str, Any]) -> Facts:
    found = {"content": None, **message}
    if isinstance(message.get("content"), list):
        found["content"] = [_part_of_row(part) for part in message["content"]]
    if message.get("tool_calls"):
        found["tool_calls"] = [_call_of_row(call) for call in message["tool_calls"]]
    return found


def _part_of_row(part: Mapping[str, Any]) -> Facts:
    """A part of a message; of a picture what can be compared: its kind, type and size."""
    if (media := part.get("media")) is None:
        return dict(part)
    return {"type": part["type"], "media": [media["kind"], media.get("media_type"), media.get("size")]}


def _call_of_row(call: Mapping[str, Any]) -> Facts:
    function = {"name": call["name"], "arguments": call.get("arguments", "")}
    return {"id": call.get("id"), "type": call.get("type", "function"), "function": function}


def _message_sent(message: Mapping[str, Any]) -> Facts:
    content = message.get("content")
    if not isinstance(content, list):
        return dict(message)
    return {**message, "content": [_part_sent(part) for part in content]}


def _part_sent(part: Mapping[str, Any]) -> Facts:
    if part["type"] != "image_url":
        return dict(part)
    head, _, data = part["image_url"]["url"].partition(",")
    media_type = head.removeprefix("data:").removesuffix(";base64")
    return {"type": "image_url", "media": ["image", media_type, len(data) * 3 // 4 - data.count("=")]}
