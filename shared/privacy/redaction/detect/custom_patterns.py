"""A task's own patterns, run so that a slow one cannot stop the log.

An expression that backtracks without end ("(a+)+$") is stopped by a deadline; then the text is tried in pieces, and a
piece on which it is still too slow counts as personal as a whole: better a hole in a text than a leak.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import regex as timed  # Python's own `re` cannot be given a deadline.

from shared.errors import ConfigurationError
from shared.privacy.redaction.spans import TextSpan

SECONDS = 0.1
"""For one pattern on one text, and once more for all its pieces together."""
_PIECE, _OVERLAP = 1_000, 100
_WEIGHT = 20  # The operator knows best.

_log = logging.getLogger(__name__)


@lru_cache(1_000)
def _compiled(name: str, expression: str) -> Any:
    try:
        return timed.compile(expression)
    except timed.error as error:
        raise ConfigurationError(
            f"redaction pattern {name}: not a regular expression: {error}",
            "Correct it in the task's file and apply it.",
        ) from error


def find_extra(text: str, name: str, expression: str) -> list[TextSpan]:
    """The matches of one pattern. Raises ConfigurationError for an expression that cannot be compiled."""
    pattern = _compiled(name, expression)
    try:
        return _matches(pattern, name, text, 0, SECONDS)
    except TimeoutError:
        _log.warning("redaction pattern %s took over %s s on a text of %s characters", name, SECONDS, len(text))
    return list(_by_pieces(pattern, name, text))


def _by_pieces(pattern: Any, name: str, text: str) -> Iterator[TextSpan]:
    deadline = time.monotonic() + SECONDS
    for start in range(0, len(text), _PIECE - _OVERLAP):
        piece = text[start : start + _PIECE]
        try:
            yield from _matches(pattern, name, piece, start, max(0.001, deadline - time.monotonic()))
        except TimeoutError:
            yield TextSpan(start, start + len(piece), name, _WEIGHT)


def _matches(pattern: Any, name: str, text: str, offset: int, seconds: float) -> list[TextSpan]:
    found = pattern.finditer(text, timeout=seconds)
    return [TextSpan(offset + m.start(), offset + m.end(), name, _WEIGHT) for m in found if m.end() > m.start()]
