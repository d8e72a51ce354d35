"""Finds personal data of a fixed format by pattern, checksum and the words before it, without a model.

E-mail, phone, card, IBAN, account, national ids, IP and MAC, date of birth, crypto wallets. Ten digits may be a phone,
an order or an account, so a number counts as personal only if its format is unmistakable (a checksum, a country code,
the groups of a phone number) or a word before it says so, and not behind "order", "ticket" or "reference".
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address

from shared.privacy.redaction.data.checksums import card_network, iban_length, is_iban_valid, is_luhn_valid, only_digits
from shared.privacy.redaction.data.domains import COUNTRY_ENDS, GENERIC_ENDS, MAIL_PROVIDERS
from shared.privacy.redaction.detect.identifiers import find_identifiers
from shared.privacy.redaction.detect.named_values import named_values
from shared.privacy.redaction.detect.phones import find_phones
from shared.privacy.redaction.spans import TextSpan

DETECTORS = 4
"""Raise it with each change by which more is found: what was searched by earlier detectors is searched again."""
_TRIGGER = re.compile(r"[\d@]|\(at\)|\[at\]|::| dot |&commat;| at [\w-]+\.", re.I)
_CONTEXT_CHARACTERS = 48
_LOCAL_CHARACTERS = 80
"""The most that may stand before the @ of an address are 64; what says that it is one may stand before that."""

_EMAIL = re.compile(
    r"[\w.+%&'*/=?^`{|}~!#$-]{1,64}(?:@|\s?[\[(]at[\])]\s?)(?:[\w-]{1,63}(?:\.|\s?[\[(]dot[\])]\s?)){1,6}[^\W\d_][\w-]{1,62}",
    re.I,
)
# In a URL, in HTML, spelled out, or with blanks: "j.doe%40example.org", "j.doe&#64;example.org",
# "j.doe at example dot org", "j.doe @ example.org".
_SPELLED_EMAIL = re.compile(
    r"[\w.+-]{1,64}(?:%40|&#0{0,4}64;|&#x0{0,4}40;|&commat;)(?:[\w-]{1,63}\.){1,6}[^\W\d_]{2,24}|"
    r"(?<![\w.+-])[\w.+-]{1,64}(?: (?:dot|punkt|point|punto) [\w+-]{1,64}){0,3} at "
    r"[\w-]{1,63}(?:(?:\.| dot )[\w-]{1,63}){0,3} dot "
    r"(?:com|net|org|edu|gov|info|biz|co|io|me|eu|uk|ie|de|fr|es|it|nl|be|ch|at|se|no|dk|fi|pl|pt|us|ca|au|in|br|mx)(?!\w)|"
    # With a blank only with the end of a domain that there is: "x @ self.weight" and "@javax.annotation" are code.
    rf"(?<![\w.+-])[\w.+-]{{1,64}}(?: @ ?|@ )(?:[\w-]{{1,63}}\.){{1,6}}(?:(?:{'|'.join(GENERIC_ENDS)})|"
    rf"(?:{'|'.join(COUNTRY_ENDS)})(?!\())(?!\w|\.\w)",
    re.I,
)
_SPELLED_SIGNS = ("%40", "64;", "40;", "&commat;", " dot ", "@ ", " @")
"""One of these is in each."""
_AT_PROVIDER = re.compile(
    rf" at (?:{'|'.join(MAIL_PROVIDERS)})\.(?:com?|net|org|{'|'.join(COUNTRY_ENDS)})(?:\.[a-z]{{2}})?(?!\w|\.\w)", re.I
)
# Before "at gmail.com" may stand any word. An address is one of two parts, or what is said to be one.
_LOCAL_PART = re.compile(
    r"(?<![\w.+@/-])[a-z]{2,}[._+](?!(?:id|ids|name|html?|php|js|json|py|txt|md|csv|xml|pdf|log|conf)\Z)\w{2,}[\w.+-]*\Z|"
    r"(?:(?<=\be-mail: )|(?<=\bemail: )|(?<=\bmail: )|(?<=address: )|(?<=address is )|(?<=reach me at ))"
    r"[a-z][\w.+-]{3,}\Z",
    re.I,
)
# In a URL or a log an address is a value: "?user=" and "email=" are not part of it.
_BEFORE_EMAIL = re.compile(
    r".*[?&][\w.-]*=|//.*/|(?:user(?:name)?|login|e?mail|to|from|cc|recipient|sender|contact|address)=", re.I
)
# Its groups not behind another group of its number; a date, a time or an amount is none. Unbroken, it is a whole.
_CARD = re.compile(
    r"(?<![\w.-])(?:(?<!\d )|(?<=[:/.-]\d\d )|(?<=[/.-]\d{4} )|(?=\d{12}))[2-6]\d{3}(?:[ \t.-]{0,2}\d){8,15}(?!\w)|"
    r"(?:(?<=[^\W\d_]\.)|(?<=\W-))[2-6]\d{3}(?:[ \t.-]{0,2}\d){8,15}(?!\w)"
)
_CARD_WORD = re.compile(r"\b(?:card|visa|mastercard|amex|american express|discover|maestro|pan|cc)\b", re.I)
# "De89 3704 …" is what the keyboard of a phone makes of it.
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}[ -]?\d{2}(?:[ \t.-]{0,2}[A-Z0-9]){11,32}(?![A-Za-z0-9])|"
                   r"(?<![A-Za-z0-9])[A-Za-z][a-z]\d{2}(?:[ \t.-]{0,2}[A-Za-z0-9]){11,30}(?![A-Za-z0-9])")  # fmt: skip
_IPV4 = re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w]|\.\d)")
_IPV6 = re.compile(
    r"(?<![\w:.])[0-9A-Fa-f]{0,4}(?:(?::[0-9A-Fa-f]{0,4}){1,6}:\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\d)|"
    r"(?::[0-9A-Fa-f]{0,4}){2,8}(?![\w:]))"
)
_MAC = re.compile(r"(?<![\w:-])[0-9A-Fa-f]{2}(?:([:-])[0-9A-Fa-f]{2})(?:\1[0-9A-Fa-f]{2}){4}(?![\w:-])")
_VERSION = re.compile(
    r"(?:\bv(?:er(?:sions?|\.)?)?|releases?|firmware|build|app|update|chapter|section|clause|§|install(?:ed|ing)?|"
    r"upgraded? to|downgraded? to|driver|sdk|patch)\s*$",
    re.I,
)
_SOFTWARE = re.compile(
    r"\b(?:versions?|firmware|releases?|upgrad\w+|downgrad\w+|install\w*|changelog|sdk|patch\w*|build|driver|rollback)\b",
    re.I,
)
_NETWORK = re.compile(
    r"\b(?:ips?|ipv4|address(?:es)?|hosts?|servers?|src|dst|login|logged|ping|subnet|dns|gateway|port|proxy|vpn|ssh|"
    r"https?|router|whitelist|allow ?list|block|client|network|adresse|direcci[oó]n|indirizzo)\b",
    re.I,
)
_MAX_FIRST_OF_VERSION = 30
_NETMASKS = IPv4Network("255.0.0.0/8")
_CRYPTO = re.compile(r"(?<!\w)(?:[13][1-9A-HJ-NP-Za-km-z]{25,34}|bc1[02-9ac-hj-np-z]{11,71}|0x[0-9a-fA-F]{40})(?!\w)")

_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?|januari?|februari?|märz|maart|mai|mei|juin|juni|juillet|juli|août|augustus|septembre|"
    r"ok?tober|octobre|novembre|de[zc]ember|décembre|janvier|février|mars|avril|"
    r"enero|febrero|marzo|abril|mayo|junio|julio|agosto|sep?tiembre|octubre|noviembre|diciembre|"
    r"gennaio|febbraio|aprile|maggio|giugno|luglio|settembre|ottobre|dicembre|"
    r"janeiro|fevereiro|março|maio|junho|julho|setembro|outubro|novembro|dezembro|"
    r"marts|maj|augusti|desember|"
    r"stycznia|lutego|marca|kwietnia|maja|czerwca|lipca|sierpnia|września|października|listopada|grudnia|"
    r"ocak|şubat|mart|nisan|mayıs|haziran|temmuz|ağustos|eylül|ekim|kasım|aralık)"
)
DATE = re.compile(
    rf"(?<![\w/.-])(?:\d{{4}}[-/.]\d{{1,2}}[-/.]\d{{1,2}}|\d{{1,2}}( ?[-/.] ?)\d{{1,2}}\1(?:\d{{4}}|\d{{2}})|"
    rf"\d{{1,2}}(?:st|nd|rd|th|er|\.)?(?: of| de)?[ -]{_MONTH}\.?,?(?: de)?[ -](?:\d{{4}}|'?\d{{2}})|"
    rf"{_MONTH}\.? \d{{1,2}}(?:st|nd|rd|th)?,? \d{{4}})(?:(?=T\d\d:)|(?![\w/-]))",
    re.I,
)
_DAY, _MONTH_NUMBER = r"(?:0[1-9]|[12]\d|3[01])", r"(?:0[1-9]|1[0-2])"
_DATE_OF_DIGITS = (
    rf"(?:(?:19|20)\d\d{_MONTH_NUMBER}{_DAY}|(?:{_DAY}{_MONTH_NUMBER}|{_MONTH_NUMBER}{_DAY})(?:19|20)\d\d)"
)
_BIRTH_WORD = (
    r"\b(?:born|birth|dob|d\.o\.b|birthday|birthdate|geboren|geb|geburts(?:datum|tag)|née?|naissance|"
    r"nacid[oa]|nacimiento|nat[oa]|nascita|nascid[oa]|nascimento|geboortedatum|född|født|fødselsdato|syntynyt|"
    r"urodz(?:ony|ona|enia)|doğum|narozen[ýá]?)\b"
)
_BIRTH = re.compile(_BIRTH_WORD, re.I)
_BIRTH_OF_DIGITS = re.compile(rf"{_BIRTH_WORD}[^\d\n]{{0,12}}(?<!\w)(?P<date>{_DATE_OF_DIGITS})(?!\w|[.,/-]\d)", re.I)
"""Eight digits are a date only right behind the word: "dob: 19800312"."""
# A word for another date, between the word for birth and a date far behind it.
_OTHER_DAY = re.compile(
    r"\b(?:on|since|until|by|from|due|dated?|appointment|visit|admitted|seen|issued|expir\w+|valid|ordered|paid|booked|"
    r"started|today|am|ab|bis|seit|vom|le|du|el|il|dal|op|gültig|rendez-vous|cita|appuntamento)\b[^\d\n]{0,16}$",
    re.I,
)
_SENTENCE_CHARACTERS = 140


def find_patterns(text: str) -> list[TextSpan]:
    """Find all personal data of a fixed format; spans may overlap, and the more certain one weighs more."""
    if not _TRIGGER.search(text):  # Each format has a digit or a sign of an address; most texts have neither.
        return []
    spans = _find_formats(text)
    for cue, value, start in named_values(text):
        moved_by = start - len(cue)
        found = (s for s in _find_formats(cue + value) if s.start >= len(cue))
        spans.extend(TextSpan(s.start + moved_by, s.end + moved_by, s.kind, s.weight) for s in found)
    return spans


def _find_formats(text: str) -> list[TextSpan]:
    spans = list(_emails(text))
    if any(char.isdigit() for char in text):
        for find in (_cards, _ibans, _network_addresses, _wallets, _birth_dates, find_identifiers, find_phones):
            spans.extend(find(text))
    elif "::" in text:
        spans.extend(_network_addresses(text))
    return spans


def _emails(text: str) -> Iterator[TextSpan]:
    lower = text.lower()
    if any(sign in lower for sign in _SPELLED_SIGNS):
        for found in _SPELLED_EMAIL.finditer(text):
            yield TextSpan(*found.span(), "email", 9)
    for found in _AT_PROVIDER.finditer(text) if " at " in lower else ():
        if (local := _LOCAL_PART.search(text, max(0, found.start() - _LOCAL_CHARACTERS), found.start())) is not None:
            yield TextSpan(local.start(), found.end(), "email", 9)
    if "@" not in text and "at" not in lower:
        return
    for found in _EMAIL.finditer(text):
        start, end = found.span()
        while (before := _BEFORE_EMAIL.match(text, start, text.find("@", start, end))) is not None:
            start = before.end()
        while start < end and text[start] in "'*`.=-":  # Quotes and Markdown around it are not part of it.
            start += 1
        yield TextSpan(start, end, "email", 9)


def _cards(text: str) -> Iterator[TextSpan]:
    at = 0
    while (found := _CARD.search(text, at)) is not None:
        start = found.start()
        at = start + 1  # A date before it looks like its first groups.
        numbers = list(_groups_from(found[0]))
        number, weight = next((number for number in numbers if is_luhn_valid(only_digits(number))), None), 8
        if number is None and _CARD_WORD.search(text, max(0, start - _CONTEXT_CHARACTERS), start):
            number, weight = next((number for number in numbers if len(only_digits(number)) >= 15), None), 7
        if number is not None:  # Mistyped, it is still a card.
            at = start + len(number)
            yield TextSpan(start, at, "card", weight)


def _groups_from(text: str) -> Iterator[str]:
    """Yield what of some groups of digits may be a card's number, the longest first: an expiry date may follow it."""
    while len(digits := only_digits(text)) >= 12:
        if len(digits) <= 19 and card_network(digits) is not None:
            yield text
        text = re.sub(r"[ \t.-]{0,2}\d+$", "", text)


