"""What the model finds, and how far it is believed: it was taught newspaper English, and chats are none.

Only sentences with a word that could be a name go to it; that is most of what redaction costs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from shared.privacy.redaction.data import language_model as model
from shared.privacy.redaction.data.cues import HOME, RANK, TITLE
from shared.privacy.redaction.detect.lexicon import PARTICLES, Lexicon, Token, tokens_of
from shared.privacy.redaction.spans import TextSpan

_SENTENCES = re.compile(r"[^.!?\n]+(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?\n]*")
_WORD_BEFORE = re.compile(r"(?<!\w)([A-ZÀ-Þ][^\W\d_A-Z]{2,}) $")
_LONGEST = 2_000
_PIECES = re.compile(rf".{{1,{_LONGEST}}}(?:\s|$)|.{{1,{_LONGEST}}}", re.S)
_PERSON, _TOWN = 2, 1


class Findings:
    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    def of(self, texts: Sequence[str], tokens: Sequence[list[Token]], foreign: Sequence[bool]) -> list[list[TextSpan]]:
        """The people and towns that the model finds in each text, and the rare names that it fails to see."""
        found: list[list[TextSpan]] = [[] for _ in texts]
        asked = [(i, start, piece) for i, text in enumerate(texts) for start, piece in self._doubtful(text, tokens[i])]
        for (i, offset, piece), entities in zip(asked, model.entities(piece for _, _, piece in asked), strict=True):
            found[i].extend(self._checked(texts[i], offset, piece, entities, foreign[i]))
            if not foreign[i]:
                found[i].extend(self._unclaimed(offset, piece, entities))
        return found

    def _doubtful(self, text: str, tokens: list[Token]) -> Iterator[tuple[int, str]]:
        """The sentences in which a word could be a name that no rule is sure of.

        Inside a sentence a capital is enough: Wilson and Gdansk are in the dictionary too.
        """
        know = self._lexicon
        starts = [
            t.start
            for t in tokens
            if t.capital
            and not t.coded
            and t.low not in know.not_people
            and not (know.ordinary(t.low) and (t.starts or know.function_like(t.low) or t.low in know.stop))
        ]
        if not starts:
            return
        pending = iter(starts)
        nearest = next(pending, None)
        for start, sentence in _sentences(text):
            wanted = False
            while nearest is not None and nearest < start + len(sentence):
                wanted = wanted or nearest >= start
                nearest = next(pending, None)
            if wanted:
                yield start, sentence

    def _checked(
        self, text: str, offset: int, piece: str, spans: Iterable[tuple[int, int, str]], foreign: bool
    ) -> Iterator[TextSpan]:
        """What of the model's findings holds: it takes brands, greetings and headings for people."""
        know = self._lexicon
        for start, end, kind in spans:
            words = tokens_of(piece[start:end])
            while words and (
                words[0].low in know.stop
                or know.greeting(words[0].low)
                or TITLE.fullmatch(words[0].text)
                or (len(words[0].text) > 2 and RANK.fullmatch(words[0].text))
            ):
                words.pop(0)
            while words and (not words[-1].capital or (words[-1].low in know.stop and not _after_particle(words))):
                words.pop()
            if not words or not words[0].capital or any(w.low in know.not_people for w in words[self._given(words) :]):
                continue
            begin, stop = offset + start + words[0].start, offset + start + words[-1].end
            if any(char.isdigit() or char in "@_/\\" for char in text[begin:stop]):
                continue
            if foreign and not any(know.is_first(w.low) and w.low not in know.foreign_stop for w in words):
                continue
            if kind == "person" and (self._is_person(words) or self._are_names(words)):
                if before := self._rare_first(text, begin):
                    begin -= before
                yield TextSpan(begin, stop, "person", _PERSON)
            elif kind == "town" and HOME.search(text, max(0, begin - 40), begin):
                yield TextSpan(begin, stop, "town", _TOWN)
            elif (
                kind == "other"
                and 2 <= len(words) <= 3
                and self._is_person(words)
                and (any(know.is_name(w.low) for w in words) or not any(know.ordinary(w.low) or w.coded for w in words))
            ):
                yield TextSpan(begin, stop, "person", _PERSON)

    def _unclaimed(self, offset: int, piece: str, entities: Sequence[tuple[int, int, str]]) -> Iterator[TextSpan]:
        """Two unknown words with capitals inside a sentence, which the model takes for nothing at all: a rare name."""
        know, words = self._lexicon, tokens_of(piece)
        claimed = bytearray(len(piece))
        for start, end, _ in entities:
            claimed[start:end] = b"\x01" * (end - start)
        for one, two in pairwise(words):
            apart = (
                piece[one.end : two.start] != " "
                or (one.starts and piece[two.end : two.end + 1] not in (",", "\n"))
                or 1 in claimed[one.start : two.end]
            )
            if (
                apart
                or not (one.capital and two.capital)
                or one.coded
                or two.coded
                or TITLE.fullmatch(one.text)
                or min(len(one.low), len(two.low)) < 3
            ):
                continue
            if not any(
                know.ordinary(w.low) or w.low in know.not_people or w.low in know.organisation for w in (one, two)
            ):
                yield TextSpan(offset + one.start, offset + two.end, "person", _PERSON)

    def _are_names(self, words: list[Token]) -> bool:
        """Words that are English, of which the last is a name too: Miles Wilson, and Reid alone."""
        know = self._lexicon
        plain = not any(w.coded or know.function_like(w.low) for w in words)
        return plain and know.is_name(words[-1].low) and words[-1].low not in know.organisation

    def _given(self, words: list[Token]) -> int:
        """1 if it begins with a first name that is a place too, and a surname follows: Virginia Harjo."""
        return int(len(words) > 1 and words[0].low in self._lexicon.first and not self._lexicon.ordinary(words[-1].low))

    def _rare_first(self, text: str, begin: int) -> int:
        """How many letters before a name are an unknown word of it, which the model left out."""
        found = _WORD_BEFORE.search(text, max(0, begin - 40), begin)
        low = found[1].casefold() if found else ""
        unknown = low and not (
            TITLE.fullmatch(low)
            or self._lexicon.ordinary(low)
            or low in self._lexicon.not_people
            or self._lexicon.greeting(low)
        )
        return len(found[0]) if found and unknown else 0

    def _is_person(self, words: list[Token]) -> bool:
        know = self._lexicon
        if words[-1].low in know.organisation or (len(words) == 1 and words[0].coded):
            return False
        return any(not know.ordinary(w.low) or w.low in know.english for w in words)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """(start, sentence); one without an end is cut at blanks, so that no text is too long for the model."""
    for sentence in _SENTENCES.finditer(text):
        if sentence.end() - sentence.start() <= _LONGEST:
            yield sentence.start(), sentence[0]
        else:
            yield from ((sentence.start() + piece.start(), piece[0]) for piece in _PIECES.finditer(sentence[0]))


def _after_particle(words: list[Token]) -> bool:
    return len(words) > 1 and words[-2].low in PARTICLES
