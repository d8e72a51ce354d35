"""Checksums of cards, IBANs and identity numbers."""

from __future__ import annotations

from collections.abc import Iterable

_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)

# Lengths of IBANs by country, from the IBAN registry (SWIFT, release 99).
_IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip


def only_digits(text: str) -> str:
    """Return the digits of a text, without everything else."""
    return "".join(char for char in text if char.isdigit())


def is_luhn_valid(digits: str) -> bool:
    """Return True if the last digit is the Luhn check digit of the others (ISO/IEC 7812-1)."""
    return sum(_DOUBLED[int(d)] if i % 2 else int(d) for i, d in enumerate(reversed(digits))) % 10 == 0


def card_network(digits: str) -> str | None:
    """Return a card number's network by its first digits and length; None if no card has such a number."""
    head, length = int(digits[:4]), len(digits)
    if digits[0] == "4" and length in (13, 16, 19):
        return "visa"
    if (5100 <= head <= 5599 or 2221 <= head <= 2720) and length == 16:
        return "mastercard"
    if digits[:2] in ("34", "37") and length == 15:
        return "amex"
    if (head == 6011 or digits[:2] in ("62", "64", "65") or digits[:2] == "60") and 16 <= length <= 19:
        return "discover"
    if 3528 <= head <= 3589 and 16 <= length <= 19:
        return "jcb"
    if digits[:2] in ("30", "36", "38", "39") and 14 <= length <= 19:
        return "diners"
    if digits[:2] in ("50", "56", "57", "58", "63", "67", "68", "69") and 12 <= length <= 19:
        return "maestro"
    return None


def iban_length(text: str) -> int | None:
    """Return how many letters and digits an IBAN of this country has; None if no country has the code."""
    return _IBAN_LENGTHS.get(text[:2].upper())


def is_iban_valid(text: str) -> bool:
    """Return True if an IBAN's check digits are right (ISO 7064 mod 97-10); blanks and dashes are ignored."""
    compact = "".join(char for char in text.upper() if char.isalnum())
    return int("".join(str(int(char, 36)) for char in compact[4:] + compact[:4])) % 97 == 1


def is_nhs_valid(digits: str) -> bool:
    """Return True if this is an NHS number: ten digits, the last of which is a check digit mod 11."""
    check = -sum(int(d) * w for d, w in zip(digits, range(10, 1, -1), strict=False)) % 11
    return len(digits) == 10 and check != 10 and check == int(digits[9])


def weighted_sum(digits: str, weights: Iterable[int]) -> int:
    """Return the sum of digits times weights, as far as the shorter of the two goes."""
    return sum(int(digit) * weight for digit, weight in zip(digits, weights, strict=False))


_DIHEDRAL = (
    "0123456789", "1234067895", "2340178956", "3401289567", "4012395678",
    "5987604321", "6598710432", "7659821043", "8765932104", "9876543210",
)  # fmt: skip
_PERMUTED = (
    "0123456789", "1576283094", "5803796142", "8916043527", "9453126870", "4286573901", "2793806415", "7046913258",
)  # fmt: skip


def is_verhoeff_valid(digits: str) -> bool:
    """Return True if the last digit is the Verhoeff check digit of the others."""
    check = 0
    for position, digit in enumerate(reversed(digits)):
        check = int(_DIHEDRAL[check][int(_PERMUTED[position % 8][int(digit)])])
    return check == 0
