"""Finds values behind the name that a program gave them, inside of a text: `phone_number=…`, `"dateOfBirth": "…"`.

JSON that is a text of its own is read value by value (`json_texts`). In a prompt it stands between words, and beside it
stand XML, log lines and the queries of addresses. To a pattern `phone_number` is one word, so none knows its cue there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from shared.privacy.redaction.cues import cue_of

_SEVERAL_WORDS = re.compile(r"[A-Za-z0-9]_[A-Za-z]|[a-z][A-Z]")
_NAME = re.compile(r"""(?<!\w)(?P<name>[A-Za-z]\w{2,63})["'\\]{0,4}\s{0,2}[:=>]{1,2}\s{0,2}["'\\]{0,4}(?=[^\s"'\\])""")
_VALUE = re.compile(r"""(?:(?! [\w.-]{1,64} ?[:=])[^\n\r\t"'\\&;,|<>{}\[\]]){6,64}""")
# What a name says last: `account_number` and `homePhone2`, but neither `account_created_at` nor `phone_number_id`.
_PERSONAL = re.compile(
    r"\b(?:(?:tele)?phone|tel|telefon|mobile?|cell(?:phone)?|fax|whatsapp|msisdn|handy|contact (?:number|no)|"
    r"account|acct|konto|routing|sort code|bsb|blz|card|birth|dob|birthday|birthdate|geburtsdatum|geburtstag|"
    r"ssn|social security|passport|national (?:id|insurance|identity)|nino|nhs|tax(?:payer)? (?:id|file)|tin|itin|"
    r"driv(?:er|ing)s? licen[cs]e|id card|personal (?:id|code)|identity (?:card|document)|aadhaa?r|nric|cpf|curp|dni|"
    r"nie|nif|bsn|pesel|iban)(?: (?:number|num|no|nr|code|date|day|value|home|work|private|[1-9]))?: $",
    re.I,
)


class NamedValue(NamedTuple):
    """What stands at `start` of a text, with the cue of its name before it."""

    cue: str
    value: str
    start: int


def named_values(text: str) -> Iterator[NamedValue]:
    """Yield the values that by their names may be somebody's number or date."""
    if _SEVERAL_WORDS.search(text) is None:
        return
    for found in _NAME.finditer(text):
        if (cue := _personal_cue(found["name"])) and (value := _VALUE.match(text, found.end())):
            yield NamedValue(cue, value[0], found.end())


@lru_cache(4_096)
def _personal_cue(name: str) -> str:
    """Return the cue of a name of several words that is one of a person's; else none: a pattern knows the others."""
    cue = cue_of(name) if _SEVERAL_WORDS.search(name) else ""
    return cue if _PERSONAL.search(cue) else ""
