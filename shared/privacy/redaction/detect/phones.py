"""Phone numbers: by country code, by the groups that only phone numbers have, or by the word before them."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.spans import TextSpan

_SEPARATOR = r"[ .\-/\u00a0\u2010-\u2013]"
_EXTENSION = r"(?:,?\s?(?:x|ext\.?|extension)\s?\d{1,6})?"
_INTERNATIONAL = re.compile(
    rf"(?<![\w+])(?:\+|(?<![-.])00)\s?\d{{1,3}}{_SEPARATOR}?(?:\(0?\d{{1,4}}\){_SEPARATOR}?)?\d{{1,5}}"
    rf"(?:{_SEPARATOR}?\d{{1,5}}){{1,5}}{_EXTENSION}(?!\w)",
    re.I,
)
_AMERICAN = re.compile(
    rf"(?<![\w+-])(?<!\d[.,])(?:1{_SEPARATOR}?)?(?:\(\d{{3}}\)\s?{_SEPARATOR}?|\d{{3}}{_SEPARATOR})\d{{3}}{_SEPARATOR}\d{{4}}{_EXTENSION}(?!\w)",
    re.I,
)
_NATIONAL = re.compile(
    rf"(?<![\w+-])(?<!\d[.,])\(?0\d{{1,5}}\)?(?:{_SEPARATOR}{{1,2}}\d{{2,8}}){{1,5}}{_EXTENSION}(?!\w)", re.I
)
_TRUNK = re.compile(r"(?<![\w+-])(?<!\d[.,])0[1-9]\d{8,9}(?!\w)")
_ANY = re.compile(rf"(?<![\w+])\(?\d{{1,5}}\)?(?:{_SEPARATOR}{{0,2}}\d{{1,5}}){{1,5}}{_EXTENSION}(?!\w)", re.I)
_WORD = re.compile(
    r"\b(?:phone|telephone|tel|mobile|cell|cellphone|call|called|calling|callback|text|texted|sms|whatsapp|signal|"
    r"telegram|fax|dial|ring|rang|reach(?:able)?|contact|handy|landline|voicemail|pin resent|resent to|number|numbers|"
    r"mob|cel|imessage|facetime|viber|zelle|venmo|cash ?app|bizum|hotline|helpline|switchboard|pager|extension|"
    r"rufnummer|handynummer|telefon\w*|mobil\w*|anrufen|erreichbar|erreichen|ruft?|t[ée]l[ée]phone|tél|portable|appel\w*|"
    r"joindre|rappel\w*|tel[ée]fono|m[óo]vil|ll[aá]m\w*|cellulare|celular|chiam\w*|num[ée]ro|telem[óo]vel|ligar|"
    r"telefoon\w*|mobiel|bellen|bel|ring på)\b"
    r"[^\d\n]{0,40}$",
    re.I,
)
_NOT_A_PHONE = re.compile(
    r"(?:\b(?:order|orders|ticket|case|ref|reference|invoice|tracking|parcel|shipment|booking|reservation|transaction|"
    r"txn|sku|serial|article|item|product|model|version|customer|member(?:ship)?|policy|claim|confirmation|receipt|"
    r"account|acct|routing|isbn|ean|upc|imei|id|po|code|voucher|coupon|card|amount|postcode|zip|year|ssn|price|"
    r"predictions?|request|job|error|build|batch|lot|part|bestell\w*|rechnung\w*|kunden\w*|vertrags\w*|commande|"
    r"facture|pedido|factura|ordine|fattura|colis|suivi|art[ií]culo|articolo)\b|#)[^\d\n]{0,24}$",
    re.I,
)

# "1Z 999 AA1 01 2345 6784": groups with letters before it, so that it is the end of something longer.
_CODE = re.compile(r"(?<!\w)(?:[A-Z]+\d|\d+[A-Z])\w* $")
_SURE = 8  # No other number has a plus: "+61 491 570 156" is not a Canadian SIN behind something.

_WITH_ZEROS = 11  # Two zeros, a country, and what remains of the shortest numbers: "0078-0511-20" is an article.


def find_phones(text: str) -> Iterator[TextSpan]:
    """Phone numbers in a text; 7 to 15 digits (E.164)."""
    for pattern, weight in ((_INTERNATIONAL, 6), (_AMERICAN, 6), (_NATIONAL, 5), (_TRUNK, 4)):
        for found in pattern.finditer(text):
            if not _plausible(found[0]):
                continue
            before = text[max(0, found.start() - 48) : found.start()]
            if _CODE.search(before):
                continue
            plus = found[0].startswith("+")
            if pattern is _INTERNATIONAL and not plus and sum(char.isdigit() for char in found[0]) < _WITH_ZEROS:
                continue
            if plus or not _NOT_A_PHONE.search(before) or _WORD.search(before):
                yield TextSpan(*found.span(), "phone", _SURE if plus else weight)
    for found in _ANY.finditer(text):
        before = text[max(0, found.start() - 48) : found.start()]
        said = _WORD.search(before)
        if said and _plausible(found[0]) and not _NOT_A_PHONE.search(before):
            yield TextSpan(*found.span(), "phone", 3)


def _plausible(text: str) -> bool:
    number: str = re.split(r"x|ext", text, maxsplit=1, flags=re.I)[0]
    if re.search(r"\d{4}-\d{2}-\d{2}|\b\d{1,2}[/.]\d{1,2}[/.]\d{2,4}\b", number):  # A date.
        return False
    digits = sum(char.isdigit() for char in number)
    return 7 <= digits <= 15
