"""Where a text may be divided so that an address, a number or a name in it is not torn apart. Pure."""

from __future__ import annotations

_MARKS = (("\n\n",), ("\n",), (". ", "! ", "? ", "。"), (" ",))
"""What ends a paragraph, a line, a sentence or a word: the best first."""


def last_end(text: str, first: int, end: int) -> int | None:
    """Return the offset behind the last mark of the best kind in `text[first:end]`; None if there is none."""
    for marks in _MARKS:
        found = [at + len(mark) for mark in marks if (at := text.rfind(mark, first, end)) >= 0]
        if found:
            return max(found)
    return None


def first_end(text: str, start: int, last: int) -> int | None:
    """Return the offset behind the first mark of the best kind in `text[start:last]`; None if there is none."""
    for marks in _MARKS:
        found = [at + len(mark) for mark in marks if (at := text.find(mark, start, last)) >= 0]
        if found:
            return min(found)
    return None
