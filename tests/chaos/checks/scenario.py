"""A ledger and a lake that agree, for tests that plant faults in the lake."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import write_deltalake

from tests.chaos.ledger import Ledger, Sent

TASK = "chaos-test"
_FUNCTION = {"name": "find_order", "description": "Finds it.", "parameters": {"type": "object", "properties": {}}}
_CALLS = [{"id": f"call_{n}", "name": "find_order", "arguments": f'{{"order": "A-{n}"}}'} for n in (1, 2)]
_AT = datetime(2026, 11, 25, 12, tzinfo=UTC)
_COLUMNS = {
    **dict.fromkeys(
        ("tools", "tool_choice", "response_format", "text", "tool_calls", "refusal", "reasoning", "app"), pa.string()
    ),
    **dict.fromkeys(("user_hash", "session_hash", "finish_reason"), pa.string()),
    **dict.fromkeys(("logprob", "confidence"), pa.float64()),
}


def said_of(n: int, user_text: str = "where is my order") -> dict[str, Any]:
    """What the ledger says of request `n`: a conversation with tools, two calls of them and their results."""
    chat_calls = [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in _CALLS
    ]
    return {
        "api": "chat", "model": "chaos-base", "variant": "base", "tool_choice": "auto", "session": f"session-{n % 2}",
        "messages": [
            {"role": "system", "content": "You help."},
            {"role": "user", "content": user_text, "name": "customer"},
            {"role": "assistant", "content": None, "tool_calls": chat_calls},
            {"role": "tool", "tool_call_id": "call_1", "content": '{"status": "late"}'},
            {"role": "tool", "tool_call_id": "call_2", "content": "lost"},
            {"role": "user", "content": "and now"},
        ],
        "tools": [{"type": "function", "function": _FUNCTION}], "metadata": {"marker": f"marker-{n}"},
        "response_format": {"type": "json_schema", "json_schema": {"name": "reply", "schema": {"type": "object"}}},
        "parameters": {"temperature": 0.25, "stop": ["."], "seed": n}, "usage": [20, 5, 2, 1], "latency_ms": 12.5,
        "answers": [{
            "text": "I open a ticket", "finish_reason": "tool_calls", "reasoning": "it is late", "logprob": -0.5,
            "tool_calls": chat_calls[:1],
        }],
    }  # fmt: skip


def row_of(n: int, prediction_id: str | None = None, user_text: str = "where is my order") -> dict[str, Any]:
    """The row of request `n` in the lake's published columns."""
    messages = [
        {"role": "system", "content": "You help."},
        {"role": "user", "content": user_text, "name": "customer"},
        {"role": "assistant", "tool_calls": _CALLS},
        {"role": "tool", "tool_call_id": "call_1", "content": '{"status": "late"}'},
        {"role": "tool", "tool_call_id": "call_2", "content": "lost"},
        {"role": "user", "content": "and now"},
    ]
    said = said_of(n)
    called = json.dumps([{k: _CALLS[0][k] for k in ("name", "arguments")}], separators=(",", ":"))
    return {
        "prediction_id": prediction_id or f"p{n}", "task": TASK, "date": date(2026, 11, 25), "occurred_at": _AT,
        "request_id": f"r-{prediction_id or n}", "answer_number": 0, "api": "chat", "messages": json.dumps(messages),
        "stream": False, "constrained": False, "truncated": False, "text": "I open a ticket",
        "answer": f"I open a ticket\n{called}", "tool_calls": json.dumps(_CALLS[:1]), "reasoning": "it is late",
        "answer_truncated": False, "finish_reason": "tool_calls", "model": "chaos-base", "variant": "base",
        "refusal": None, "app": None, "logprob": -0.5, "confidence": 0.6, "latency_ms": 12.5, "redactions": 0,
        "prompt_tokens": 20, "answer_tokens": 5, "cached_tokens": 2, "reasoning_tokens": 1,
        "user_hash": "hash-of-bob" if n == 9 else "hash-of-ann", "session_hash": f"hash-of-session-{n % 2}",
        **{
            name: json.dumps(said[name])
            for name in ("tools", "tool_choice", "response_format", "parameters", "metadata")
        },
    }  # fmt: skip


def table_of(rows: Sequence[dict[str, Any]]) -> pa.Table:
    """The rows as a table."""
    return pa.table({name: pa.array([row[name] for row in rows], _COLUMNS.get(name)) for name in rows[0]})


class Scenario:
    """A ledger of ten accepted requests of ann, with marker-0 to marker-9 and prediction ids p0 to p9.

    marker-9 is of bob, who is forgotten; 0 and 1 have a low confidence. Besides, marker-10 broke and marker-11 was
    refused; 1 and 2 got feedback.
    """

    def __init__(self, folder: Path, user_text: str = "where is my order") -> None:
        self.lake = folder / "lake"
        self.ledger = Ledger(folder / "ledger.sqlite")
        for n in range(12):
            user = "bob" if n == 9 else "ann"
            self.ledger.record_sending([Sent(f"marker-{n}", "chat", TASK, user, n < 2, said_of(n, user_text))])
        self.ledger.record_accepted((f"marker-{n}", [f"p{n}"]) for n in range(10))
        self.ledger.record_refused(["marker-11"])
        self.ledger.record_forgotten("bob", 1.0)
        for n in (1, 2):
            self.ledger.record_feedback(f"p{n}", f"marker-{n}", "ann", False)
            self.ledger.record_feedback_outcome(f"p{n}", "accepted", f"p{n}")

    def store(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append predictions."""
        write_deltalake(self.lake / "predictions", table_of(list(rows)), mode="append", partition_by=["task", "date"])

    def store_right(self, *changed: dict[str, Any], n: int | None = None) -> None:
        """Append the nine rows that must be there, `changed` instead of that of request `n`."""
        self.store([*(row_of(other) for other in range(9) if other != n), *changed])

    def store_feedback(self, ids: Sequence[str]) -> None:
        columns = {
            "event_id": [f"e{i}" for i, _ in enumerate(ids)],
            "prediction_id": list(ids),
            "task": [TASK] * len(ids),
            "date": [date(2026, 11, 25)] * len(ids),
        }
        write_deltalake(self.lake / "feedback", pa.table(columns), mode="append", partition_by=["task", "date"])
