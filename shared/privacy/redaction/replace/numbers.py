"""Made-up numbers of each kind. All take the text and a keyed chance, and keep the text's signs and blanks."""

from __future__ import annotations

import re
from ipaddress import ip_address

from shared.privacy.redaction.data import national_ids as national
from shared.privacy.redaction.data.checksums import (
    card_network,
    iban_digits,
    iban_valid,
    luhn_digit,
    luhn_valid,
    nhs_valid,
)
from shared.privacy.redaction.replace.keyed_random import Chance, in_case_of, pour

# Issuer numbers that payment providers hand out for tests, by network.
_TEST_ISSUERS = {
    "visa": "400000", "mastercard": "555555", "amex": "378282", "discover": "601111", "jcb": "353011",
    "diners": "305693", "maestro": "675964",
}  # fmt: skip
# National numbers that regulators keep for fiction (Ofcom, ARCEP, ACMA, Bundesnetzagentur): prefix by country code.
_FICTION = {
    "44": {"7": "7700900", "": "2079460"},
    "33": {"6": "63998", "7": "63998", "": "19900"},
    "61": {"4": "491570", "": "255501"},
    "49": {"1": "15228895", "": "3023125"},
}  # fmt: skip
_AREAS = """
    201 202 206 212 213 303 305 312 313 404 415 503 512 602 612 617 619 702 713 718 773 801 816 901 919
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
_MONTHS = tuple(
    tuple(year.split())
    for year in (
        "january february march april may june july august september october november december",
        "januar februar märz april mai juni juli august september oktober november dezember",
        "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
        "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
        "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
        "januari februari maart april mei juni juli augustus september oktober november december",
    )
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def canonical(kind: str, text: str) -> str:
    """What two spellings of the same number share."""
    if kind == "phone":
        return _digits(_main(text))[-9:]
    compact = "".join(char for char in text if char.isalnum()).casefold()
    return text.casefold() if kind == "ip" else compact or text


def shape(text: str, chance: Chance) -> str:
    """A digit for a digit, a letter for a letter."""
    return chance.like(text)


def phone(text: str, chance: Chance) -> str:
    """Country code and trunk zero stay; an extension gets other digits."""
    number = _main(text)
    digits = _digits(number)
    abroad = number.lstrip(" (").startswith(("+", "00"))
    if (len(digits) == 10 and digits[0] not in "01") or (len(digits) == 11 and digits[0] == "1"):
        made = chance.of(_AREAS) + "55501" + chance.digits(2)
    elif len(digits) == 7 and not abroad:
        made = "55501" + chance.digits(2)
    else:
        made = _national(digits, abroad, chance)
    return (
        pour(made, number) + chance.like(text[len(number) :]).replace("\x00", "")
        if len(number) < len(text)
        else pour(made, number)
    )


def _national(digits: str, abroad: bool, chance: Chance) -> str:
    """The last digits to pour in; what stands before them stays."""
    code = next((c for c in _FICTION if abroad and digits.removeprefix("00").startswith(c)), None)
    if not abroad and len(digits) == 11 and digits[:2] in ("07", "02", "01"):
        code = "44"
    if code:
        national = digits.removeprefix("00").removeprefix(code).lstrip("0") if abroad else digits.lstrip("0")
        ranges = _FICTION[code]
        prefix = ranges.get(national[:1], ranges[""])
        if len(national) > len(prefix):
            return prefix + chance.digits(len(national) - len(prefix))
    keep = 3 if abroad else 2
    return chance.digits(max(4, min(len(digits) - keep, 9)))


def card(text: str, chance: Chance) -> str:
    """A test card of the same network and length; Luhn holds if it held."""
    digits = _digits(text)
    issuer = _TEST_ISSUERS.get(card_network(digits) or "visa", "400000")
    body = issuer + chance.digits(len(digits) - len(issuer) - 1)
    check = luhn_digit(body)
    if not luhn_valid(digits):
        check = str((int(check) + 1 + chance.below(9)) % 10)
    return pour(body + check, text)


def iban(text: str, chance: Chance) -> str:
    """The country stays; the check digits hold if they held."""
    compact = "".join(char for char in text if char.isalnum())
    account = chance.like(compact[4:])
    check = iban_digits(compact[:2], account) if iban_valid(compact) else chance.digits(2)
    made = iter(compact[:2] + check + account)
    return "".join(next(made) if char.isalnum() else char for char in text)


def ssn(text: str, chance: Chance) -> str:
    """Area numbers from 900 were never given out, with groups below 50 not even as a tax number."""
    digits = _digits(text)
    if len(digits) != 9:
        return chance.like(text)
    return pour(f"9{chance.digits(2)}{1 + chance.below(49):02d}{chance.digits(4)}", text)


def identifier(text: str, chance: Chance) -> str:
    """Letters and digits in their places; the checksums that tell such a number hold again."""
    digits = _digits(text)
    if re.fullmatch(r"(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}", text):
        hexes = f"00005e0053{chance.below(256):02x}"  # RFC 7042
        return _letters(hexes.upper() if any(c in "ABCDEF" for c in text) else hexes, text)
    if len(digits) == 10 and nhs_valid(digits):  # 999 is kept for tests.
        for _ in range(50):
            body = "999" + chance.digits(6)
            made = next((body + c for c in "0123456789" if nhs_valid(body + c)), None)
            if made:
                return pour(made, text)
    if re.fullmatch(r"[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]", text):
        return "QQ" + pour(chance.digits(6), text[2:-1]) + chance.of("ABCD")  # QQ is never given out.
    if re.fullmatch(r"[XYZ]?\d{7,8}-?[A-Z]", text) and len(digits) + (text[0] in "XYZ") == 8:
        made = chance.digits(len(digits))
        number = int(str("XYZ".index(text[0])) + made if text[0] in "XYZ" else made)
        return pour(made, text[:-1]) + "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]
    if len(digits) == 9 and len(text) > 9 and luhn_valid(digits):  # No SIN begins with 0.
        body = "0" + chance.digits(7)
        return pour(body + luhn_digit(body), text)
    return national.made_up(text, chance) or chance.like(text)


def account(text: str, chance: Chance) -> str:
    """Digits for digits; a routing number's checksum (ABA) holds if it held."""
    digits = _digits(text)
    if len(digits) == 9 and _aba(digits) == 0:
        body = "0" + chance.digits(7)
        return pour(body + str(-_aba(body + "0") % 10), text)
    return chance.like(text)


