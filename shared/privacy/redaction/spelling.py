"""Texts as detectors read them: other spellings of blanks, hyphens and digits are the plain ones. Pure.

A page that was copied has blanks that do not break between the groups of an IBAN, a contact's phone number has marks of
the direction of writing around it, a PDF has soft hyphens, an address has `%20` for a blank: no pattern would match.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from shared.privacy.redaction.spans import TextSpan

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Soft hyphens, joiners, marks of the direction, blanks of no width."""
_ENCODED = re.compile("%(?!40)[2-7][0-9A-Fa-f]")
"""A character of ASCII as addresses of pages write it. `%40` stays: what is before it may be no part of an address of
mail, and is none in the patterns that know it."""
_READ = re.compile(f"{_ENCODED.pattern}|[^{_INVISIBLE.pattern[1:-1]}]", re.DOTALL)
"""Each character that is read."""
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

    __slots__ = ("_ends", "_is_encoded", "_starts", "plain", "visible")

    def __init__(self, text: str) -> None:
        self.visible = self.plain = text
        self._starts: list[int] | None = None
        """Of the characters of `visible` in the text, as `_ends`; None: they are the same."""
        self._ends: list[int] = []
        self._is_encoded = "%" in text and _ENCODED.search(text) is not None
        is_ascii = text.isascii()
        if self._is_encoded or (not is_ascii and _INVISIBLE.search(text)):
            read = [(_decoded(found[0]), *found.span()) for found in _READ.finditer(text)]
            self.visible = "".join(character for character, _, _ in read)
            self._starts, self._ends = [start for _, start, _ in read], [end for _, _, end in read]
            self.plain = self.visible
        if not is_ascii:
            self.plain = self.visible.translate(_PLAIN)

    def in_text(self, spans: Iterable[TextSpan]) -> Iterator[TextSpan]:
        """Yield spans of `visible` as spans of the text."""
        if (starts := self._starts) is None:
            yield from spans
        else:
            for span in spans:
                yield TextSpan(starts[span.start], self._ends[span.end - 1], span.kind, span.weight)

    def written(self, words: str) -> str:
        """Return other words as the text writes its own: in an address of a page they keep it one."""
        return quote(words, safe="") if self._is_encoded else words


def _decoded(character: str) -> str:
    return chr(int(character[1:], 16)) if len(character) == 3 else character
