"""The shape of names: where one begins without a cue before it, and where it ends."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum

from shared.privacy.redaction.data.cues import RANK, TITLE
from shared.privacy.redaction.detect.lexicon import MONTHS, PARTICLES, Lexicon, Token
from shared.privacy.redaction.spans import TextSpan

_MAX_WORDS_AFTER_FIRST = 5
NAME_WEIGHT = 3
"""Weight of the span of a name that a rule finds."""


class CueStrength(Enum):
    """Which words after a cue are names, from the strongest cue to none."""

    TITLE = "any capitalised word"
    NAMED = "any word that is not English, in lower case too"
    STRONG = "any capitalised word that is not English; in lower case a first name"
    SPEAKER = "any word that is not English, or a common first name"
    TOWARDS = "any capitalised word that is not English"
    BESIDE = "any capitalised word that is not English, or a first or last name"
    SELF = "two unknown words, in lower case too"
    FIELD = "two capitalised words of which one is a name"
    DOING = "a first name in lower case that is not a verb"
    WEAK = "a first name, in lower case too"
    NONE = "no cue"


class NameShapes:
    """Finds names by their words alone, and where a name ends."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    def find_unintroduced(self, text: str, tokens: list[Token]) -> Iterator[TextSpan]:
        """Yield the names that no cue introduces."""
        end = 0
        for index, token in enumerate(tokens):
            if token.start >= end and self._begins(text, tokens, index):
                span = self.name_span(text, tokens, index, CueStrength.NONE)
                end = span.end
                last = text[span.start : span.end].split()[-1].casefold()
                if "-" in token.lower or last not in self._lexicon.organisation_words:
                    yield span

    def name_span(self, text: str, tokens: list[Token], index: int, strength: CueStrength) -> TextSpan:
        """Return the span of the name that begins at `index`: capitalised words, or in lower case known names."""
        first, last = tokens[index], index
        while last + 1 < len(tokens) and last - index < _MAX_WORDS_AFTER_FIRST:
            gap = text[tokens[last].end : tokens[last + 1].start]
            if gap not in (" ", "  ") and not (gap == ". " and len(tokens[last].text) == 1):
                break
            particles = self._count_particles(tokens, last + 1)
            if particles:
                if not self._follows(first, tokens[last + particles + 1], strength, after_particle=True):
                    break
                last += particles + 1
            elif self._follows(first, tokens[last + 1], strength):
                last += 1
            else:
                break
        return TextSpan(first.start, tokens[last].end, "person", NAME_WEIGHT)

    def _begins(self, text: str, tokens: list[Token], index: int) -> bool:
        """Return True if a name begins here without a cue."""
        lexicon, token = self._lexicon, tokens[index]
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        if len(token.lower) == 1 and token.is_capitalised and not token.is_code:
            return after is not None and text[token.end : after.start] == ". " and self._is_surname(after)
        if token.lower in lexicon.stop_words or token.lower in lexicon.not_people or token.lower in MONTHS:
            return False
        is_adjacent = after is not None and text[token.end : after.start] == " "
        adjacent = after if is_adjacent and after and after.is_capitalised == token.is_capitalised else None
        if not token.is_capitalised:
            if token.lower in lexicon.common_first_names and token.lower not in lexicon.everyday_names:
                return True
            if adjacent is None or adjacent.lower not in lexicon.last_names or adjacent.lower in lexicon.stop_words:
                return False
            return lexicon.is_first_name(token.lower) and not lexicon.is_ordinary(token.lower)
        is_ordinary = lexicon.is_ordinary(token.lower)
        if token.is_code:
            is_first_name = token.lower in lexicon.first_names and not is_ordinary
            return adjacent is not None and is_first_name and adjacent.lower in lexicon.last_names
        is_firm = adjacent is not None and adjacent.lower in lexicon.organisation_words
        if lexicon.is_first_name(token.lower):
            return "-" in token.lower or not is_firm
        if text[token.end : token.end + 2] in ("'s", "’s") and not is_ordinary:
            return True
        if not token.starts_sentence:
            if token.lower in lexicon.last_names and len(token.lower) > 2 and not is_ordinary:
                return not is_firm
            if token.lower in lexicon.common_first_names:
                return (
                    adjacent is None or not lexicon.is_ordinary(adjacent.lower) or adjacent.lower in lexicon.last_names
                )
        if adjacent is None or text[adjacent.end : adjacent.end + 1].isdigit():  # "Konto DE89".
            return False
        return self._is_pair(token, adjacent)

    def _is_surname(self, word: Token) -> bool:
        """Return True if the word behind an initial is a surname."""
        return (
            word.is_capitalised
            and len(word.lower) > 2
            and not word.is_code
            and not self._lexicon.is_ordinary(word.lower)
        )

    def _is_pair(self, first: Token, second: Token) -> bool:
        """Return True for two capitalised words of which one is a known name and the other is not an English word."""
        lexicon = self._lexicon
        if (
            second.lower in lexicon.stop_words
            or second.lower in lexicon.not_people
            or second.lower in lexicon.organisation_words
        ):
            return False
        if TITLE.fullmatch(first.text) or RANK.fullmatch(first.text):
            return False
        if (
            first.starts_sentence
            and lexicon.is_ordinary(first.lower)
            and (first.lower not in lexicon.first_names or lexicon.is_ordinary(second.lower))
        ):
            return False
        points = 0.0
        for token, is_known in ((first, first.lower in lexicon.first_names), (second, lexicon.is_name(second.lower))):
            points += 1.0 if is_known else 0.5
            points -= 0.5 if lexicon.is_ordinary(token.lower) else 0.0
        return points >= 1.5

    def _count_particles(self, tokens: list[Token], index: int) -> int:
        """Return how many particles begin here, one or two ("van den"), with another word behind them; else 0."""
        for count in (1, 2):
            if index + count >= len(tokens) or tokens[index + count - 1].lower not in PARTICLES:
                return 0
            if tokens[index + count].start != tokens[index + count - 1].end + 1:
                return 0
            if tokens[index + count].lower not in PARTICLES or tokens[index + count].is_capitalised:
                return count
        return 0

    def _follows(self, first: Token, word: Token, strength: CueStrength, after_particle: bool = False) -> bool:
        lexicon = self._lexicon
        if first.is_capitalised:
            return (
                word.is_capitalised
                and word.text != "I"
                and (after_particle or (word.lower not in lexicon.stop_words and word.lower not in lexicon.not_people))
            )
        if word.is_capitalised or word.lower in lexicon.stop_words or word.lower in lexicon.not_people:
            return False
        is_known = word.lower in lexicon.last_names or word.lower in lexicon.first_names
        is_unknown = not lexicon.is_ordinary(word.lower) and len(word.lower) > 3
        is_unknown = is_unknown and (
            strength in (CueStrength.NAMED, CueStrength.SELF) or not word.lower.endswith(("ed", "ing", "ly"))
        )
        return is_unknown or (is_known and not lexicon.can_follow_name(word.lower))