def _ibans(text: str) -> Iterator[TextSpan]:
    at = 0
    while (found := _IBAN.search(text, at)) is not None:
        at = found.start() + 1  # "PO 4711 DE89 3704 ...": what is none may run through one.
        raw, end = found[0], found.start()
        length = iban_length(raw)
        if length is None:
            continue
        count = 0
        for offset, char in enumerate(raw, start=1):
            count += char.isalnum()
            if count == length:
                end = found.start() + offset
                break
        if count < length or (end < len(text) and text[end].isalnum()):
            continue
        is_labelled = "iban" in text[max(0, found.start() - _CONTEXT_CHARACTERS) : found.start()].lower()
        if is_labelled or is_iban_valid(text[found.start() : end]):
            yield TextSpan(found.start(), end, "iban", 9)
            at = end


def _network_addresses(text: str) -> Iterator[TextSpan]:
    is_about_software: bool | None = None
    for found in _IPV4.finditer(text):
        if is_about_software is None:
            is_about_software = bool(_SOFTWARE.search(text)) and not _NETWORK.search(text)
        if not _is_version(text, found, is_about_software=is_about_software):
            try:
                address = IPv4Address(found[0])
            except AddressValueError:
                continue
            if not (address.is_loopback or address.is_unspecified or address in _NETMASKS):  # Those are nobody's.
                yield TextSpan(*found.span(), "ip", 7)
    if ":" not in text and text.count("-") < 5:
        return
    for found in _MAC.finditer(text):
        yield TextSpan(*found.span(), "id", 8)
    for found in _IPV6.finditer(text):
        try:
            IPv6Address(found[0])
        except AddressValueError:
            continue
        groups = [group for group in found[0].split(":") if group]
        # "a[1024::2]" and "db::add" are code.
        if len(groups) >= 3 or any(len(group) >= 4 and not group.isalpha() and not group.isdigit() for group in groups):
            yield TextSpan(*found.span(), "ip", 8)


