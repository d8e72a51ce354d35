"""Grades generated text: exact match, and the F1 of its words (SQuAD's, Rajpurkar et al. 2016).

How a character is written in Unicode makes no difference: é is one code point or two.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from shared.grading.json_values import NOT_JSON, composed, json_or_nothing, same_json

_MARK_CATEGORIES = ("Mn", "Mc", "Me")
_CODE_POINTS = range(0x300, 0x1F000)
"""All combining marks are among them, but for selectors of glyphs."""
_UNSEPARATED = ("THAI ", "LAO ", "MYANMAR ", "KHMER ", "TAI ")
"""Scripts with marks that put no spaces between words: cut at their marks, else a whole sentence were one word."""
_JOINERS = "\u200c\u200d"
"""Invisible inside words of Persian, Sinhala, Bengali and others."""
_MARKS = [
    character
    for character in map(chr, _CODE_POINTS)
    if unicodedata.category(character) in _MARK_CATEGORIES
    and not unicodedata.name(character, "").startswith(_UNSEPARATED)
]
_BASIC, _BEYOND = ("".join(m for m in _MARKS if (m > "\uffff") is beyond) for beyond in (False, True))
# `re` has a table of the basic plane's characters and tries others one after the other, ten times slower: so those are
# tried only for characters beyond it.
_BEYOND_MARK = rf"(?=[\U00010000-\U0010ffff])[{_BEYOND}]"
MARK = rf"(?:[{_BASIC}{_JOINERS}]|{_BEYOND_MARK})"
"""A pattern: what belongs to the letter before it. `\\w` alone cuts words there: Hindi, Tamil, vocalised Arabic."""
_IN_WORD = rf"(?:[\w{_BASIC}{_JOINERS}]|{_BEYOND_MARK})"
WORD = rf"\w{_IN_WORD}*"
"""A pattern: a word with its combining marks."""
_TOKEN = re.compile(
    rf"""(?<!{_IN_WORD})[-+\u2212]?\d+(?:[.,:/]\d+)*   # A number with its sign, separators and decimals.
      | {WORD}
      | [^\w\s.,;:!?'"\u2018\u2019\u201c\u201d]  # A symbol, such as % or <; punctuation of sentences says nothing.
    """,
    re.VERBOSE,
)
_LOOKS_LIKE_JSON = ("{", "[")


def casefolded(text: str) -> str:
    """Return the text without case, in one Unicode form."""
    return composed(composed(text).casefold())  # Folding takes some characters apart.


def words(text: str) -> list[str]:
    """Return the words, numbers and symbols of a text, without case, space and the punctuation of sentences.

    A word keeps its combining marks. Where a script does not separate words, a run of Chinese or Japanese characters is
    one word, and Thai, Lao, Khmer and Burmese are cut at their marks.
    """
    return _TOKEN.findall(casefolded(text))


def exact_match(given: str, expected: str) -> bool:
    """Return True if both texts say the same.

    JSON is compared as JSON, so that its keys may be in any order and broken JSON equals none. Other texts are
    compared by their words; a number's sign and decimals count.
    """
    value, wanted = json_or_nothing(given), json_or_nothing(expected)
    if value is not NOT_JSON and wanted is not NOT_JSON:
        return same_json(value, wanted)
    given, expected = composed(given), composed(expected)
    if any(text.lstrip().startswith(_LOOKS_LIKE_JSON) for text in (given, expected)):
        return given.strip() == expected.strip()
    given_words, expected_words = words(given), words(expected)
    if not given_words or not expected_words:  # Punctuation alone.
        return given.strip() == expected.strip()
    return given_words == expected_words


def token_f1(given: str, expected: str) -> float:
    """Return the F1 over the words of both, in [0, 1]: 0 where they share none. Its order of words does not count."""
    have, want = Counter(words(given)), Counter(words(expected))
    if not have and not want:
        return float(composed(given).strip() == composed(expected).strip())
    common = (have & want).total()
    return 2 * common / (have.total() + want.total())
