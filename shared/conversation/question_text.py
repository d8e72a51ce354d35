"""What of a conversation a second opinion on its answer reads (`shared.model.second_opinion`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from schemas.conversation import INSTRUCTIONS
from schemas.tasks import TaskSpec

MAX_LABELS = 500
"""The classifier has 16 KB a label, in each worker of a gateway."""
_MAX_CHARS = 1_000
"""Of the end of a conversation, where the question is."""


def has_second_opinion(spec: TaskSpec) -> bool:
    """Return True for a task whose answers may have a second opinion."""
    return 0 < len(spec.choices) <= MAX_LABELS


def question_text(messages: Iterable[tuple[str, Any]]) -> str:
    """Return the text. `messages`: roles with contents, each a text or a list of parts.

    Nothing of instructions, which are the same in all of a task's conversations, nor of tool calls.
    """
    contents = (_text_of(content) for role, content in messages if role not in INSTRUCTIONS)
    return "\n".join(text for text in contents if text)[-_MAX_CHARS:]


def _text_of(content: Any) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    texts = (part.get("text") if isinstance(part, Mapping) else part.text for part in content)
    return "\n".join(text for text in texts if isinstance(text, str))
