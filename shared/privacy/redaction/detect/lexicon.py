"""Splits texts into words, and knows of a word whether it is a name, an English word or an organisation's."""

from __future__ import annotations

import re
from dataclasses import dataclass

from shared.privacy.redaction.data import language_model
from shared.privacy.redaction.data.gazetteer import ORGANISATION_WORDS, load_gazetteer

_WORD = re.compile(r"[^\W\d_]+(?:['’`-][^\W\d_]+)*")
_POSSESSIVE = ("'s", "’s")
_ENDS_SENTENCE = frozenset('.!?\n:;"“”>•*-–—|')
_INNER_CAPITAL = re.compile(r"[a-zà-ÿ][A-ZÀ-Þ]|[A-ZÀ-Þ]{2}[a-zà-ÿ]")
_NAME_PREFIX = re.compile(
    r"(?:Mc|Mac|Fitz|De|Di|Da|La|Le|Van|Del|Des|Du|O['’]|D['’]|L['’])[A-ZÀ-Þ][a-zà-ÿ]+", re.UNICODE
)
_CONTRACTED = re.compile(
    r".*['’](?:t|ll|ve|re|d|m|s)|(?:do|does|did|is|was|were|wo|ca|has|have|had|would|could|should|are|ai)nt|"
    r"(?:there|that|what|he|she|it|who|let|where|how)s|(?:i|you|they|we)(?:ve|re|m|ll)"
)
_SUFFIXES = ("s", "es", "ed", "ing", "er", "est", "ly", "in")
_SUFFIXES_AFTER_NAMES = ("s", "es", "ed", "ing")  # Gabrielly is not an adverb.
PARTICLES = frozenset(
    """
    de da di del della dos das do der den van von bin ibn bint al el la le du san st ter ten zu y e af av
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
"""Small words inside a name."""
GREETINGS = frozenset(
    """
    hi hello hey dear thanks thank sorry please cheers morning hiya hallo regards yes no ok okay hola ciao bonjour
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
"""Words that the model takes for part of the name behind them."""
MONTHS = frozenset(
    """
    january february march april may june july august september october november december jan januar februar märz
    mai juni juli oktober dezember janvier février mars avril juin juillet août septembre octobre novembre décembre
    enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre gennaio febbraio aprile
    maggio giugno luglio settembre ottobre dicembre janeiro fevereiro março maio junho julho setembro outubro
    novembro dezembro januari februari maart mei augustus
    """.split()  # noqa: SIM905
)
"""Months in English and other European languages."""


@dataclass(frozen=True, slots=True)
class Token:
    """A word of a text. `lower`: case-folded; `starts_sentence`: of a line too, so its capital means nothing.

    `is_code`: an acronym, or a word with inner capitals such as iPhone.
    """

    start: int
    end: int
    text: str
    lower: str
    starts_sentence: bool
    is_code: bool = False

    @property
    def is_capitalised(self) -> bool:
        return self.text[0].isupper()


def tokens_of(text: str) -> list[Token]:
    """Split a text into words, without the possessive "'s"."""
    tokens: list[Token] = []
    end = 0
    in_capitals = sum(char.islower() for char in text) < sum(char.isupper() for char in text)
    for match in _WORD.finditer(text):
        word = match[0]
        if word.endswith(_POSSESSIVE):
            word = word[:-2]
        between = text[end : match.start()]
        starts_sentence = not tokens or not _ENDS_SENTENCE.isdisjoint(between)
        tokens.append(
            Token(
                match.start(),
                match.start() + len(word),
                word,
                word.casefold(),
                starts_sentence,
                _is_code(word, in_capitals) or text[match.start() - 1 : match.start()].isdigit(),
            )
        )
        end = match.end()
    return tokens


def _is_code(word: str, in_capitals: bool) -> bool:
    """Return True for AUD, ReLU and iPhone, not for McDonald; `in_capitals`: so is the whole text."""
    if word.isupper():
        return len(word) > 1 and not in_capitals
    return bool(_INNER_CAPITAL.search(word)) and not _NAME_PREFIX.match(word)


class Lexicon:
    """What is known about words; all take them in lower case. Building it takes 0.4 s."""

    def __init__(self) -> None:
        gazetteer = load_gazetteer()
        verbs_and_more, nouns = language_model.ordinary_words()
        self.first_names, self.last_names = gazetteer.first_names, gazetteer.last_names
        self.common_first_names = gazetteer.common_first_names
        self.everyday_names, self.not_people = gazetteer.everyday_names, gazetteer.not_people
        self.organisation_words = ORGANISATION_WORDS
        self.stop_words, self.foreign_stop_words = language_model.stop_words(), language_model.foreign_stop_words()
        self._foreign_only = self.foreign_stop_words - self.stop_words
        self._more_than_nouns, self._only_nouns = verbs_and_more, nouns - verbs_and_more - self.stop_words
        self._dictionary = verbs_and_more | nouns | self.stop_words
        self._is_ordinary_cache: dict[str, bool] = {}

    def is_ordinary(self, word: str) -> bool:
        """Return True for an English word, also inflected, but not for common first names that WordNet lists too."""
        is_ordinary = self._is_ordinary_cache.get(word)
        if is_ordinary is None:
            if len(self._is_ordinary_cache) > 100_000:  # Typos never end.
                self._is_ordinary_cache.clear()
            is_ordinary = self._is_ordinary_cache[word] = self._look_up_ordinary(word)
        return is_ordinary

    def can_follow_name(self, word: str) -> bool:
        """Return True for a word that may follow a name without being part of it: "tom said", "anna long"."""
        return word in self._more_than_nouns and word not in self.common_first_names

    def is_first_name(self, word: str) -> bool:
        """Return True for a word that is certainly a first name if it is capitalised."""
        if "-" in word:
            word, second = word.split("-", 1)
            if self.is_ordinary(second) and second not in self.first_names:
                return False
        return (word in self.first_names and len(word) > 2 and not self.is_ordinary(word)) or (
            word in self.common_first_names and word not in self.everyday_names
        )

    def is_name(self, word: str) -> bool:
        """Return True for a known first or last name."""
        if "-" in word:
            return any(part in self.first_names or part in self.last_names for part in word.split("-"))
        return word in self.first_names or word in self.last_names

    def is_foreign(self, tokens: list[Token]) -> bool:
        """Return True if most lower-case words are not English; neither model nor capitals can be trusted there."""
        uncapitalised = [token.lower for token in tokens if not token.is_capitalised and len(token.lower) > 1]
        english = sum(word in self._dictionary for word in uncapitalised)
        if len(uncapitalised) > 1 and 2 * english <= len(uncapitalised):
            return True
        foreign = sum(word in self._foreign_only for word in uncapitalised)
        return foreign > 1 and foreign > sum(word in self.stop_words for word in uncapitalised)

    def is_more_than_noun(self, word: str) -> bool:
        """Return True for an English verb, adjective or adverb."""
        return word in self._more_than_nouns

    def is_only_noun(self, word: str) -> bool:
        """Return True for money, version: never a verb that a person before it could be the subject of."""
        plural = (
            len(word) > 4 and word.endswith("s") and word not in self.stop_words and word not in self._more_than_nouns
        )
        return word in self._only_nouns or (plural and word[:-1] in self._only_nouns) or word == "one"

    def is_in_dictionary(self, word: str) -> bool:
        """Return True for a dictionary word, common first name or not: basil, olive."""
        return word in self._dictionary

    def is_compound(self, word: str) -> bool:
        """Return True for two English words written as one that are no name: username, payout."""
        if self.is_name(word):
            return False
        cuts = range(3, len(word) - 2)
        return any(word[:i] in self._dictionary and word[i:] in self._dictionary for i in cuts)

    def is_only_foreign(self, word: str) -> bool:
        """Return True for a function word of another language that is no name: unsere, nous."""
        return word in self._foreign_only and not self.is_name(word)

    def _look_up_ordinary(self, word: str) -> bool:
        if word in self.common_first_names and word not in self.everyday_names:
            return False
        if len(word) == 2 and word in self.last_names and word not in self.stop_words:
            return False  # Li, Wu, Xu: in the dictionary as chemical symbols.
        if word in self._dictionary or word in self.everyday_names:
            return True
        if _CONTRACTED.fullmatch(word):
            return word not in self.first_names and word not in self.last_names
        if "'" in word or "’" in word or "-" in word:
            return all(part in self._dictionary or len(part) < 3 for part in re.split(r"['’-]", word))
        suffixes = _SUFFIXES_AFTER_NAMES if word in self.first_names else _SUFFIXES
        return len(word) > 3 and any(
            word.endswith(suffix) and self._is_stem(word.removesuffix(suffix)) for suffix in suffixes
        )

    def _is_stem(self, stem: str) -> bool:
        spellings = (
            stem,
            stem + "e",
            stem[:-1] if stem[-1:] == stem[-2:-1] else "",
            stem[:-1] + "y" if stem[-1:] == "i" else "",
        )
        return len(stem) > 2 and any(word in self._dictionary for word in spellings)
