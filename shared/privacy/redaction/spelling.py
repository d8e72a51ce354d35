"""Texts as detectors read them: other spellings of blanks, hyphens and digits are the plain ones. Pure.

A page that was copied has blanks that do not break between the groups of an IBAN, a contact's phone number has marks of
the direction of writing around it, a PDF has soft hyphens, an address has `%20` for a blank: no pattern would match.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from urllib.parse import quote

from shared.privacy.redaction.spans import TextSpan

_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")
"""Soft hyphens, joiners, marks of the direction, blanks of no width."""
_ENCODED = re.compile("%(?!40)[2-7][0-9A-Fa-f]")
"""A character of ASCII as addresses of pages write it. `%40` stays: what is before it may be no part of an address of
mail, and is none in the patterns that know it."""
_ENCODED_LENGTH = 3
_OTHERWISE = re.compile(f"{_ENCODED.pattern}|{_INVISIBLE.pattern}")
_BLANKS = (0x00A0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000)
_HYPHENS = (*range(0x2010, 0x2014), 0x2212, 0xFE63)
_ZEROS = (0x0660, 0x06F0, 0x0966)
"""Of the Arabic, the Persian and the Hindi digits."""
_UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
"""Thai, Japanese, Chinese and Korean letters: no blank need stand between them and a number or an address of mail."""
_IDEOGRAPHIC_COMMA = "\u3001"
_PLAIN = (
    {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}
    | dict.fromkeys(_BLANKS, " ")
    | dict.fromkeys(_HYPHENS, "-")
    | {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
)
"""For one character one other, so that positions stay."""


class Spelling:
    """A text as it is read: `visible` without what nobody sees, and `plain` in plain characters, too, of which each
    stands where it stands in `visible`. `formats` is `plain` with a comma for each letter of scripts without blanks."""

    __slots__ = ("_shifts", "_since", "_text", "formats", "plain", "visible")

    def __init__(self, text: str) -> None:
        self.visible = self.plain = self._text = text
        self._since, self._shifts = [0], [0]
        """From which characters of `visible` on the text has so many more."""
        is_ascii = text.isascii()
        if self._is_encoded or not is_ascii:
            self.visible = self.plain = _OTHERWISE.sub(self._read, text)
        if not is_ascii:
            self.plain = self.visible.translate(_PLAIN)
        self.formats = self.plain if is_ascii else _UNSPACED.sub(_IDEOGRAPHIC_COMMA, self.plain)

    def in_text(self, spans: Iterable[TextSpan]) -> Iterator[TextSpan]:
        """Yield spans of `visible` as spans of the text."""
        for span in spans:
            last = self._position(span.end - 1)
            end = last + (_ENCODED_LENGTH if _ENCODED.match(self._text, last) else 1)
            yield TextSpan(self._position(span.start), end, span.kind, span.weight)

    def written(self, words: str) -> str:
        """Return other words as the text writes its own: in an address of a page they keep it one."""
        return quote(words, safe="") if self._is_encoded else words

    @property
    def _is_encoded(self) -> bool:
        return "%" in self._text and _ENCODED.search(self._text) is not None

    def _read(self, found: re.Match[str]) -> str:
        """Return what is read in the place of something, and note by how much what follows moves."""
        character = chr(int(found[0][1:], 16)) if len(found[0]) == _ENCODED_LENGTH else ""
        before = self._shifts[-1]
        self._since.append(found.start() - before + len(character))
        self._shifts.append(before + len(found[0]) - len(character))
        return character

    def _position(self, of_visible: int) -> int:
        return of_visible + self._shifts[bisect_right(self._since, of_visible) - 1]
