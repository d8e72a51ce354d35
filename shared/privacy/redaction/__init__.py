"""Redaction: finds personal data in texts and replaces it by surrogates of the same shape, before the texts are stored.

    redactor   Rules (what a task wants), Redactor, Redacted (the result)
    repeats    numbers that are said again without the word that told what they are
    slices     parts of a long text, redacted one after the other
    spans      where in a text personal data stands; spelling: a text in plain characters, as detectors read it
    json_texts the texts in JSON that is itself a text; cues: what the name of a value says about it
    detect/    finds it: patterns (with phones, identifiers, named_values), addresses, people, custom_patterns of a task
    replace/   surrogates: names and numbers, chosen by a keyed_random
    data/      word lists, ends of domains, cues, checksums, formats of national numbers, the language model

Heavy imports (spaCy, Faker) happen when a Redactor is built or first used, not on import.
"""

from shared.privacy.redaction.detect.patterns import DETECTORS
from shared.privacy.redaction.redactor import (
    Redacted,
    RedactedSlice,
    Redactor,
    Rules,
    listed_surrogates,
)
from shared.privacy.redaction.repeats import replace_repeats
from shared.privacy.redaction.slices import MAX_SLICE, TextSlice, slice_from

__all__ = [
    "DETECTORS", "MAX_SLICE", "Redacted", "RedactedSlice", "Redactor", "Rules",
    "TextSlice", "listed_surrogates", "replace_repeats", "slice_from",
]  # fmt: skip
