"""Counts the tokens of examples.

Not in `recipe.py`, which takes seconds to load: the process that builds needs this, and not the libraries of that one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from schemas.conversation import JsonObject, Message
from shared.conversation import template_messages
from shared.grading.json_values import check_characters


class ChatTokens:
    """Counts the tokens of examples with a base model's tokenizer and chat template, as the trainer will."""

    def __init__(self, folder: Path) -> None:
        """`folder`: of the base model. Its tokenizer is loaded when it is first needed: most examples are short."""
        self._folder = folder
        self._tokenizer: Any = None

    def __call__(self, messages: Sequence[Message], tools: Sequence[JsonObject]) -> int | None:
        """See `building.length.CountTokens`."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(str(self._folder))
        options = {"tools": list(tools) or None, "return_dict": True}
        asked = template_messages(messages)
        try:
            check_characters(asked)
            tokens = self._tokenizer.apply_chat_template(asked, **options)["input_ids"]
        except (TemplateError, UnicodeEncodeError):
            return None
        calls = messages[-1].tool_calls
        if calls and not all(call.name in self._tokenizer.decode(tokens) for call in calls):
            return None  # A template that knows no tools: what remains would teach the model to say nothing.
        return len(tokens)
