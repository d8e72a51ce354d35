"""How a name looks: where one begins without a word before it, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from shared.privacy.redaction.data.cues import RANK, TITLE
from shared.privacy.redaction.detect.lexicon import MONTHS, PARTICLES, Lexicon, Token
from shared.privacy.redaction.spans import TextSpan

_LONGEST = 5
WEIGHT = 3
"""Of a name that a rule finds."""


class Strength(Enum):
    """How much the words before it say that a word is a name."""

    TITLE = "any word with a capital is one"
    NAMED = "any word that is not an English one, in lower case too"
    STRONG = "any word that is not an English one; in lower case a first name"
    SPEAKER = "any word that is not an English one; a common first name"
    TOWARDS = "any word that is not an English one, with its capital"
    BESIDE = "the same, or a first name or surname"
    SELF = "two unknown words, in lower case too"
    FIELD = "two words with capitals of which one is a name"
    DOING = "a first name in lower case that is no verb"
    WEAK = "a first name, in lower case too"
    NONE = "nothing is said"


class Shapes:
    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    def untold(self, text: str, tokens: list[Token]) -> Iterator[TextSpan]:
        """The names that are known as such, without a word that announces them."""
        done = 0
        for index, token in enumerate(tokens):
            if token.start >= done and self._begins(text, tokens, index):
                span = self.name(text, tokens, index, Strength.NONE)
                done = span.end
                last = text[span.start : span.end].split()[-1].casefold()
                if "-" in token.low or last not in self._lexicon.organisation:
                    yield span

    def name(self, text: str, tokens: list[Token], index: int, strength: Strength) -> TextSpan:
        """From its first word to its end: capitals follow a capital, known names a lower-case one."""
        first, last = tokens[index], index
        while last + 1 < len(tokens) and last - index < _LONGEST:
            gap = text[tokens[last].end : tokens[last + 1].start]
            if gap not in (" ", "  ") and not (gap == ". " and len(tokens[last].text) == 1):
                break
            small = self._particles(tokens, last + 1)
            if small:
                if not self._follows(first, tokens[last + small + 1], strength, after_particle=True):
                    break
                last += small + 1
            elif self._follows(first, tokens[last + 1], strength):
                last += 1
            else:
                break
        return TextSpan(first.start, tokens[last].end, "person", WEIGHT)

    def _begins(self, text: str, tokens: list[Token], index: int) -> bool:
        """Whether a name begins here, without a cue."""
        know, token = self._lexicon, tokens[index]
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        if len(token.low) == 1 and token.capital and not token.coded:
            return after is not None and text[token.end : after.start] == ". " and self._is_surname(after)
        if token.low in know.stop or token.low in know.not_people or token.low in MONTHS:
            return False
        beside = after is not None and text[token.end : after.start] == " " and after.capital == token.capital
        if not token.capital:
            first = token.low in know.english and token.low not in know.everyday
            second = beside and after is not None and after.low in know.last and after.low not in know.stop
            return first or (second and know.is_first(token.low) and not know.ordinary(token.low))
        if token.coded:
            return (
                beside
                and after is not None
                and token.low in know.first
                and after.low in know.last
                and not know.ordinary(token.low)
            )
        if know.is_first(token.low):
            return "-" in token.low or not (beside and after is not None and after.low in know.organisation)
        if text[token.end : token.end + 2] in ("'s", "’s") and not know.ordinary(token.low):
            return True
        if token.low in know.last and len(token.low) > 2 and not token.starts and not know.ordinary(token.low):
            return not (beside and after is not None and after.low in know.organisation)
        if token.low in know.english and not token.starts:
            return not (beside and after is not None and know.ordinary(after.low) and after.low not in know.last)
        coded = after is not None and text[after.end : after.end + 1].isdigit()  # "Konto DE89".
        return beside and after is not None and not coded and self._pair(token, after)

    def _is_surname(self, word: Token) -> bool:
        """Whether a word is one, behind an initial."""
        return word.capital and len(word.low) > 2 and not word.coded and not self._lexicon.ordinary(word.low)

    def _pair(self, one: Token, two: Token) -> bool:
        """Two words with capitals of which enough is known: one a name, the other at least no English word."""
        know = self._lexicon
        if two.low in know.stop or two.low in know.not_people or two.low in know.organisation:
            return False
        if TITLE.fullmatch(one.text) or RANK.fullmatch(one.text):
            return False
        if one.starts and know.ordinary(one.low) and (one.low not in know.first or know.ordinary(two.low)):
            return False
        points = 0.0
        for token, known in ((one, one.low in know.first), (two, know.is_name(two.low))):
            points += 1.0 if known else 0.5
            points -= 0.5 if know.ordinary(token.low) else 0.0
        return points >= 1.5

    def _particles(self, tokens: list[Token], index: int) -> int:
        """How many small words begin here, one or two ("van den"), with another word behind them; else 0."""
        for count in (1, 2):
            if index + count >= len(tokens) or tokens[index + count - 1].low not in PARTICLES:
                return 0
            if tokens[index + count].start != tokens[index + count - 1].end + 1:
                return 0
            if tokens[index + count].low not in PARTICLES or tokens[index + count].capital:
                return count
        return 0

    def _follows(self, first: Token, word: Token, strength: Strength, after_particle: bool = False) -> bool:
        know = self._lexicon
        if first.capital:
            return (
                word.capital
                and word.text != "I"
                and (after_particle or (word.low not in know.stop and word.low not in know.not_people))
            )
        if word.capital or word.low in know.stop or word.low in know.not_people:
            return False
        known = word.low in know.last or word.low in know.first
        unknown = not know.ordinary(word.low) and len(word.low) > 3
        unknown = unknown and (
            strength in (Strength.NAMED, Strength.SELF) or not word.low.endswith(("ed", "ing", "ly"))
        )
        return unknown or (known and not know.function_like(word.low))
