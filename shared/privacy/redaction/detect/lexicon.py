"""What is known of a word: a first name, a surname, an English word, a brand."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.privacy.redaction.data import language_model as model
from shared.privacy.redaction.data.gazetteer import ORGANISATION, names

_WORD = re.compile(r"[^\W\d_]+(?:['’`-][^\W\d_]+)*")
_POSSESSIVE = ("'s", "’s")
_ENDS_SENTENCE = frozenset('.!?\n:;"“”>•*-–—|')
_HUMPS = re.compile(r"[a-zà-ÿ][A-ZÀ-Þ]|[A-ZÀ-Þ]{2}[a-zà-ÿ]")
_SCOTTISH = re.compile(r"(?:Mc|Mac|Fitz|De|Di|Da|La|Le|Van|Del|Des|Du|O['’]|D['’]|L['’])[A-ZÀ-Þ][a-zà-ÿ]+", re.UNICODE)
_CONTRACTED = re.compile(
    r".*['’](?:t|ll|ve|re|d|m|s)|(?:do|does|did|is|was|were|wo|ca|has|have|had|would|could|should|are|ai)nt|"
    r"(?:there|that|what|he|she|it|who|let|where|how)s|(?:i|you|they|we)(?:ve|re|m|ll)"
)
_SUFFIXES = ("s", "es", "ed", "ing", "er", "est", "ly", "in")
_SUFFIXES_OF_NAMES = ("s", "es", "ed", "ing")  # Gabrielly is no adverb.
PARTICLES = frozenset(
    """
    de da di del della dos das do der den van von bin ibn bint al el la le du san st ter ten zu y e af av
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
"""Small words inside a name."""
_GREETINGS = frozenset(
    """
    hi hello hey dear thanks thank sorry please cheers morning hiya hallo regards yes no ok okay hola ciao bonjour
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)


MONTHS = frozenset(
    """
    january february march april may june july august september october november december jan januar februar märz
    mai juni juli oktober dezember janvier février mars avril juin juillet août septembre octobre novembre décembre
    enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre gennaio febbraio aprile
    maggio giugno luglio settembre ottobre dicembre janeiro fevereiro março maio junho julho setembro outubro
    novembro dezembro januari februari maart mei augustus
    """.split()  # noqa: SIM905
)
"""Months, in the languages that texts come in."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word. `starts`: it begins a sentence or line, so its capital says nothing; `coded`: an acronym or aCode."""

    start: int
    end: int
    text: str
    low: str
    starts: bool
    coded: bool = False

    @property
    def capital(self) -> bool:
        return self.text[0].isupper()


def tokens_of(text: str) -> list[Token]:
    """The words of a text, without the possessive "'s"."""
    found: list[Token] = []
    end = 0
    shouted = sum(char.islower() for char in text) < sum(char.isupper() for char in text)
    for match in _WORD.finditer(text):
        word = match[0]
        if word.endswith(_POSSESSIVE):
            word = word[:-2]
        between = text[end : match.start()]
        starts = not found or not _ENDS_SENTENCE.isdisjoint(between)
        found.append(
            Token(
                match.start(),
                match.start() + len(word),
                word,
                word.casefold(),
                starts,
                _coded(word, shouted) or text[match.start() - 1 : match.start()].isdigit(),
            )
        )
        end = match.end()
    return found


def _coded(word: str, shouted: bool) -> bool:
    """AUD, ReLU, iPhone; but not McDonald, and nothing in a text that is in capitals all over."""
    if word.isupper():
        return len(word) > 1 and not shouted
    return bool(_HUMPS.search(word)) and not _SCOTTISH.match(word)


class Lexicon:
    def __init__(self) -> None:
        known = names()
        others, nouns = model.ordinary_words()
        self.first, self.last, self.english = known.first, known.last, known.english
        self.everyday, self.not_people, self.organisation = known.everyday, known.not_people, ORGANISATION
        self.stop = model.stop_words()
        self.foreign_stop = model.foreign_stop_words()
        self._foreign_only = self.foreign_stop - self.stop
        self._verbs, self._nouns = others, nouns - others - self.stop
        self._dictionary = others | nouns | self.stop
        self._seen: dict[str, bool] = {}

    def ordinary(self, low: str) -> bool:
        """An English word, also inflected; common first names that WordNet lists too are none."""
        known = self._seen.get(low)
        if known is None:
            if len(self._seen) > 100_000:  # Typos are endless.
                self._seen.clear()
            known = self._seen[low] = self._is_ordinary(low)
        return known

    def function_like(self, low: str) -> bool:
        """A word that may well follow a name without being of it: "tom said", "anna long"."""
        return low in self._verbs and low not in self.english

    def is_first(self, low: str) -> bool:
        """Surely a first name, if it has a capital."""
        if "-" in low:
            low, rest = low.split("-", 1)
            if self.ordinary(rest) and rest not in self.first:
                return False
        return (low in self.first and len(low) > 2 and not self.ordinary(low)) or (
            low in self.english and low not in self.everyday
        )

    def is_name(self, low: str) -> bool:
        """A first name or a surname to somebody."""
        if "-" in low:
            return any(part in self.first or part in self.last for part in low.split("-"))
        return low in self.first or low in self.last

    def foreign(self, tokens: list[Token]) -> bool:
        """Most of its small words are not English: the English model is no witness there, nor is a German's capital."""
        small = [token.low for token in tokens if not token.capital and len(token.low) > 1]
        if len(small) > 1 and 2 * sum(low in self._dictionary for low in small) <= len(small):
            return True
        others = sum(low in self._foreign_only for low in small)
        return others > 1 and others > sum(low in self.stop for low in small)

    def verb(self, low: str) -> bool:
        """A word of English that is more than a noun."""
        return low in self._verbs

    def only_noun(self, low: str) -> bool:
        """Money, version: no verb that a person could be doing."""
        plural = len(low) > 4 and low.endswith("s") and low not in self.stop and low not in self._verbs
        return low in self._nouns or (plural and low[:-1] in self._nouns) or low == "one"

    def listed(self, low: str) -> bool:
        """In the dictionary, common first name or not: basil, olive."""
        return low in self._dictionary

    def compound(self, low: str) -> bool:
        """Two English words in one, and no name: username, payout."""
        if self.is_name(low):
            return False
        cuts = range(3, len(low) - 2)
        return any(low[:i] in self._dictionary and low[i:] in self._dictionary for i in cuts)

    def only_foreign(self, low: str) -> bool:
        """A small word of another language that is nobody's name: unsere, nous."""
        return low in self._foreign_only and not self.is_name(low)

    def greeting(self, low: str) -> bool:
        """Said before a name, and taken for part of it by the model."""
        return low in _GREETINGS

    def _is_ordinary(self, low: str) -> bool:
        if low in self.english and low not in self.everyday:
            return False
        if len(low) == 2 and low in self.last and low not in self.stop:
            return False  # Li, Wu, Xu: chemistry has them too.
        if low in self._dictionary or low in self.everyday:
            return True
        if _CONTRACTED.fullmatch(low):
            return low not in self.first and low not in self.last
        if "'" in low or "’" in low or "-" in low:
            return all(part in self._dictionary or len(part) < 3 for part in re.split(r"['’-]", low))
        suffixes = _SUFFIXES_OF_NAMES if low in self.first else _SUFFIXES
        return len(low) > 3 and any(low.endswith(end) and self._known(low.removesuffix(end)) for end in suffixes)

    def _known(self, stem: str) -> bool:
        whole = (
            stem,
            stem + "e",
            stem[:-1] if stem[-1:] == stem[-2:-1] else "",
            stem[:-1] + "y" if stem[-1:] == "i" else "",
        )
        return len(stem) > 2 and any(word in self._dictionary for word in whole)
