"""Finds matches of a task's own patterns, each under a deadline so that a slow one cannot stall redaction.

An expression that backtracks endlessly ("(a+)+$") is stopped at the deadline, and the text is redacted as a whole: a
hole in a text is better than a leak.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import regex  # Python's own `re` has no deadline.

from shared.errors import ConfigurationError
from shared.privacy.redaction.spans import TextSpan

DEADLINE_SECONDS = 0.1
"""Of one pattern on one text."""
_WEIGHT = 20  # Above every other: the operator knows best.

_log = logging.getLogger(__name__)


@lru_cache(1_000)
def _compiled(name: str, expression: str) -> Any:
    try:
        return regex.compile(expression)
    except regex.error as error:
        raise ConfigurationError(
            f"redaction pattern {name}: not a regular expression: {error}",
            "Correct it in the task's file and apply it.",
        ) from error


def find_custom_patterns(text: str, name: str, expression: str) -> list[TextSpan]:
    """Find the matches of one pattern. Raises ConfigurationError for an invalid expression."""
    pattern = _compiled(name, expression)
    try:
        found = list(pattern.finditer(text, timeout=DEADLINE_SECONDS))
    except TimeoutError:
        _log.warning(
            "redaction pattern %s took over %s s on a text of %s characters", name, DEADLINE_SECONDS, len(text)
        )
        return [TextSpan(0, len(text), name, _WEIGHT)]
    return [TextSpan(m.start(), m.end(), name, _WEIGHT) for m in found if m.end() > m.start()]
