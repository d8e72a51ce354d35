"""National identity, tax, health, passport, licence and bank account numbers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from shared.redaction.checks import luhn_valid, nhs_valid
from shared.redaction.spans import Span

_LABELLED = re.compile(
    r"\b(?P<what>passport|pass\s?port|driv(?:er|ing)(?:'?s)?[ -]li[cs]en[cs]e|licen[cs]e|nhs|national (?:id|insurance|"
    r"identity)|"
    r"nino|ni (?:number|no)|tax(?:payer)? (?:id|number|file)|tin|itin|tfn|steuer-?id|medicare|medicaid|health (?:card|"
    r"insurance)|"
    r"social security|social|ssn|sin|aadhaar|pan (?:card|number)|identity (?:card|document)|id (?:card|document)|"
    r"document|dni|nie|nif|cpf|curp|pesel|personnummer|bsn|codice fiscale|resident permit|residence permit|visa number|"
    r"government id|national number|personal (?:number|code|id))\b",
    re.I,
)
_BANK = re.compile(
    r"\b(?:account|acct|a/c|acc|routing|aba|sort[ -]?code|bsb|bank code|blz|transit)\b(?!\s+(?:manager|team|since))",
    re.I,
)
_VALUE = re.compile(
    r"(?<![\w@])(?:(?-i:[A-Z]{1,3})[ -])?[A-Z]{0,6}\d[A-Z0-9]*(?:[ -]?[A-Z]{0,2}\d[A-Z0-9]*){0,5}"
    r"(?:[ -](?-i:[A-Z]))?(?![\w@])",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w+.,-])\d(?:[ -]?\d){5,16}(?![\w]|[.,]\d)")
_SSN = re.compile(r"(?<![\w-])\d{3}[- ]\d{2}[- ]\d{4}(?![\w-])")
_NEAR = 40


def _digits(text: str) -> str:
    return re.sub(r"\D", "", text)


# Forms that no other number has, each with the test that it must pass.
_FORMS: tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...] = (
    (re.compile(r"(?<!\w)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D](?!\w)"), lambda _: True),
    (re.compile(r"(?<!\w)\d{3} \d{3} \d{4}(?!\w)"), lambda text: nhs_valid(_digits(text))),
    (re.compile(r"(?<!\w)\d{3}\.\d{3}\.\d{3}-\d{2}(?!\w)"), lambda _: True),
    (re.compile(r"(?<!\w)[A-Z]{5}\d{4}[A-Z](?!\w)"), lambda _: True),
    (re.compile(r"(?<!\w)[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z](?!\w)"), lambda _: True),
    (re.compile(r"(?<!\w)[XYZ]?\d{7,8}-?[TRWAGMYFPDXBNJZSQVHLCKE](?!\w)"), lambda text: _spanish(text)),
    (re.compile(r"(?<!\w)\d{3}[- ]\d{3}[- ]\d{3}(?!\w)"), lambda text: luhn_valid(_digits(text))),
    (re.compile(r"(?<!\w)[2-9]\d{3} \d{4} \d{4}(?!\w)"), lambda _: True),
)


def _spanish(text: str) -> bool:
    compact = text.replace("-", "")
    body = compact[:-1].translate(str.maketrans("XYZ", "012"))
    return len(body) == 8 and "TRWAGMYFPDXBNJZSQVHLCKE"[int(body) % 23] == compact[-1]


def find_identifiers(text: str) -> Iterator[Span]:
    """Numbers that identify a person or an account."""
    for found in _SSN.finditer(text):
        yield Span(*found.span(), "ssn", 7)
    for form, holds in _FORMS:
        for found in form.finditer(text):
            if holds(found[0]):
                yield Span(*found.span(), "id", 7)
    for label in _LABELLED.finditer(text):
        for found in _VALUE.finditer(text, label.end(), min(len(text), label.end() + _NEAR + 24)):
            if found.start() - label.end() <= _NEAR and _is_value(found[0]):
                kind = "ssn" if label["what"].lower() in ("ssn", "social", "social security") else "id"
                yield Span(*found.span(), kind, 6)
                break
    for label in _BANK.finditer(text):
        found_ = _NUMBER.search(text, label.end(), min(len(text), label.end() + 60))
        if found_ and found_.start() - label.end() <= _NEAR:
            yield Span(*found_.span(), "account", 5)


def _is_value(text: str) -> bool:
    return sum(char.isdigit() for char in text) >= 4
