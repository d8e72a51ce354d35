"""Finds people's names, and the towns they live in.

    introduced        "my name is …", "Dear …", "Mr …", "Regards, …": a cue before the name, in lower case too
    name_shapes       without a cue: a first name that is no everyday word; two words of which one is a known name
    entities          what else the language model takes for a person
    counter_evidence  what refutes a name without a cue: a firm, a place, an everyday word
    people            combines these; a name found once in a text is found wherever it stands in that text

A town is personal only as somebody's: "I live in Leeds", not "is there an ATM in Leeds?".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from shared.privacy.redaction.data.cues import BESIDE
from shared.privacy.redaction.detect.counter_evidence import CounterEvidence
from shared.privacy.redaction.detect.entities import EntityFindings
from shared.privacy.redaction.detect.introduced import CERTAIN, IntroducedNames
from shared.privacy.redaction.detect.lexicon import PARTICLES, Lexicon, Token, tokens_of
from shared.privacy.redaction.detect.name_shapes import NAME_WEIGHT, CueStrength, NameShapes
from shared.privacy.redaction.spans import TextSpan, merged

_AND_BEFORE = re.compile(r" (?:and|&|und|et|y) $")
_LIST_CONTINUES = re.compile(r"[,.;:!?)\n]|$| (?:and|or|und|et|y|e|&) ")
_CODE_FOLLOWS = re.compile(r":? \S*\d")


class People:
    """Finds people and towns. Building it loads the lists (0.4 s); the first text that needs the model loads it."""

    def __init__(self) -> None:
        self._lexicon = Lexicon()
        self._no_name_parts = self._lexicon.stop_words | PARTICLES
        self._shapes = NameShapes(self._lexicon)
        self._introduced = IntroducedNames(self._lexicon, self._shapes)
        self._entities, self._counter_evidence = EntityFindings(self._lexicon), CounterEvidence(self._lexicon)

    def find(self, texts: Sequence[str]) -> list[list[TextSpan]]:
        """Find the people and towns of each text."""
        tokens = [tokens_of(text) for text in texts]
        foreign = [self._lexicon.is_foreign(words) for words in tokens]
        entities = self._entities.find(texts, tokens, foreign)
        return [self._find_in_text(*text) for text in zip(texts, tokens, foreign, entities, strict=True)]

    def _find_in_text(self, text: str, tokens: list[Token], foreign: bool, entities: list[TextSpan]) -> list[TextSpan]:
        index_at = {token.start: i for i, token in enumerate(tokens)}
        firms = {token.start for token in _within(merged(self._counter_evidence.find_firms(text, tokens)), tokens)}
        introduced = list(self._introduced.find(text, tokens, index_at, foreign))
        certain = [span for span, strength in introduced if strength in CERTAIN]
        uncertain = [
            *(span for span, strength in introduced if strength not in CERTAIN),
            *self._shapes.find_unintroduced(text, tokens),
            *(span for span in entities if span.kind == "person"),
        ]
        people = certain + [
            span
            for span in uncertain
            if span.start not in firms and not self._counter_evidence.is_refuted(text, tokens, index_at, span, foreign)
        ]
        towns = [span for span in entities if span.kind != "person"]
        return [*self._with_repetitions(text, tokens, foreign, people), *towns]

    def _with_repetitions(self, text: str, tokens: list[Token], foreign: bool, spans: list[TextSpan]) -> list[TextSpan]:
        """Add people listed beside these, then every other occurrence of each name in the text."""
        people = merged(spans)
        if people:
            people = merged([*people, *self._listed_before(text, tokens, people)])
            people = merged([*people, *self._listed_after(text, tokens, foreign, people)])
        inside = (t for t in _within(people, tokens) if len(t.text) > 2 and t.lower not in self._no_name_parts)
        parts = {t.text for t in inside if t.is_capitalised or not self._lexicon.is_ordinary(t.lower)}
        if parts:
            repeated = (TextSpan(t.start, t.end, "person", NAME_WEIGHT) for t in tokens if t.text in parts)
            people = merged([*people, *repeated])
        return people

    def _listed_after(
        self, text: str, tokens: list[Token], foreign: bool, people: list[TextSpan]
    ) -> Iterator[TextSpan]:
        """Yield who is listed after somebody, one leading to the next: "Anna, Kwabena, Li and Noor"."""
        index_at = {token.start: i for i, token in enumerate(tokens)}
        found_starts = {token.start for token in _within(people, tokens)}
        pending = list(people)
        while pending:
            found = BESIDE.match(text, pending.pop().end)
            index = index_at.get(found.end()) if found else None
            if index is None or tokens[index].start in found_starts:
                continue
            may_begin = self._introduced.may_begin(tokens, index, CueStrength.BESIDE, foreign)
            if may_begin and self._is_listed(text, tokens[index]):
                span = self._shapes.name_span(text, tokens, index, CueStrength.NONE)
                found_starts.add(span.start)
                pending.append(span)
                yield span

    def _is_listed(self, text: str, token: Token) -> bool:
        """Return False for "Konto CH93…" after somebody; in lower case the list must continue or end behind it."""
        if token.is_capitalised:
            return self._lexicon.is_name(token.lower) or not _CODE_FOLLOWS.match(text, token.end)
        return bool(_LIST_CONTINUES.match(text, token.end))

    def _listed_before(self, text: str, tokens: list[Token], people: list[TextSpan]) -> Iterator[TextSpan]:
        """Yield the first of "Ebony and Tyrell", which at the start of a sentence could be any word."""
        ends, first_names = {token.end: token for token in tokens}, self._lexicon.first_names
        for span in people:
            found = _AND_BEFORE.search(text, max(0, span.start - 8), span.start)
            token = ends.get(found.start()) if found else None
            if token is not None and token.is_capitalised and not token.is_code and token.lower in first_names:
                yield TextSpan(token.start, token.end, "person", NAME_WEIGHT)


def _within(spans: list[TextSpan], tokens: list[Token]) -> Iterator[Token]:
    """Yield the tokens inside one of the spans; both are sorted, and the spans are disjoint."""
    remaining = iter(spans)
    span = next(remaining, None)
    for token in tokens:
        while span is not None and span.end <= token.start:
            span = next(remaining, None)
        if span is not None and span.start <= token.start:
            yield token
