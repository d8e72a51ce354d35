"""Finds phone numbers: by country code, by groups of digits that only they have, or by the word before."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.data.checksums import only_digits
from shared.privacy.redaction.spans import TextSpan

_SEPARATOR = r"[ .\-/]"
_WIDE_SEPARATOR = r"(?:(?:(?<=[ )]\d\d)|(?<=[ )]\d{3})|(?<=[ )]\d{4})|(?<=\d\))) [/-] |[ .\-/])"
"""With blanks behind the area: in "+49 170 / 1234567", but not in "+1000 - 2000"."""
_BEHIND_AREA = r"(?<=\d\d[\d)]) / (?!(?:19|20)\d\d(?! ?\d))"
"""In "0170 / 1234567", but not in "012 / 2024"."""
_EXTENSION = r"(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})?"
_INTERNATIONAL = re.compile(
    rf"(?<![\w+])(?:\+|(?<![-.])00)\s?\d{{1,3}}{_WIDE_SEPARATOR}?(?:\(0?\d{{1,4}}\){_WIDE_SEPARATOR}?)?\d{{1,5}}"
    rf"(?:{_WIDE_SEPARATOR}?\d{{1,5}}){{1,5}}{_EXTENSION}(?!\w)",
    re.I,
)
_AMERICAN = re.compile(
    rf"(?<![\w+-])(?<!\d[.,])(?:1{_SEPARATOR}?)?(?:\(\d{{3}}\)\s?{_SEPARATOR}?|\d{{3}}{_SEPARATOR})\d{{3}}{_SEPARATOR}\d{{4}}{_EXTENSION}(?!\w)",
    re.I,
)
_NATIONAL = re.compile(
    rf"(?<![\w+-])(?<!\d[.,])(?<!\b\d/)(?<!\b\d\d/)\(?0\d{{1,5}}\)?"
    rf"(?:{_BEHIND_AREA}|{_SEPARATOR}{{1,2}})\d{{2,8}}(?:{_SEPARATOR}{{1,2}}\d{{2,8}}){{0,4}}{_EXTENSION}(?!\w)",
    re.I,
)
_TRUNK = re.compile(r"(?<![\w+-])(?<!\d[.,])0[1-9]\d{8,9}(?!\w)")
_ANY = re.compile(rf"(?<![\w+])\(?\d{{1,5}}\)?(?:{_SEPARATOR}{{0,2}}\d{{1,5}}){{1,5}}{_EXTENSION}(?!\w)", re.I)
_PHONE_WORD = re.compile(
    r"\b(?:phone|telephone|tel|mobile|msisdn|cell|cellphone|call|called|calling|callback|text|texted|sms|whatsapp|signal|"
    r"telegram|fax|dial|ring|rang|reach(?:able)?|contact|handy|landline|voicemail|pin resent|resent to|"
    r"numbers?(?! of\b(?! (?:my|his|her|our|their|the)\b))|"
    r"mob|cel|imessage|facetime|viber|zelle|venmo|cash ?app|bizum|hotline|helpline|switchboard|pager|extension|"
    r"rufnummer|handynummer|telefon\w*|mobil\w*|anrufen|erreichbar|erreichen|ruft?|t[ée]l[ée]phone|tél|portable|appel\w*|"
    r"joindre|rappel\w*|tel[ée]fono|m[óo]vil|ll[aá]m\w*|cellulare|celular|chiam\w*|num[ée]ro|telem[óo]vel|ligar|"
    r"telefoon\w*|mobiel|bellen|bel|ring på)\b"
    r"[^\d\n]{0,40}$",
    re.I,
)
# Said last, it stands before any word for another number: "customer phone", but "phone order number".
_PHONE_NAME = re.compile(
    r"\b(?:(?:tele|cell)?phone|tel|mobile|mob|cell|msisdn|fax|whatsapp|handy|telefon|(?:telefon|handy|mobil|ruf)nummer|"
    r"t[ée]l[ée]phone|tel[ée]fono|m[óo]vil|cellulare|celular|telem[óo]vel|telefoon)(?: (?:number|num|no|nr))?\W{0,4}$",
    re.I,
)
_OTHER_NUMBER_WORD = re.compile(
    r"(?:\b(?:order|orders|ticket|case|ref|reference|invoice|tracking|parcel|shipment|booking|reservation|transaction|"
    r"txn|sku|serial|article|item|product|model|version|customer|member(?:ship)?|policy|claim|confirmation|receipt|"
    r"account|acct|routing|release|firmware|chapter|tariff|hts|isbn|ean|upc|imei|id|po|code|voucher|coupon|card|amount|postcode|zip|year|ssn|price|"
    r"predictions?|request|job|error|build|batch|lot|part|bestell\w*|rechnung\w*|kunden\w*|vertrags\w*|commande|"
    r"facture|pedido|factura|ordine|fattura|colis|suivi|art[ií]culo|articolo)\b|#)[^\d\n]{0,24}$",
    re.I,
)

# "1Z 999 AA1 01 2345 6784": groups with letters before the digits, so these are the end of a longer code.
_CODE_BEFORE = re.compile(r"(?<!\w)(?:[A-Z]+\d|\d+[A-Z])\w* $")
_PLUS_WEIGHT = 8  # No other number has a plus: "+61 491 570 156" does not end with a Canadian SIN.
_DATE = re.compile(
    r"(?<![\d./-])(?:\d{4}-(?P<first>\d{2})-(?P<second>\d{2})(?!\d)|"
    r"(?P<first_>\d{1,2})(?P<between>[/.])(?P<second_>\d{1,2})(?P=between)(?:\d{4}|\d{2})(?!\d|(?P=between)\d))"
)
_DATE_WITH_YEAR = re.compile(r"(?<!\d)(?:(?:19|20)\d{2}-\d{2}-\d{2}|\d{1,2}([/.])\d{1,2}\1(?:19|20)\d{2})(?!\d)")
_PAIRS = re.compile(r"(?<!\d)\d{2}([/.])\d{2}\1\d{2}(?!\d)")
_MIN_DIGITS_IN_PAIRS = 9  # "01.02.03.04" is a chapter where no word says that it is a phone.
_MIN_DIGITS_WITH_ZEROS = 11  # "00" for abroad, a country and a short number; "0078-0511-20" is an article.


def find_phones(text: str) -> Iterator[TextSpan]:
    """Yield the phone numbers in a text: 7 to 15 digits (E.164)."""
    for pattern, weight in ((_INTERNATIONAL, 6), (_AMERICAN, 6), (_NATIONAL, 5), (_TRUNK, 4)):
        for found in pattern.finditer(text):
            before = text[max(0, found.start() - 48) : found.start()]
            is_said = _is_said(before)
            if not _is_plausible(found[0], is_said=is_said):
                continue
            if _CODE_BEFORE.search(before):
                continue
            has_plus = found[0].startswith("+")
            if pattern is _INTERNATIONAL and not has_plus and len(only_digits(found[0])) < _MIN_DIGITS_WITH_ZEROS:
                continue
            if has_plus or is_said or not _is_other(before):
                yield TextSpan(*found.span(), "phone", _PLUS_WEIGHT if has_plus else weight)
    for found in _ANY.finditer(text):
        before = text[max(0, found.start() - 48) : found.start()]
        if _is_said(before) and _is_plausible(found[0], is_said=True) and not _is_other(before):
            yield TextSpan(*found.span(), "phone", 3)


def _is_said(before: str) -> bool:
    return _PHONE_WORD.search(before) is not None


def _is_other(before: str) -> bool:
    return _OTHER_NUMBER_WORD.search(before) is not None and _PHONE_NAME.search(before) is None


def _is_plausible(text: str, *, is_said: bool) -> bool:
    number: str = re.split(r"x|ext", text, maxsplit=1, flags=re.I)[0]
    digits = len(only_digits(number))
    if not 7 <= digits <= 15:
        return False
    if number.startswith("+"):  # "+2024-01-15" is a line that a diff adds.
        return not _DATE_WITH_YEAR.search(number)
    # "06.12.34.56.78" begins as a date does, and goes on.
    is_chapter = not is_said and digits < _MIN_DIGITS_IN_PAIRS and _PAIRS.search(number)
    return not is_chapter and not any(map(_is_date, _DATE.finditer(number)))


def _is_date(found: re.Match[str]) -> bool:
    first, second = int(found["first"] or found["first_"]), int(found["second"] or found["second_"])
    return 1 <= min(first, second) <= 12 and max(first, second) <= 31
