"""Finds national identity, tax, health, passport, licence and bank account numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.data.checksums import iban_length
from shared.privacy.redaction.data.national_ids import NUMBER_FORMATS
from shared.privacy.redaction.spans import TextSpan

_LABELLED = re.compile(
    r"\b(?P<what>passport|pass\s?port|driv(?:er|ing)(?:'?s)?[ -]li[cs]en[cs]e|licen[cs]e|nhs|national (?:id|insurance|"
    r"identity)|nino|ni (?:number|no)|tax(?:payer)? (?:id|number|file)|tin|itin|utr|tfn|medicare|medicaid|mbi|"
    r"health (?:card|insurance)|mrn|medical record(?: number| no)?|social security|social|ssn|sin|aadhaa?r|"
    r"pan (?:card|number)|identity (?:card|document|number)|id (?:card|document)|document|"
    r"(?:my|his|her|their|your) id (?:number|no)|resident permit|residence permit|green card|alien number|visa number|"
    r"government id|national number|personal (?:number|code|id)|"
    r"pps(?:n| number)?|nric|hkid|cnic|emirates id|iqama|voter id|"
    r"reisepass\w*|(?:personal)?ausweis\w*|führerschein\w*|steuer-?(?:id\w*|nummer|nr)|steueridentifikationsnummer|"
    r"(?:sozial|renten|kranken)?versicherungsnummer|sozialversicherungsnr|svnr|sv-(?:nr|nummer)|"
    r"ahv(?:-?n(?:r|ummer))?|avs|"
    r"passeport|permis de conduire|carte d['’]identité|cni|nir|insee|(?:numéro de )?sécu(?:rité sociale)?|"
    r"numéro fiscal|numéro national|niss|insz|rijksregister\w*|bsn|burgerservicenummer|paspoort\w*|rijbewijs\w*|"
    r"pasaporte|carn[ée] de conducir|seguridad social|dni|nie|nif|rut|cui[tl]|cédula|curp|passaporto|patente|"
    r"carta d['’]identità|codice fiscale|cod\. fisc|tessera sanitaria|passaporte|cpf|contribuinte|carta de condução|"
    r"cpr(?:-?n(?:r|ummer))?|person(?:nummer|nr)|fødsels(?:nummer|nr)|hetu|henkilötunnus|kennitala|"
    r"pesel|nr dowodu|paszport\w*|rodné číslo|cnp|egn|oib|jmbg|amka|afm|tckn|t\.?c\.? kimlik(?: no)?|isikukood)\b",
    re.I,
)
_PASSPORT = re.compile(r"\bpass(?:port|eport|aporte|aporto)|\breisepass|\bli[cs]en[cs]e\b|\bführerschein", re.I)
_PASSPORT_VALUE = re.compile(
    r"(?<![\w-])(?:[A-Z]{1,3}\d{6,9}|[A-Z]\d{2}[A-Z]\d{2}[A-Z]\d{1,3}|\d{2}[A-Z]{2}\d{5})(?![\w-])"
)
_BANK = re.compile(
    r"\b(?:account|acct|a/c|acc|routing|aba|sort[ -]?code|bsb|bank code|blz|transit|"
    r"konto(?:nummer|-?nr)|kto|konto(?=\W{0,4}\d)|(?:num[ée]ro|n[°º]|no) de compte|compte (?:bancaire|n[°º])|"
    r"n(?:[úu]mero|\.?[°º]) de cuenta|cuenta (?:bancaria|n[°º])|numero di conto|conto corrente|rekeningnummer|"
    r"rekening(?=\W{0,4}\d)|n[úu]mero da conta|(?:nr|numer) (?:konta|rachunku)|tilinumero)\b"
    r"(?!\s+(?:manager|team|since|balances?|limit|turnover))",
    re.I,
)
_VALUE = re.compile(
    r"(?<![\w@])(?:(?-i:[A-Z]{1,3})[ -])?[A-Z]{0,6}\d[A-Z0-9]*(?:[ -]?[A-Z]{0,2}\d[A-Z0-9]*){0,5}"
    r"(?:[ -](?-i:[A-Z])(?! [a-z]))?(?![\w@])",
    re.I,
)
_NUMBER = re.compile(r"(?<![\w+.,-])\d(?:[ -]?\d){5,16}(?![\w]|[.,]\d)")
_SSN = re.compile(r"(?<![\w-])\d{3}[- ]\d{2}[- ]\d{4}(?![\w-])")
_SSN_WORD = re.compile(r"\bssns?\b|\bsocial security\b", re.I)
_NINE = re.compile(r"(?<![\w.+-])\d{9}(?![\w-]|\.\d)")
_YEAR = re.compile(r"(?:19|20)\d{2}|\d{4}-\d{1,2}-\d{1,2}")
_OTHER_NUMBER = re.compile(
    r"\b(?:order|ticket|case|invoice|tracking|booking|claim|routing|account|acct)\b[^\d\n]{0,24}$", re.I
)
_OTHER_NATIONAL_NUMBER = re.compile(
    r"(?:\b(?:orders?|bestell\w*|commande|pedido|ordine|ticket|case|ref(?:erence)?|invoice|rechnung\w*|facture|factura|"
    r"tracking|parcel|shipment|colis|booking|transaction|sku|serial|article|artikel\w*|item|product|model|batch|lot|part|"
    r"isbn|ean|upc|imei|build|job|request|error|timestamp)\b|#)[^\d\n]{0,24}$",
    re.I,
)
# Where a national number may begin: up to six letters, and four digits not far apart.
_NATIONAL_STARTS = re.compile(r"(?<![\w.+-])(?<!\d )(?=[A-Z]{0,6} ?\d(?:[A-Z]{0,3}[ ./+-]?[A-Z]{0,2}\d){3})")
_LABEL_CHARACTERS, _SENTENCE_CHARACTERS = 40, 120
"""How far behind a label its number may stand."""


def find_identifiers(text: str) -> Iterator[TextSpan]:
    """Yield the numbers that identify a person or an account."""
    for found in _SSN.finditer(text):
        yield TextSpan(*found.span(), "ssn", 7)
    yield from find_national_ids(text)
    yield from _labelled(text)
    for label in _BANK.finditer(text):
        number = _NUMBER.search(text, label.end(), min(len(text), label.end() + 60))
        if number and number.start() - label.end() <= _LABEL_CHARACTERS:
            yield TextSpan(*number.span(), "account", 5)


def find_national_ids(text: str) -> Iterator[TextSpan]:
    """Yield the valid national numbers, except plain digits behind a word like "order"."""
    for start in _NATIONAL_STARTS.finditer(text):
        for number_format in NUMBER_FORMATS:
            found = number_format.pattern.match(text, start.start())
            if found is None or not number_format.is_valid(found[0]):
                continue
            start_of_label = max(0, found.start() - _LABEL_CHARACTERS)
            if not (found[0].isdigit() and _OTHER_NATIONAL_NUMBER.search(text, start_of_label, found.start())):
                yield TextSpan(*found.span(), "id", 7)


def _labelled(text: str) -> Iterator[TextSpan]:
    """Yield the number behind each label; passport and social security numbers also later in the sentence."""
    for label in _LABELLED.finditer(text):
        for found in _VALUE.finditer(text, label.end(), min(len(text), label.end() + _LABEL_CHARACTERS + 24)):
            start = found.start()
            if label_again := _LABELLED.match(text, start, found.end()):  # "TFN declaration: TFN 123 456 782".
                start = label_again.end() + 1
            if iban_length(found[0]) and found[0][2:4].isdigit():
                continue
            if found.start() - label.end() <= _LABEL_CHARACTERS and _is_value(text[start : found.end()]):
                kind = "ssn" if label["what"].lower() in ("ssn", "social", "social security") else "id"
                yield TextSpan(start, found.end(), kind, 6)
                break
    for cue, value, kind in ((_PASSPORT, _PASSPORT_VALUE, "id"), (_SSN_WORD, _NINE, "ssn")):
        for label in cue.finditer(text):
            for found in value.finditer(text, label.end(), min(len(text), label.end() + _SENTENCE_CHARACTERS)):
                if not _OTHER_NUMBER.search(text, max(0, found.start() - _LABEL_CHARACTERS), found.start()):
                    yield TextSpan(*found.span(), kind, 6)


def _is_value(text: str) -> bool:
    return sum(char.isdigit() for char in text) >= 4 and not _YEAR.fullmatch(text)
