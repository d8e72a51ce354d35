"""Evidence against a name that no cue introduced: it is a firm, a place, a log's key, a month or an everyday word."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.data.organisations import (
    BUSINESS,
    COLOURS,
    FIRMS,
    OFTEN_PEOPLE,
    PLACE_AFTER,
    PLACE_BEFORE,
    PLACE_END,
)
from shared.privacy.redaction.detect.lexicon import MONTHS, Lexicon, Token
from shared.privacy.redaction.spans import TextSpan

_DETERMINERS = frozenset(
    """
    a an the any every each some no der die das dem den des ein eine einen einer le la les un une el los las una lo il
    gli de het een
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
_OBJECT_WORDS = frozenset("it this that these those the them all as a an your my our".split())  # noqa: SIM905
_VALUE_AFTER = re.compile(r"=(?![ =])")
_MAX_FIRM_CHARACTERS = 40
_CLAUSE_STARTS = frozenset(",;:-–—•*")


_SAINTS = frozenset(("san", "santa", "saint", "st"))
_SAINTS_TOWNS = frozenset(
    """
    ana anita antonio barbara bernardino clara cruz diego fe francisco jose josé juan louis luis marino mateo monica
    paul petersburg rosa salvador sebastian
    """.split()  # noqa: SIM905
)


class CounterEvidence:
    """Refutes people that were found without a cue."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._first_words = {name[0] for name in (*FIRMS, *OFTEN_PEOPLE)}

    def find_firms(self, text: str, tokens: list[Token]) -> list[TextSpan]:
        """Find firms and brands that are named after people, with the capitalised words behind them ("… Giulia")."""
        if not any(token.lower.split("-")[0] in self._first_words for token in tokens):
            return []
        firms, possible = list(self._listed(text, tokens, FIRMS)), list(self._listed(text, tokens, OFTEN_PEOPLE))
        if possible and (firms or len(possible) > 1 or any(token.lower in BUSINESS for token in tokens)):
            return [*firms, *possible]
        return firms

    def is_refuted(
        self, text: str, tokens: list[Token], index_at: dict[int, int], span: TextSpan, foreign: bool
    ) -> bool:
        """Return True if the words of a span are not a person; `index_at`: token indices by their start."""
        index = index_at.get(span.start)
        if index is None:
            return False
        last = index
        while last + 1 < len(tokens) and tokens[last + 1].end <= span.end:
            last += 1
        words = tokens[index : last + 1]
        before = tokens[index - 1] if index and text[tokens[index - 1].end : span.start] in (" ", ". ") else None
        after = tokens[last + 1] if last + 1 < len(tokens) else None
        adjacent = after if after is not None and text[span.end : after.start] == " " else None
        return (
            self._is_key(text, span, words)
            or self._is_place(words, before, adjacent)
            or _is_saints_town(text, tokens, index, words)
            or self._is_firm(text, tokens, index, last)
            or (len(words) == 1 and self._is_everyday_word(text, words[0], before, adjacent))
            or (foreign and self._is_foreign_word(words))
            or (len(words) > 1 and self._lexicon.is_only_foreign(words[0].lower))
        )

    def _listed(self, text: str, tokens: list[Token], names: frozenset[tuple[str, ...]]) -> Iterator[TextSpan]:
        for index, token in enumerate(tokens):
            if not token.is_capitalised or token.lower.split("-")[0] not in self._first_words:
                continue
            sizes = range(min(3, len(tokens) - index), 0, -1)
            last = next((index + n - 1 for n in sizes if _parts(tokens[index : index + n]) in names), None)
            if last is None or tokens[last].end - token.start > _MAX_FIRM_CHARACTERS:
                continue
            while last + 1 < len(tokens) and tokens[last + 1].is_capitalised:
                if text[tokens[last].end : tokens[last + 1].start] != " ":
                    break
                last += 1
            yield TextSpan(token.start, tokens[last].end, "firm")

    def _is_key(self, text: str, span: TextSpan, words: list[Token]) -> bool:
        """Return True for LEN=60 or Username: a key in a log or a form."""
        if len(words) > 1:
            return False
        if _VALUE_AFTER.match(text, span.end) or text[span.start - 1 : span.start] in ("$", "%"):
            return True
        return words[0].starts_sentence and self._lexicon.is_compound(words[0].lower)

    def _is_place(self, words: list[Token], before: Token | None, after: Token | None) -> bool:
        last = words[-1].lower
        if before is not None and before.lower in PLACE_BEFORE and (before.is_capitalised or len(before.lower) > 3):
            return True
        if last in PLACE_END and len(words) > 1:
            return True
        if len(words) == 1 and words[0].is_capitalised and after is not None and after.lower in PLACE_AFTER | PLACE_END:
            return True
        return len(words) == 2 and last in COLOURS and self._lexicon.is_ordinary(words[0].lower)

    def _is_firm(self, text: str, tokens: list[Token], index: int, last: int) -> bool:
        """Return True for a side of "Ernst & Young"; two first names would be a couple."""
        lexicon = self._lexicon
        for left, right in ((last, last + 1), (index - 1, index)):
            if not 0 <= left < right < len(tokens) or text[tokens[left].end : tokens[right].start].strip(" ") != "&":
                continue
            if not (tokens[left].is_capitalised and tokens[right].is_capitalised):
                continue
            if not all(tokens[i].lower in lexicon.first_names for i in (left, right)):
                return True
        return False

    def _is_everyday_word(self, text: str, word: Token, before: Token | None, after: Token | None) -> bool:
        """Return True for a name that is a word in its place: "a Frank talk", "Mark it", "Grant money"."""
        lexicon = self._lexicon
        if not (
            word.lower in lexicon.everyday_names
            or lexicon.is_in_dictionary(word.lower)
            or lexicon.is_ordinary(word.lower)
        ):
            return False
        if before is not None and before.lower in _DETERMINERS:
            return True
        if after is None or after.is_capitalised:
            return False
        is_imperative = (
            after.lower in _OBJECT_WORDS
            and lexicon.is_more_than_noun(word.lower)
            and text[max(0, word.start - 4) : word.start].rstrip(" ")[-1:] in _CLAUSE_STARTS
        )
        return is_imperative or lexicon.is_only_noun(after.lower)

    def _is_foreign_word(self, words: list[Token]) -> bool:
        lexicon = self._lexicon
        first, last = words[0].lower, words[-1].lower
        return (
            first in MONTHS
            or (first in lexicon.foreign_stop_words and first not in lexicon.common_first_names)
            or (len(words) > 1 and last in lexicon.foreign_stop_words and last not in lexicon.last_names)
            or (not words[0].is_capitalised and first in lexicon.foreign_stop_words)
        )


def _parts(words: list[Token]) -> tuple[str, ...]:
    """Return the words in lower case, "Harley-Davidson" as two."""
    return tuple(part for word in words for part in word.lower.split("-"))


def _is_saints_town(text: str, tokens: list[Token], index: int, words: list[Token]) -> bool:
    """Return True for San Francisco, not for Maria San Juan."""
    if words[0].lower not in _SAINTS:  # The saint was not found with the town.
        index, words = index - 1, [*tokens[max(index - 1, 0) : index], *words]
    if len(words) != 2 or not all(word.is_capitalised for word in words):
        return False
    before = tokens[index - 1] if index else None
    is_surname = before is not None and before.is_capitalised and text[before.end : words[0].start] == " "
    return words[0].lower in _SAINTS and words[1].lower in _SAINTS_TOWNS and not is_surname
