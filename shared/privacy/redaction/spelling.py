"""Texts as detectors read them: other spellings of blanks, hyphens and digits are the plain ones. Pure.

A page that was copied has blanks that do not break between the groups of an IBAN, a contact's phone number has marks of
the direction of writing around it, a PDF has soft hyphens: nobody sees them, and no pattern would match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from shared.privacy.redaction.spans import TextSpan

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Soft hyphens, joiners, marks of the direction, blanks of no width."""
_BLANKS = (0x00A0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_HYPHENS = (*range(0x2010, 0x2014), 0x2212, 0xFE63)
_ZEROS = (0x0660, 0x06F0, 0x0966)
"""Of the Arabic, the Persian and the Hindi digits."""
_PLAIN = (
    {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
    | dict.fromkeys(_BLANKS, " ")
    | dict.fromkeys(_HYPHENS, "-")
    | {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
)
"""For one character one other, so that positions stay."""


class Spelling:
    """A text as it is read: `visible` without what nobody sees, and `plain` in plain characters, too, of which each
    stands where it stands in `visible`."""

    __slots__ = ("_positions", "plain", "visible")

    def __init__(self, text: str) -> None:
        self.visible = self.plain = text
        self._positions: list[int] | None = None
        """Of the characters of `visible` in the text; None: they are the same."""
        if text.isascii():
            return
        if _INVISIBLE.search(text):
            self._positions = [at for at, char in enumerate(text) if not _INVISIBLE.match(char)]
            self.visible = _INVISIBLE.sub("", text)
        self.plain = self.visible.translate(_PLAIN)

    def in_text(self, spans: Iterable[TextSpan]) -> Iterator[TextSpan]:
        """Yield spans of `visible` as spans of the text."""
        if (at := self._positions) is None:
            yield from spans
        else:
            for span in spans:
                yield TextSpan(at[span.start], at[span.end - 1] + 1, span.kind, span.weight)
