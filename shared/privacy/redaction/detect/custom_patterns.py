"""Finds matches of a task's own patterns, each under a deadline so that a slow one cannot stall redaction.

An expression that backtracks endlessly ("(a+)+$") is stopped at the deadline and retried on pieces of the text. A piece
on which it is still too slow is redacted as a whole: a hole in a text is better than a leak.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import regex  # Python's own `re` has no deadline.

from shared.errors import ConfigurationError
from shared.privacy.redaction.spans import TextSpan

DEADLINE_SECONDS = 0.1
"""Of one pattern on one text, and once more of all its pieces together."""
_PIECE_CHARACTERS, _OVERLAP_CHARACTERS = 1_000, 100
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
        return _matches(pattern, name, text, 0, DEADLINE_SECONDS)
    except TimeoutError:
        _log.warning(
            "redaction pattern %s took over %s s on a text of %s characters", name, DEADLINE_SECONDS, len(text)
        )
    return list(_by_pieces(pattern, name, text))


def _by_pieces(pattern: Any, name: str, text: str) -> Iterator[TextSpan]:
    deadline = time.monotonic() + DEADLINE_SECONDS
    for start in range(0, len(text), _PIECE_CHARACTERS - _OVERLAP_CHARACTERS):
        piece = text[start : start + _PIECE_CHARACTERS]
        try:
            yield from _matches(pattern, name, piece, start, max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            yield TextSpan(start, start + len(piece), name, _WEIGHT)


def _matches(pattern: Any, name: str, text: str, offset: int, seconds: float) -> list[TextSpan]:
    found = pattern.finditer(text, timeout=seconds)
    return [TextSpan(offset + m.start(), offset + m.end(), name, _WEIGHT) for m in found if m.end() > m.start()]
