"""People and towns that the language model finds, filtered: it was trained on newspapers, not on chats.

The model is most of what redaction costs, so only sentences with a word that could be a name go to it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from shared.privacy.redaction.data import language_model
from shared.privacy.redaction.data.cues import HOME, RANK, TITLE
from shared.privacy.redaction.detect.lexicon import GREETINGS, PARTICLES, Lexicon, Token, tokens_of
from shared.privacy.redaction.spans import TextSpan

_SENTENCES = re.compile(r"[^.!?\n]+(?:[.!?](?!\s|$)[^.!?\n]*)*[.!?\n]*")
_CAPITALISED_BEFORE = re.compile(r"(?<!\w)([A-ZÀ-Þ][^\W\d_A-Z]{2,}) $")
_MAX_SENTENCE_CHARACTERS = 2_000
_PIECES = re.compile(rf".{{1,{_MAX_SENTENCE_CHARACTERS}}}(?:\s|$)|.{{1,{_MAX_SENTENCE_CHARACTERS}}}", re.S)
_PERSON_WEIGHT, _TOWN_WEIGHT = 2, 1


class EntityFindings:
    """The findings of the language model, as far as the lexicon supports them."""

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon

    def find(
        self, texts: Sequence[str], tokens: Sequence[list[Token]], foreign: Sequence[bool]
    ) -> list[list[TextSpan]]:
        """Find the people and towns of each text."""
        found: list[list[TextSpan]] = [[] for _ in texts]
        sentences = [
            (i, *found) for i, text in enumerate(texts) for found in self._candidate_sentences(text, tokens[i])
        ]
        entities = language_model.entities(sentence for _, _, sentence in sentences)
        for (i, offset, sentence), found_entities in zip(sentences, entities, strict=True):
            found[i].extend(self._supported(texts[i], offset, sentence, found_entities, foreign[i]))
        return found

    def _candidate_sentences(self, text: str, tokens: list[Token]) -> Iterator[tuple[int, str]]:
        """Yield (start, sentence) where a word could be a name.

        Inside a sentence any capital counts: Wilson and Gdansk are in the dictionary too.
        """
        lexicon = self._lexicon
        starts = [
            t.start
            for t in tokens
            if t.is_capitalised
            and not t.is_code
            and t.lower not in lexicon.not_people
            and not (
                lexicon.is_ordinary(t.lower)
                and (t.starts_sentence or lexicon.can_follow_name(t.lower) or t.lower in lexicon.stop_words)
            )
        ]
        if not starts:
            return
        pending = iter(starts)
        nearest = next(pending, None)
        for start, sentence in _sentences(text):
            has_candidate = False
            while nearest is not None and nearest < start + len(sentence):
                has_candidate = has_candidate or nearest >= start
                nearest = next(pending, None)
            if has_candidate:
                yield start, sentence

    def _supported(
        self, text: str, offset: int, sentence: str, entities: Iterable[tuple[int, int, str]], foreign: bool
    ) -> Iterator[TextSpan]:
        """Yield the entities that the lexicon supports: the model takes brands, greetings and headings for people."""
        lexicon = self._lexicon
        for start, end, kind in entities:
            words = tokens_of(sentence[start:end])
            while words and (
                words[0].lower in lexicon.stop_words
                or words[0].lower in GREETINGS
                or TITLE.fullmatch(words[0].text)
                or (len(words[0].text) > 2 and RANK.fullmatch(words[0].text))
            ):
                words.pop(0)
            while words and (
                not words[-1].is_capitalised or (words[-1].lower in lexicon.stop_words and not _after_particle(words))
            ):
                words.pop()
            if (
                not words
                or not words[0].is_capitalised
                or any(w.lower in lexicon.not_people for w in words[self._given_names(words) :])
            ):
                continue
            begin, stop = offset + start + words[0].start, offset + start + words[-1].end
            if any(char.isdigit() or char in "@_/\\" for char in text[begin:stop]):
                continue
            if foreign and not any(
                lexicon.is_first_name(w.lower) and w.lower not in lexicon.foreign_stop_words for w in words
            ):
                continue
            if kind == "person" and (self._is_person(words) or self._are_names(words)):
                yield TextSpan(begin - self._rare_first_name(text, begin), stop, "person", _PERSON_WEIGHT)
            elif kind == "town" and HOME.search(text, max(0, begin - 40), begin):
                yield TextSpan(begin, stop, "town", _TOWN_WEIGHT)
            elif (
                kind == "other"
                and 2 <= len(words) <= 3
                and self._is_person(words)
                and (
                    any(lexicon.is_name(w.lower) for w in words)
                    or not any(lexicon.is_ordinary(w.lower) or w.is_code for w in words)
                )
            ):
                yield TextSpan(begin, stop, "person", _PERSON_WEIGHT)

    def _are_names(self, words: list[Token]) -> bool:
        """Return True for English words of which the last is a name too: Miles Wilson, or Reid alone."""
        lexicon = self._lexicon
        are_plain = not any(w.is_code or lexicon.can_follow_name(w.lower) for w in words)
        return are_plain and lexicon.is_name(words[-1].lower) and words[-1].lower not in lexicon.organisation_words

    def _given_names(self, words: list[Token]) -> int:
        """Return 1 for a first name, be it a place too, with a surname behind it ("Virginia Harjo"); else 0."""
        return int(
            len(words) > 1
            and words[0].lower in self._lexicon.first_names
            and not self._lexicon.is_ordinary(words[-1].lower)
        )

    def _rare_first_name(self, text: str, begin: int) -> int:
        """Return how many characters before a name are an unknown first name that the model left out."""
        found = _CAPITALISED_BEFORE.search(text, max(0, begin - 40), begin)
        word = found[1].casefold() if found else ""
        is_unknown = word and not (
            TITLE.fullmatch(word)
            or self._lexicon.is_ordinary(word)
            or word in self._lexicon.not_people
            or word in GREETINGS
        )
        return len(found[0]) if found and is_unknown else 0

    def _is_person(self, words: list[Token]) -> bool:
        lexicon = self._lexicon
        if words[-1].lower in lexicon.organisation_words or (len(words) == 1 and words[0].is_code):
            return False
        return any(not lexicon.is_ordinary(w.lower) or w.lower in lexicon.common_first_names for w in words)


def _sentences(text: str) -> Iterator[tuple[int, str]]:
    """Yield (start, sentence); a sentence without an end is cut at blanks, so that none is too long for the model."""
    for sentence in _SENTENCES.finditer(text):
        if sentence.end() - sentence.start() <= _MAX_SENTENCE_CHARACTERS:
            yield sentence.start(), sentence[0]
        else:
            yield from ((sentence.start() + piece.start(), piece[0]) for piece in _PIECES.finditer(sentence[0]))


def _after_particle(words: list[Token]) -> bool:
    return len(words) > 1 and words[-2].lower in PARTICLES
