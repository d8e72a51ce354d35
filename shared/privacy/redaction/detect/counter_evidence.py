"""What speaks against a name that no word announced: a firm, a place, a key, a month, a word that is one by chance."""

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
_OBJECTS = frozenset("it this that these those the them all as a an your my our".split())  # noqa: SIM905
_KEY_AFTER = re.compile(r"=(?![ =])")
_LONGEST = 40
_CLAUSE = frozenset(",;:-–—•*")


class Doubts:
    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._heads = {name[0] for name in (*FIRMS, *OFTEN_PEOPLE)}

    def firms(self, text: str, tokens: list[Token]) -> list[TextSpan]:
        """Where firms and brands stand that carry people's names, with what follows in capitals ("… Giulia")."""
        if not any(token.low.split("-")[0] in self._heads for token in tokens):
            return []
        sure, maybe = list(self._listed(text, tokens, FIRMS)), list(self._listed(text, tokens, OFTEN_PEOPLE))
        if maybe and (sure or len(maybe) > 1 or any(token.low in BUSINESS for token in tokens)):
            return [*sure, *maybe]
        return sure

    def refuted(self, text: str, tokens: list[Token], at: dict[int, int], span: TextSpan, foreign: bool) -> bool:
        """Whether a span that no cue announced is nobody; `at`: the index of the token that starts there."""
        index = at.get(span.start)
        if index is None:
            return False
        last = index
        while last + 1 < len(tokens) and tokens[last + 1].end <= span.end:
            last += 1
        words = tokens[index : last + 1]
        before = tokens[index - 1] if index and text[tokens[index - 1].end : span.start] in (" ", ". ") else None
        after = tokens[last + 1] if last + 1 < len(tokens) else None
        beside = after if after is not None and text[span.end : after.start] == " " else None
        return (
            self._is_key(text, span, words)
            or self._is_place(words, before, beside)
            or self._is_firm(text, tokens, index, last)
            or (len(words) == 1 and self._is_word(text, words[0], before, beside))
            or (foreign and self._is_foreign_word(words))
            or (len(words) > 1 and self._lexicon.only_foreign(words[0].low))
        )

    def _listed(self, text: str, tokens: list[Token], names: frozenset[tuple[str, ...]]) -> Iterator[TextSpan]:
        for index, token in enumerate(tokens):
            if not token.capital or token.low.split("-")[0] not in self._heads:
                continue
            sizes = range(min(3, len(tokens) - index), 0, -1)
            last = next((index + n - 1 for n in sizes if _parts(tokens[index : index + n]) in names), None)
            if last is None or tokens[last].end - token.start > _LONGEST:
                continue
            while last + 1 < len(tokens) and tokens[last + 1].capital:
                if text[tokens[last].end : tokens[last + 1].start] != " ":
                    break
                last += 1
            yield TextSpan(token.start, tokens[last].end, "firm")

    def _is_key(self, text: str, span: TextSpan, words: list[Token]) -> bool:
        """LEN=60, Username: a key of a log or a form, not somebody."""
        if len(words) > 1:
            return False
        if _KEY_AFTER.match(text, span.end) or text[span.start - 1 : span.start] in ("$", "%"):
            return True
        return words[0].starts and self._lexicon.compound(words[0].low)

    def _is_place(self, words: list[Token], before: Token | None, after: Token | None) -> bool:
        low = words[-1].low
        if before is not None and before.low in PLACE_BEFORE and (before.capital or len(before.low) > 3):
            return True
        if low in PLACE_END and len(words) > 1:
            return True
        if len(words) == 1 and words[0].capital and after is not None and after.low in PLACE_AFTER | PLACE_END:
            return True
        return len(words) == 2 and low in COLOURS and self._lexicon.ordinary(words[0].low)

    def _is_firm(self, text: str, tokens: list[Token], index: int, last: int) -> bool:
        """One side of "Ernst & Young": two first names would be a couple."""
        know = self._lexicon
        for one, two in ((last, last + 1), (index - 1, index)):
            if not (one >= 0 and two < len(tokens)) or text[tokens[one].end : tokens[two].start].strip(" ") != "&":
                continue
            if not (tokens[one].capital and tokens[two].capital):
                continue
            if not all(tokens[i].low in know.first for i in (one, two)):
                return True
        return False

    def _is_word(self, text: str, word: Token, before: Token | None, after: Token | None) -> bool:
        """An everyday word that has a capital, or is one in another place: "a Frank talk", "Mark it", "Grant money"."""
        know = self._lexicon
        if not (word.low in know.everyday or know.listed(word.low) or know.ordinary(word.low)):
            return False
        if before is not None and before.low in _DETERMINERS:
            return True
        if after is None or after.capital:
            return False
        ordered = (
            after.low in _OBJECTS
            and know.verb(word.low)
            and text[max(0, word.start - 4) : word.start].rstrip(" ")[-1:] in _CLAUSE
        )
        return ordered or know.only_noun(after.low)

    def _is_foreign_word(self, words: list[Token]) -> bool:
        know = self._lexicon
        first, last = words[0].low, words[-1].low
        return (
            first in MONTHS
            or (first in know.foreign_stop and first not in know.english)
            or (len(words) > 1 and last in know.foreign_stop and last not in know.last)
            or (not words[0].capital and first in know.foreign_stop)
        )


def _parts(words: list[Token]) -> tuple[str, ...]:
    """The words in lower case, "Harley-Davidson" as two."""
    return tuple(part for word in words for part in word.low.split("-"))
