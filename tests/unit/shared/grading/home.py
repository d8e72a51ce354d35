"""A tools task for tests: lights, bookings and a stop without arguments."""

from __future__ import annotations

import json
from typing import Any

from schemas.tasks import TaskSpec

LIGHT = {
    "name": "set_light",
    "description": "Lights of a room.",
    "parameters": {
        "type": "object",
        "properties": {
            "room": {"enum": ["kitchen", "hall"]},
            "on": {"type": "boolean"},
            "brightness": {"type": ["integer", "null"], "minimum": 1, "maximum": 100},
        },
        "required": ["room", "on"],
        "additionalProperties": False,
    },
}
BOOK = {
    "name": "book_table",
    "parameters": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "day": {"type": "string"},
            "price": {"type": "number"},
            "guests": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "day"],
        "additionalProperties": False,
    },
}
STOP = {"name": "stop"}
COMPARATORS = {
    "book_table.name": {"compare": "casefold"},
    "book_table.day": {"compare": "date"},
    "book_table.price": {"compare": "number", "tolerance": 0.01},
}


def home(**fields: Any) -> TaskSpec:
    return TaskSpec.model_validate({
        "name": "home", "kind": "tools", "system_prompt": "Call a function.", "tools": [LIGHT, BOOK, STOP],
        "comparators": COMPARATORS, **fields,
    })  # fmt: skip


def calls(*made: tuple[str, dict[str, Any]]) -> str:
    """An answer as one text: `Answer.plain`."""
    written = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in made]
    return json.dumps(written, separators=(",", ":"))


def light(room: str = "kitchen", on: bool = True, **more: Any) -> tuple[str, dict[str, Any]]:
    return "set_light", {"room": room, "on": on, **more}


def book(name: str = "Ann", day: str = "2026-12-01", **more: Any) -> tuple[str, dict[str, Any]]:
    return "book_table", {"name": name, "day": day, **more}


STOPS: tuple[str, dict[str, Any]] = ("stop", {})
