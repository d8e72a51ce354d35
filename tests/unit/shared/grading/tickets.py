"""A task whose answers have several labels."""

from __future__ import annotations

import json

from schemas.tasks import TaskSpec

LABELS = ("delivery", "damage", "refund", "invoice")


def tickets(**changes: object) -> TaskSpec:
    given = {"name": "tickets", "kind": "multi_label", "system_prompt": "What is it about?", "labels": LABELS}
    return TaskSpec.model_validate({**given, **changes})


def topics(*names: str) -> str:
    """An answer, its labels in this order."""
    return json.dumps(names)
