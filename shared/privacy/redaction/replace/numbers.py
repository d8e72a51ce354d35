"""Surrogates of numbers, by kind. Each keeps the text's punctuation and blanks.

A text may be what a heavier finding has left of a number, so each function takes any text.
"""

from __future__ import annotations

import re
from ipaddress import ip_address

from shared.privacy.redaction.data.checksums import card_network, only_digits
from shared.privacy.redaction.replace.keyed_random import KeyedRandom, fill_digits, match_case

# Issuer numbers that payment providers hand out for tests, by network.
_TEST_ISSUERS = {
    "visa": "400000", "mastercard": "555555", "amex": "378282", "discover": "601111", "jcb": "353011",
    "diners": "305693", "maestro": "675964",
}  # fmt: skip
# Phone prefixes that regulators reserve for fiction (Ofcom, ARCEP, ACMA, Bundesnetzagentur), by country code.
_FICTION_PREFIXES = {
    "44": {"7": "7700900", "": "2079460"},
    "33": {"6": "63998", "7": "63998", "": "19900"},
    "61": {"4": "491570", "": "255501"},
    "49": {"1": "15228895", "": "3023125"},
}  # fmt: skip
_US_AREA_CODES = """
    201 202 206 212 213 303 305 312 313 404 415 503 512 602 612 617 619 702 713 718 773 801 816 901 919
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
_MONTHS_BY_LANGUAGE = tuple(
    tuple(months.split())
    for months in (
        "january february march april may june july august september october november december",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "januari februari maart april mei juni juli augustus september oktober november december",
        "januari februari mars april maj juni juli augusti september oktober november december",
        "januar februar marts april maj juni juli august september oktober november december",
        "stycznia lutego marca kwietnia maja czerwca lipca sierpnia września października listopada grudnia",
        "ocak şubat mart nisan mayıs haziran temmuz ağustos eylül ekim kasım aralık",
    )
)
_FEWEST_OF_CARD, _FEWEST_OF_IBAN = 12, 5
_EIGHT_DIGITS = re.compile(r"((?:19|20)\d\d)(0[1-9]|1[0-2])(\d\d)|(\d\d)(\d\d)(\d{4})")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def canonical(kind: str, text: str) -> str:
    """Return what all spellings of the same number have in common."""
    if kind == "phone":
        return only_digits(_without_extension(text))[-9:]
    compact = "".join(char for char in text if char.isalnum()).casefold()
    return text.casefold() if kind == "ip" else compact or text


def other(text: str, random: KeyedRandom) -> str:
    return random.same_shape(text)


def phone(text: str, random: KeyedRandom) -> str:
    """Replace a phone number; country code and trunk zero stay, an extension gets other digits."""
    number = _without_extension(text)
    digits = only_digits(number)
    is_international = number.lstrip(" (").startswith(("+", "00"))
    if (len(digits) == 10 and digits[0] not in "01") or (len(digits) == 11 and digits[0] == "1"):
        surrogate = random.choice(_US_AREA_CODES) + "55501" + random.digits(2)
    elif len(digits) == 7 and not is_international:
        surrogate = "55501" + random.digits(2)
    else:
        surrogate = _national_part(digits, is_international, random)
    return fill_digits(surrogate, number) + random.same_shape(text[len(number) :]).replace("\x00", "")


def _national_part(digits: str, is_international: bool, random: KeyedRandom) -> str:
    """Return the last digits of the surrogate; those before them stay."""
    code = next((c for c in _FICTION_PREFIXES if is_international and digits.removeprefix("00").startswith(c)), None)
    if not is_international and len(digits) == 11 and digits[:2] in ("07", "02", "01"):
        code = "44"
    if code:
        national = digits.removeprefix("00").removeprefix(code).lstrip("0") if is_international else digits.lstrip("0")
        ranges = _FICTION_PREFIXES[code]
        prefix = ranges.get(national[:1], ranges[""])
        if len(national) > len(prefix):
            return prefix + random.digits(len(national) - len(prefix))
    unchanged = 3 if is_international else 2
    return random.digits(max(4, min(len(digits) - unchanged, 9)))


def card(text: str, random: KeyedRandom) -> str:
    """Replace a card number by one of the same network and length, of an issuer that exists for tests only."""
    digits = only_digits(text)
    if len(digits) < _FEWEST_OF_CARD:
        return random.same_shape(text)
    issuer = _TEST_ISSUERS.get(card_network(digits) or "visa", "400000")
    return fill_digits(issuer + random.digits(len(digits) - len(issuer)), text)


def iban(text: str, random: KeyedRandom) -> str:
    """Replace an IBAN; the country stays, and the check digits are 00, which no account has."""
    compact = "".join(char for char in text if char.isalnum())
    if len(compact) < _FEWEST_OF_IBAN:
        return random.same_shape(text)
    return _fill(compact[:2] + "00" + random.same_shape(compact[4:]), text)


def ssn(text: str, random: KeyedRandom) -> str:
    """Replace a US social security number by one with area 9xx and a group below 50, which is never issued."""
    digits = only_digits(text)
    if len(digits) != 9:
        return random.same_shape(text)
    return fill_digits(f"9{random.digits(2)}{1 + random.below(49):02d}{random.digits(4)}", text)


def identifier(text: str, random: KeyedRandom) -> str:
    """Replace an identity number by one of the same shape."""
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", text):
        hexes = f"00005e0053{random.below(256):02x}"  # RFC 7042
        return _fill(hexes.upper() if any(c in "ABCDEF" for c in text) else hexes, text)
    return random.same_shape(text)


def network_address(text: str, random: KeyedRandom) -> str:
    """Replace an IP address by one for documentation: IPv4 of RFC 5737, IPv6 of RFC 3849."""
    try:
        version = ip_address(text).version
    except ValueError:
        return random.same_shape(text)
    if version == 4:
        return f"{random.choice(('192.0.2', '198.51.100', '203.0.113'))}.{1 + random.below(254)}"
    return f"2001:db8:{random.below(65_535):x}::{1 + random.below(65_534):x}"


def date(text: str, random: KeyedRandom) -> str:
    """Replace a date by another of the same format, up to three years away, day and month in the same order."""
    if (digits := _EIGHT_DIGITS.fullmatch(text)) is not None:
        return date("-".join(filter(None, digits.groups())), random).replace("-", "")

    def replace_number(found: re.Match[str]) -> str:
        number, suffix = found[1], found[2] or ""
        value = int(number)
        if len(number) == 4 or value > 31 or value == 0:
            surrogate = value + random.choice((-3, -2, -1, 1, 2, 3)) if value else 1
            return f"{max(0, surrogate) % 10 ** len(number):0{len(number)}d}" + suffix
        surrogate = 1 + random.below(12) if value <= 12 else 13 + random.below(16)
        ending = "" if not suffix else {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(surrogate, "th")
        return f"{surrogate:0{len(number)}d}"[-2:] + ending

    def replace_month(found: re.Match[str]) -> str:
        lower = found[0].casefold()
        matching = (ms for ms in _MONTHS_BY_LANGUAGE if len(lower) > 2 and any(m.startswith(lower) for m in ms))
        if (months := next(matching, None)) is None:
            return found[0]
        surrogate = random.choice(months)
        return match_case((surrogate if len(lower) > 3 else surrogate[:3]).capitalize(), found[0])

    return re.sub(r"[^\W\d_]+", replace_month, re.sub(r"(\d+)(st|nd|rd|th)?", replace_number, text))


def wallet(text: str, random: KeyedRandom) -> str:
    """Replace a crypto wallet; the prefix stays, the checksum is random, so that a payment to it must fail."""
    if text.startswith("0x"):
        return "0x" + "".join(random.choice("0123456789abcdef") for _ in text[2:])
    head = 3 if text.startswith("bc1") else 1
    alphabet = "023456789acdefghjklmnpqrstuvwxyz" if head == 3 else _BASE58
    return text[:head] + "".join(random.choice(alphabet) for _ in text[head:])


def _without_extension(text: str) -> str:
    return re.split(r",?\s?(?:x|ext)", text, maxsplit=1, flags=re.I)[0]


def _fill(surrogate: str, text: str) -> str:
    remaining = iter(surrogate)
    return "".join(next(remaining) if char.isalnum() else char for char in text)
