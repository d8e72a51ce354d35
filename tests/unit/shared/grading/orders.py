"""A task that extracts orders, for tests of what grades and checks its answers."""

from __future__ import annotations

from typing import Any

from schemas.tasks import TaskSpec

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "customer": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "vip": {"type": ["boolean", "null"]}},
            "required": ["name"],
        },
        "ordered_on": {"type": ["string", "null"], "format": "date"},
        "total": {"type": ["number", "null"]},
        "status": {"enum": ["open", "paid", None]},
        "items": {"type": "array", "items": {"$ref": "#/$defs/item"}},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["customer", "items"],
    "additionalProperties": False,
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "minimum": 1}},
            "required": ["sku", "count"],
        }
    },
}


def orders(**fields: Any) -> TaskSpec:
    return TaskSpec.model_validate(
        {"name": "orders", "kind": "extraction", "system_prompt": "Extract.", "output_schema": SCHEMA, **fields}
    )
