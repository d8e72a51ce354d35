"""Leaves base64 out of texts: no reader wants it, and the redactor would search it for names. Pure.

By contract a picture or a file is a reference; an application that writes to Kafka itself may have it in a text.
"""

from __future__ import annotations

import re

MARK = "[… base64 left out …]"
_MIN_RUN = 1_000
_MIN_WORD = 700
"""What each alternative below has without a blank or a quote: 1,000 characters, or twelve lines of 61."""
_MIN_DISTINCT = 16
"""Different characters of a run: 30,000 times an x are a text."""
_CHARACTER = "[A-Za-z0-9+/=_-]"
# Linear: a run is tried at its first character only (`(?<!…)`), and never given back (`++`).
_FOUND = re.compile(
    rf"data:[\w/+.;=-]{{0,200}};base64,{_CHARACTER}*+"
    rf"|(?<!{_CHARACTER})(?:{_CHARACTER}{{{_MIN_RUN},}}+|(?:{_CHARACTER}{{60,200}}+\r?\n){{12,}}+{_CHARACTER}*+)"
)


def without_base64(text: str) -> str:
    """Return the text with a mark for each data URL and each long run of base64; the text itself if it has none."""
    if ";base64," in text or (len(text) >= _MIN_RUN and _has_long_word(text)):
        cut = _FOUND.sub(_mark, text)
        return text if cut == text else cut
    return text


def _has_long_word(text: str) -> bool:
    """Return True if there may be a long run, with neither a quote nor a blank in `_MIN_WORD` characters. Most texts
    have none, and this is a hundred times faster than the expression.

    It goes from the last separator of each stretch of that length to the last one of the stretch behind it, so that
    every stretch without a separator is one of those looked at.
    """
    start, last = 0, len(text) - _MIN_WORD
    rfind = text.rfind
    while start <= last:
        end = start + _MIN_WORD
        if (found := rfind(" ", start, end)) < 0 and (found := rfind('"', start, end)) < 0:
            return True
        start = found + 1
    return False


def _mark(found: re.Match[str]) -> str:
    run = found[0]
    return MARK if run.startswith("data:") or len(set(run)) >= _MIN_DISTINCT else run
