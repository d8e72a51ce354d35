"""People's names, and the towns that say more about them: a model, a gazetteer and the words around a name.

    cues        "my name is …", "Dear …", "Mr …", "Regards, …": the word before tells a name, in lower case too
    gazetteer   a first name that is no everyday word; two words of which one is a known name
    model       what else is a PERSON to the named-entity model; only sentences with a word that could be one go there
    echoes      what was found once in a text is found wherever it stands in that text

A town is personal only as somebody's: "I live in Leeds", not "is there an ATM in Leeds?".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from enum import Enum

from shared.redaction.cues import BESIDE, NAMED, SELF, SIGN_OFF, SPEAKER, STRONG, TITLED, TOWARDS, WEAK
from shared.redaction.findings import Findings
from shared.redaction.lexicon import PARTICLES, Lexicon, Token, tokens_of
from shared.redaction.spans import Span, merged

_MONTHS = frozenset(("april", "may", "june", "august", "jan"))
_AND_BEFORE = re.compile(r" (?:and|&|und|et|y) $")
_LONGEST = 5


class Strength(Enum):
    """How much the words before it say that a word is a name."""

    TITLE = "any word with a capital is one"
    NAMED = "any word that is not an English one, in lower case too"
    STRONG = "any word that is not an English one; in lower case a first name"
    SPEAKER = "any word that is not an English one; a common first name"
    TOWARDS = "any word that is not an English one, with its capital"
    BESIDE = "the same, or a first name or surname"
    SELF = "two unknown words, in lower case too"
    WEAK = "a first name, in lower case too"
    NONE = "nothing is said"


_CUES = (
    (TITLED, Strength.TITLE), (NAMED, Strength.NAMED), (STRONG, Strength.STRONG), (SIGN_OFF, Strength.STRONG),
    (SPEAKER, Strength.SPEAKER), (TOWARDS, Strength.TOWARDS), (SELF, Strength.SELF), (WEAK, Strength.WEAK),
)  # fmt: skip
_WEIGHT = 3


class People:
    """Finds people and towns. Building it loads the lists (0.4 s), the first text that needs it the model."""

    def __init__(self) -> None:
        self._lexicon = Lexicon()
        self._small = self._lexicon.stop | PARTICLES
        self._findings = Findings(self._lexicon)

    def find(self, texts: Sequence[str]) -> list[list[Span]]:
        """The people and towns of each text."""
        tokens = [tokens_of(text) for text in texts]
        foreign = [self._lexicon.foreign(words) for words in tokens]
        found = [list(self._by_rule(*one)) for one in zip(texts, tokens, foreign, strict=True)]
        for spans, more in zip(found, self._findings.of(texts, tokens, foreign), strict=True):
            spans.extend(more)
        return [self._echoed(*one) for one in zip(texts, tokens, foreign, found, strict=True)]

    def _by_rule(self, text: str, tokens: list[Token], foreign: bool) -> Iterator[Span]:
        at = {token.start: i for i, token in enumerate(tokens)}
        for cue, strength in _CUES:
            for found in cue.finditer(text):
                index = at.get(found.end())
                if index is not None and self._may_begin(tokens, index, strength, foreign):
                    yield self._name(text, tokens, index, strength)
        done = 0
        for index, token in enumerate(tokens):
            if token.start >= done and self._begins(text, tokens, index):
                span = self._name(text, tokens, index, Strength.NONE)
                done = span.end
                if text[span.start : span.end].split()[-1].casefold() not in self._lexicon.organisation:
                    yield span

    def _may_begin(self, tokens: list[Token], index: int, strength: Strength, foreign: bool) -> bool:
        """Whether a word after a cue is a name."""
        know, token = self._lexicon, tokens[index]
        if token.low in know.stop or (token.low in know.not_people and strength is not Strength.TITLE):
            return False
        if not token.capital:
            if strength is Strength.SELF:
                return not know.ordinary(token.low) and not know.ordinary(tokens[index + 1].low)
            if strength is Strength.NAMED:
                after = tokens[index + 1] if index + 1 < len(tokens) else None
                if after is not None and not after.capital and len(after.low) > 3 and not know.ordinary(after.low):
                    return True
                return know.is_first(token.low) or token.low in know.english or not know.ordinary(token.low)
            return know.is_first(token.low) or (strength is Strength.STRONG and token.low in know.english)
        if token.coded and strength not in (Strength.TITLE, Strength.NAMED):
            return False
        if strength is Strength.TITLE or know.is_first(token.low) or token.low in know.english:
            return True
        if strength in (Strength.STRONG, Strength.NAMED, Strength.SPEAKER):
            return not know.ordinary(token.low) or (strength is not Strength.SPEAKER and know.is_name(token.low))
        if strength is Strength.BESIDE and know.is_name(token.low) and not know.function_like(token.low):
            return True
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        organisation = after is not None and after.capital and after.low in know.organisation
        return (
            strength in (Strength.TOWARDS, Strength.BESIDE)
            and not know.ordinary(token.low)
            and not token.text.isupper()
            and not organisation
            and not foreign
        )

    def _begins(self, text: str, tokens: list[Token], index: int) -> bool:
        """Whether a name begins here, without a cue."""
        know, token = self._lexicon, tokens[index]
        if token.low in know.stop or token.low in know.not_people or token.low in _MONTHS:
            return False
        after = tokens[index + 1] if index + 1 < len(tokens) else None
        beside = after is not None and text[token.end : after.start] == " " and after.capital == token.capital
        if not token.capital:
            first = token.low in know.english and token.low not in know.everyday
            second = beside and after is not None and after.low in know.last and after.low not in know.stop
            return first or (second and know.is_first(token.low) and not know.ordinary(token.low))
        if len(token.low) == 1:
            return after is not None and text[token.end : after.start] == ". " and self._is_surname(after)
        if token.coded:
            return (
                beside
                and after is not None
                and token.low in know.first
                and after.low in know.last
                and not know.ordinary(token.low)
            )
        if know.is_first(token.low):
            return not (beside and after is not None and after.low in know.organisation)
        if text[token.end : token.end + 2] in ("'s", "’s") and not know.ordinary(token.low):
            return True
        if token.low in know.last and len(token.low) > 2 and not token.starts and not know.ordinary(token.low):
            return not (beside and after is not None and after.low in know.organisation)
        if token.low in know.english and not token.starts:
            return not (beside and after is not None and know.ordinary(after.low) and after.low not in know.last)
        return beside and after is not None and self._pair(token, after)

    def _is_surname(self, word: Token) -> bool:
        """Whether a word is one, behind an initial."""
        return word.capital and len(word.low) > 2 and not word.coded and not self._lexicon.ordinary(word.low)

    def _pair(self, one: Token, two: Token) -> bool:
        """Two words with capitals of which enough is known: one a name, the other at least no English word."""
        know = self._lexicon
        if two.low in know.stop or two.low in know.not_people or two.low in know.organisation:
            return False
        if one.starts and know.ordinary(one.low) and (one.low not in know.first or know.ordinary(two.low)):
            return False
        points = 0.0
        for token, known in ((one, one.low in know.first), (two, two.low in know.last or two.low in know.first)):
            points += 1.0 if known else 0.5
            points -= 0.5 if know.ordinary(token.low) else 0.0
        return points >= 1.5

    def _name(self, text: str, tokens: list[Token], index: int, strength: Strength) -> Span:
        """From its first word to its end: capitals follow a capital, known names a lower-case one."""
        first, last = tokens[index], index
        while last + 1 < len(tokens) and last - index < _LONGEST:
            gap = text[tokens[last].end : tokens[last + 1].start]
            if gap not in (" ", "  ") and not (gap == ". " and len(tokens[last].text) == 1):
                break
            if (
                tokens[last + 1].low in PARTICLES
                and last + 2 < len(tokens)
                and tokens[last + 2].start == tokens[last + 1].end + 1
            ):
                if not self._follows(first, tokens[last + 2], strength, after_particle=True):
                    break
                last += 2
            elif self._follows(first, tokens[last + 1], strength):
                last += 1
            else:
                break
        return Span(first.start, tokens[last].end, "person", _WEIGHT)

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

    def _echoed(self, text: str, tokens: list[Token], foreign: bool, spans: list[Span]) -> list[Span]:
        """The spans, who is named in one breath with them, and each name wherever else it stands in the text."""
        know = self._lexicon
        people = merged(s for s in spans if s.kind == "person")
        if people:
            people = merged([*people, *self._before(text, tokens, people)])
            people = merged([*people, *self._beside(text, tokens, foreign, people)])
        inside = (t for t in _within(people, tokens) if len(t.text) > 2 and t.low not in self._small)
        parts = {t.text for t in inside if t.capital or not know.ordinary(t.low)}
        if parts:
            people = merged([*people, *(Span(t.start, t.end, "person", _WEIGHT) for t in tokens if t.text in parts)])
        return [*people, *(s for s in spans if s.kind != "person")]

    def _beside(self, text: str, tokens: list[Token], foreign: bool, people: list[Span]) -> Iterator[Span]:
        """Who is named after somebody: "Anna, Kwabena, Li and Noor", each of whom leads to the next."""
        at = {token.start: i for i, token in enumerate(tokens)}
        known = {token.start for token in _within(people, tokens)}
        waiting = list(people)
        while waiting:
            found = BESIDE.match(text, waiting.pop().end)
            index = at.get(found.end()) if found else None
            if index is None or tokens[index].start in known:
                continue
            if self._may_begin(tokens, index, Strength.BESIDE, foreign):
                span = self._name(text, tokens, index, Strength.NONE)
                known.add(span.start)
                waiting.append(span)
                yield span

    def _before(self, text: str, tokens: list[Token], people: list[Span]) -> Iterator[Span]:
        """The same from behind: the first of "Ebony and Tyrell", which at the start of a sentence is any word."""
        ends = {token.end: token for token in tokens}
        for span in people:
            found = _AND_BEFORE.search(text, max(0, span.start - 8), span.start)
            token = ends.get(found.start()) if found else None
            if token is not None and token.capital and token.low in self._lexicon.first and not token.coded:
                yield Span(token.start, token.end, "person", _WEIGHT)


def _within(people: list[Span], tokens: list[Token]) -> Iterator[Token]:
    """The tokens that are in one of the spans; both sorted, the spans disjoint."""
    spans = iter(people)
    span = next(spans, None)
    for token in tokens:
        while span is not None and span.end <= token.start:
            span = next(spans, None)
        if span is not None and span.start <= token.start:
            yield token
