"""Slices of a long text: redacted one after the other, each with what stands around it, so that none takes long.

A slice ends where a paragraph, a line or a sentence does. Where a text has no such place, personal data that the end
would cut belongs to the slice in which it begins.
"""

from __future__ import annotations

from dataclasses import dataclass

from shared.privacy.redaction.spans import TextSpan
from shared.text_ends import last_end

MAX_SLICE = 20_000
"""Characters of a slice: a tenth of a second's work."""
_CONTEXT = 300
"""Characters before and behind a slice that are looked at with it: longer than a name, an address or an account."""


@dataclass(frozen=True, slots=True)
class TextSlice:
    """`text[start:end]`. What stands before and behind it helps to find what it has, and is not replaced."""

    text: str
    start: int
    end: int

    @property
    def window_start(self) -> int:
        return max(self.start - _CONTEXT, 0)

    @property
    def window(self) -> str:
        """The slice with its context."""
        return self.text[self.window_start : self.end + _CONTEXT]

    def spans(self, found: list[TextSpan]) -> list[TextSpan]:
        """Return the spans of the window that begin in the slice, as spans of the text; a cut one loses its part before
        the slice, which the slice before has replaced."""
        offset, spans = self.window_start, []
        for span in found:
            start, end = max(span.start + offset, self.start), span.end + offset
            if start < end and start < self.end:
                spans.append(TextSpan(start, end, span.kind, span.weight))
        return spans


def slice_from(text: str, start: int) -> TextSlice:
    """Return the slice of the text that begins at `start`."""
    end = start + MAX_SLICE
    if end >= len(text):
        return TextSlice(text, start, len(text))
    return TextSlice(text, start, last_end(text, start + MAX_SLICE // 2, end) or end)
