"""Redaction: finds personal data in texts and replaces it by surrogates of the same shape, before the texts are stored.

    redactor   Rules (what a task wants), Redactor, Redacted (the result)
    spans      where in a text personal data stands
    detect/    finds it: patterns (with phones and identifiers), addresses, people, custom_patterns of a task
    replace/   surrogates: names and numbers, chosen by a keyed_random
    data/      word lists, cues, checksums, formats of national numbers, the language model

Heavy imports (spaCy, Faker) happen when a Redactor is built or first used, not on import.
"""

from shared.privacy.redaction.redactor import Redacted, Redactor, Rules, TextRedactor

__all__ = ["Redacted", "Redactor", "Rules", "TextRedactor"]
