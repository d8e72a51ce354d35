"""People's names, and the towns that say more about them: a model, a gazetteer and the words around a name.

    cues        "my name is …", "Dear …", "Mr …", "Regards, …": the word before tells a name, in lower case too
    gazetteer   a first name that is no everyday word; two words of which one is a known name
    model       what else is a PERSON to the named-entity model; only sentences with a word that could be one go there
    doubts      what speaks against one that no word announced: a firm, a place, an everyday word
    echoes      what was found once in a text is found wherever it stands in that text

A town is personal only as somebody's: "I live in Leeds", not "is there an ATM in Leeds?".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from shared.privacy.redaction.data.cues import BESIDE
from shared.privacy.redaction.detect.counter_evidence import Doubts
from shared.privacy.redaction.detect.entities import Findings
from shared.privacy.redaction.detect.introduced import SURE, Announced
from shared.privacy.redaction.detect.lexicon import PARTICLES, Lexicon, Token, tokens_of
from shared.privacy.redaction.detect.name_shapes import WEIGHT, Shapes, Strength
from shared.privacy.redaction.spans import TextSpan, merged

_AND_BEFORE = re.compile(r" (?:and|&|und|et|y) $")
_LIST_GOES_ON = re.compile(r"[,.;:!?)\n]|$| (?:and|or|und|et|y|e|&) ")
_CODE_NEXT = re.compile(r":? \S*\d")


class People:
    """Finds people and towns. Building it loads the lists (0.4 s), the first text that needs it the model."""

    def __init__(self) -> None:
        self._lexicon = Lexicon()
        self._small = self._lexicon.stop | PARTICLES
        self._shapes = Shapes(self._lexicon)
        self._announced = Announced(self._lexicon, self._shapes)
        self._findings, self._doubts = Findings(self._lexicon), Doubts(self._lexicon)

    def find(self, texts: Sequence[str]) -> list[list[TextSpan]]:
        """The people and towns of each text."""
        tokens = [tokens_of(text) for text in texts]
        foreign = [self._lexicon.foreign(words) for words in tokens]
        modelled = self._findings.of(texts, tokens, foreign)
        return [self._one(*one) for one in zip(texts, tokens, foreign, modelled, strict=True)]

    def _one(self, text: str, tokens: list[Token], foreign: bool, modelled: list[TextSpan]) -> list[TextSpan]:
        at = {token.start: i for i, token in enumerate(tokens)}
        firms = {token.start for token in _within(merged(self._doubts.firms(text, tokens)), tokens)}
        told = list(self._announced.told(text, tokens, at, foreign))
        sure = [span for span, strength in told if strength in SURE]
        guessed = [span for span, strength in told if strength not in SURE] + list(self._shapes.untold(text, tokens))
        guessed += [span for span in modelled if span.kind == "person"]
        kept = [
            span
            for span in guessed
            if span.start not in firms and not self._doubts.refuted(text, tokens, at, span, foreign)
        ]
        towns = [span for span in modelled if span.kind != "person"]
        return [*self._echoed(text, tokens, foreign, [*sure, *kept]), *towns]

    def _echoed(self, text: str, tokens: list[Token], foreign: bool, spans: list[TextSpan]) -> list[TextSpan]:
        """The spans, who is named in one breath with them, and each name wherever else it stands in the text."""
        know = self._lexicon
        people = merged(spans)
        if people:
            people = merged([*people, *self._before(text, tokens, people)])
            people = merged([*people, *self._beside(text, tokens, foreign, people)])
        inside = (t for t in _within(people, tokens) if len(t.text) > 2 and t.low not in self._small)
        parts = {t.text for t in inside if t.capital or not know.ordinary(t.low)}
        if parts:
            people = merged([*people, *(TextSpan(t.start, t.end, "person", WEIGHT) for t in tokens if t.text in parts)])
        return people

    def _beside(self, text: str, tokens: list[Token], foreign: bool, people: list[TextSpan]) -> Iterator[TextSpan]:
        """Who is named after somebody: "Anna, Kwabena, Li and Noor", each of whom leads to the next."""
        at = {token.start: i for i, token in enumerate(tokens)}
        known = {token.start for token in _within(people, tokens)}
        waiting = list(people)
        while waiting:
            found = BESIDE.match(text, waiting.pop().end)
            index = at.get(found.end()) if found else None
            if index is None or tokens[index].start in known:
                continue
            begins = self._announced.may_begin(tokens, index, Strength.BESIDE, foreign)
            if begins and self._is_listed(text, tokens[index]):
                span = self._shapes.name(text, tokens, index, Strength.NONE)
                known.add(span.start)
                waiting.append(span)
                yield span

    def _is_listed(self, text: str, token: Token) -> bool:
        """Not "Konto CH93…" after somebody; in lower case the list goes on behind it, or ends."""
        if token.capital:
            return self._lexicon.is_name(token.low) or not _CODE_NEXT.match(text, token.end)
        return bool(_LIST_GOES_ON.match(text, token.end))

    def _before(self, text: str, tokens: list[Token], people: list[TextSpan]) -> Iterator[TextSpan]:
        """The same from behind: the first of "Ebony and Tyrell", which at the start of a sentence is any word."""
        ends = {token.end: token for token in tokens}
        for span in people:
            found = _AND_BEFORE.search(text, max(0, span.start - 8), span.start)
            token = ends.get(found.start()) if found else None
            if token is not None and token.capital and token.low in self._lexicon.first and not token.coded:
                yield TextSpan(token.start, token.end, "person", WEIGHT)


def _within(people: list[TextSpan], tokens: list[Token]) -> Iterator[Token]:
    """The tokens that are in one of the spans; both sorted, the spans disjoint."""
    spans = iter(people)
    span = next(spans, None)
    for token in tokens:
        while span is not None and span.end <= token.start:
            span = next(spans, None)
        if span is not None and span.start <= token.start:
            yield token
