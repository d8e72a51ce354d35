"""Personal data out of texts, before rest: found, and replaced by made-up data of the same shape.

    redactor     the front: Rules, Redactor, Redacted
    patterns     what has a form: e-mail, card, IBAN, IP, birth dates; phones, identifiers; checks: their checksums
    national     identity numbers of many countries; national_checks: whether one holds
    addresses    postal addresses
    people       names: announced by cues and titles, or by their shapes in a lexicon (of a gazetteer and a dictionary),
                 then findings of a model; doubts: what is a firm (organisations), a place or a word after all
    extra        a task's own patterns, with a deadline
    surrogates   what stands in their place; chance: the keyed choices

Heavy imports (spaCy, Faker) happen when a Redactor is built or first used, not here.
"""

from shared.privacy.redaction.redactor import Redacted, Redactor, Rules, TextRedactor

__all__ = ["Redacted", "Redactor", "Rules", "TextRedactor"]
