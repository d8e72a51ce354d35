"""Made corrections of a task of three labels. Texts of different numbers share hardly anything."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas.conversation import Answer, Call, Message, Role
from schemas.labels import CorrectionSubmitted, Purpose
from schemas.tasks import TaskKind, TaskSpec

LABELS = ("refund", "delivery", "cancel")
START = datetime(2026, 1, 5, tzinfo=UTC)
SPEC = TaskSpec(name="desk", kind=TaskKind.CLASSIFICATION, system_prompt="Intent?", labels=LABELS)


def sentence(number: int) -> str:
    """Return nine made words."""
    words = random.Random(number)
    return " ".join("".join(words.choices("abcdefghijklmnop", k=6)) for _ in range(9))


def call(text: str) -> Call:
    """Return a call that asks this."""
    return Call(messages=(Message(role=Role.USER, content=text),))


def audit(number: int, name: str, asked: Call, label: str, **changes: Any) -> CorrectionSubmitted:
    """Return the correction of a prediction of this name, of every hundredth that chance drew for review.

    Each is of a user of its own, and one of five reviewers gave it.
    """
    fields = {
        "occurred_at": START + timedelta(minutes=number), "task": SPEC.name, "task_revision": SPEC.revision,
        "correction_id": f"c{number}", "request_id": f"r{number}", "prediction_id": name, "purpose": Purpose.AUDIT,
        "reviewer": f"reviewer-{number % 5}", "call": asked, "answers": (Answer(text=LABELS[0]),), "label": label,
        "inclusion_probability": 0.01, "drawn_probability": 0.01, "user_hash": f"user-{number}", "predicted_at": START,
    }  # fmt: skip
    return CorrectionSubmitted.model_validate({**fields, **changes})