def machine_address(text: str, chance: Chance) -> str:
    """IPv4 of RFC 5737, IPv6 of RFC 3849."""
    if ip_address(text).version == 4:
        return f"{chance.of(('192.0.2', '198.51.100', '203.0.113'))}.{1 + chance.below(254)}"
    return f"2001:db8:{chance.below(65_535):x}::{1 + chance.below(65_534):x}"


def date(text: str, chance: Chance) -> str:
    """Another day in the same form: up to three years away, day and month where they were."""

    def other(found: re.Match[str]) -> str:
        number, suffix = found[1], found[2] or ""
        value = int(number)
        if len(number) == 4 or value > 31 or value == 0:
            made = value + chance.of((-3, -2, -1, 1, 2, 3)) if value else 1
            return f"{max(0, made) % 10 ** len(number):0{len(number)}d}" + suffix
        made = 1 + chance.below(12) if value <= 12 else 13 + chance.below(16)
        ending = "" if not suffix else {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd"}.get(made, "th")
        return f"{made:0{len(number)}d}"[-2:] + ending

    def month(found: re.Match[str]) -> str:
        low = found[0].casefold()
        year = next((year for year in _MONTHS if len(low) > 2 and any(m.startswith(low) for m in year)), None)
        if year is None:
            return found[0]
        made = chance.of(year)
        return in_case_of((made if len(low) > 3 else made[:3]).capitalize(), found[0])

    return re.sub(r"[^\W\d_]+", month, re.sub(r"(\d+)(st|nd|rd|th)?", other, text))


def wallet(text: str, chance: Chance) -> str:
    """The prefix stays, the checksum is left to chance: a payment to it must fail."""
    if text.startswith("0x"):
        return "0x" + "".join(chance.of("0123456789abcdef") for _ in text[2:])
    head = 3 if text.startswith("bc1") else 1
    alphabet = "023456789acdefghjklmnpqrstuvwxyz" if head == 3 else _BASE58
    return text[:head] + "".join(chance.of(alphabet) for _ in text[head:])


def _digits(text: str) -> str:
    return "".join(char for char in text if char.isdigit())


def _main(text: str) -> str:
    """A phone number without its extension."""
    return re.split(r",?\s?(?:x|ext)", text, maxsplit=1, flags=re.I)[0]


def _letters(made: str, text: str) -> str:
    left = iter(made)
    return "".join(next(left) if char.isalnum() else char for char in text)


def _aba(digits: str) -> int:
    return sum(int(d) * w for d, w in zip(digits, (3, 7, 1) * 3, strict=True)) % 10
