"""Personal data out of texts, before rest: found, and replaced by made-up data of the same shape.

    redactor     the front: Rules, Redactor, Redacted
    patterns     what has a form: e-mail, card, IBAN, IP, birth dates; phones, identifiers; checks: their checksums
    addresses    postal addresses
    people       names: cues and a lexicon (of a gazetteer and a dictionary), then findings of a model
    extra        a task's own patterns, with a deadline
    surrogates   what stands in their place; chance: the keyed choices

Heavy imports (spaCy, Faker) happen when a Redactor is built or first used, not here.
"""

from shared.redaction.redactor import Redacted, Redactor, Rules

__all__ = ["Redacted", "Redactor", "Rules"]