def _is_version(text: str, found: re.Match[str], *, is_about_software: bool) -> bool:
    """Return True for a version number: a word before says so, or the text is about software and not about networks."""
    if _VERSION.search(text, max(0, found.start() - 24), found.start()):
        return True
    first = int(found[0].split(".")[0])
    return first <= _MAX_FIRST_OF_VERSION and first != 10 and is_about_software


def _wallets(text: str) -> Iterator[TextSpan]:
    for found in _CRYPTO.finditer(text):
        if found[0][:2] in ("bc", "0x") or sum(char.isdigit() for char in found[0]) >= 2:
            yield TextSpan(*found.span(), "crypto", 7)


def _birth_dates(text: str) -> Iterator[TextSpan]:
    if not _BIRTH.search(text):
        return
    for found in _BIRTH_OF_DIGITS.finditer(text):
        yield TextSpan(*found.span("date"), "birth_date", 8)
    last_end = looked_at = 0
    is_said_again = False
    for found in DATE.finditer(text):
        start = found.start()
        is_said_again = is_said_again or bool(_BIRTH.search(text, looked_at, start))
        looked_at = found.end()
        if (
            last_end
            and not is_said_again
            and _OTHER_DAY.search(text[max(last_end, start - _CONTEXT_CHARACTERS) : start])
        ):
            continue  # "dob 12/03/1980, appointment on 14/06/2024".
        if _BIRTH.search(text[max(0, start - _CONTEXT_CHARACTERS) : found.end() + 24]):
            last_end, is_said_again = found.end(), False
            yield TextSpan(*found.span(), "birth_date", 8)
            continue
        sentence = re.split(r"[.!?] |\n", text[max(0, start - _SENTENCE_CHARACTERS) : start])[-1]
        if _BIRTH.search(sentence) and not _OTHER_DAY.search(sentence):
            yield TextSpan(*found.span(), "birth_date", 8)
