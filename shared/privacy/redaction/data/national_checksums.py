"""Validate identity numbers by country: by the checksum, or by the date of birth in the number.

Each function takes a text that matches its pattern in `national_ids`, separators included, and returns True if the
number is valid. Sources: the authorities' own descriptions, as python-stdnum collects them.
"""

from __future__ import annotations

from shared.privacy.redaction.data.checksums import is_luhn_valid, only_digits, weighted_sum

_SPANISH, _FINNISH, _IRISH = "TRWAGMYFPDXBNJZSQVHLCKE", "0123456789ABCDEFHJKLMNPRSTUVWXY", "WABCDEFGHIJKLMNOPQRSTUV"


def has_date(text: str, order: str, start: int = 0) -> bool:
    """Return True if the digits from `start` on are a date; `order`: of day, month and year, two digits each."""
    date = {letter: int(only_digits(text)[start + 2 * i : start + 2 * i + 2]) for i, letter in enumerate(order)}
    return 1 <= date["m"] <= 12 and 1 <= date.get("d", 1) <= 31


def is_belgian(text: str) -> bool:
    number = only_digits(text)
    checks = (97 - int(century + number[:9]) % 97 for century in ("", "2"))
    return has_date(text, "ymd") and int(number[9:]) in checks


def is_south_african(text: str) -> bool:
    return has_date(text, "ymd") and is_luhn_valid(text)


def is_finnish(text: str) -> bool:
    return has_date(text, "dmy") and _FINNISH[int(text[:6] + text[7:10]) % 31] == text[10]


def is_swiss(text: str) -> bool:
    number = only_digits(text)
    return (sum(int(d) * (3 if i % 2 else 1) for i, d in enumerate(number)) % 10) == 0


def is_french(text: str) -> bool:
    """Return True for a valid NIR; Corsica's 2A and 2B count as 19 and 18."""
    compact = "".join(text.split()).replace("2A", "19").replace("2B", "18")
    return 97 - int(compact[:13]) % 97 == int(compact[13:])


def is_italian(text: str) -> bool:
    odd = "BAKPLCQDREVOSFTGUHMINJWZYX"  # Each letter stands at the index of its value at odd positions.
    total = 0
    for position, char in enumerate(text[:15]):
        value = int(char) if char.isdigit() else ord(char) - 65
        total += value if position % 2 else odd.index(chr(65 + value))
    return chr(65 + total % 26) == text[15]


def is_swedish(text: str) -> bool:
    number = only_digits(text)[-10:]
    return has_date(number, "ymd") and is_luhn_valid(number)


def is_norwegian(text: str) -> bool:
    number = only_digits(text)
    first = weighted_sum(number, (3, 7, 6, 1, 8, 9, 4, 5, 2, 1)) % 11
    return has_date(number, "dmy") and first == 0 and weighted_sum(number, (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def is_german(text: str) -> bool:
    """Check ISO 7064 mod 11,10; of the first ten digits exactly one occurs two or three times."""
    number = only_digits(text)
    if len(set(number[:10])) not in (8, 9) or max(number[:10].count(d) for d in "0123456789") > 3:
        return False
    remainder = 10
    for digit in number[:10]:
        remainder = ((int(digit) + remainder) % 10 or 10) * 2 % 11
    return (11 - remainder) % 10 == int(number[10])


def is_brazilian(text: str) -> bool:
    number = only_digits(text)
    if len(set(number)) == 1:
        return False
    checks = ((sum(int(d) * w for d, w in zip(number, range(n, 1, -1), strict=False)) * 10) % 11 % 10 for n in (10, 11))
    return "".join(map(str, checks)) == number[9:]


def is_turkish(text: str) -> bool:
    n = [int(d) for d in text]
    return (7 * sum(n[0:9:2]) - sum(n[1:8:2])) % 10 == n[9] and sum(n[:10]) % 10 == n[10]


def is_chinese(text: str) -> bool:
    total = weighted_sum(text[:17], (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2))
    return has_date(text, "ymd", 8) and "10X98765432"[total % 11] == text[17].upper()


def is_chilean(text: str) -> bool:
    body, check = only_digits(text[:-1]), text[-1].upper()
    total = sum(int(d) * (2 + i % 6) for i, d in enumerate(reversed(body)))
    return "0123456789K0"[11 - total % 11] == check


def is_spanish(text: str) -> bool:
    compact = text.replace("-", "")
    body = compact[:-1].translate(str.maketrans("XYZ", "012"))
    return len(body) == 8 and _SPANISH[int(body) % 23] == compact[-1]


def is_irish(text: str) -> bool:
    total = weighted_sum(text[:7], (8, 7, 6, 5, 4, 3, 2))
    if len(text) == 9 and text[8] != "W":
        total += 9 * (ord(text[8]) - 64)
    return _IRISH[total % 23] == text[7]


def is_singaporean(text: str) -> bool:
    total = weighted_sum(text[1:8], (2, 7, 6, 5, 4, 3, 2)) + (4 if text[0] in "TG" else 0)
    letters = "JZIHGFEDCBA" if text[0] in "ST" else "XWUTRQPNMLK"
    return letters[total % 11] == text[8]


def is_czech(text: str) -> bool:
    number = only_digits(text)
    month = int(number[2:4]) % 50 % 20
    return 1 <= month <= 12 and 1 <= int(number[4:6]) <= 31 and int(number) % 11 == 0


def is_romanian(text: str) -> bool:
    check = weighted_sum(text, (2, 7, 9, 1, 4, 6, 3, 5, 8, 2, 7, 9)) % 11
    return has_date(text, "ymd", 1) and check % 10 == int(text[12])


def is_thai(text: str) -> bool:
    number = only_digits(text)
    return (11 - weighted_sum(number, range(13, 1, -1)) % 11) % 10 == int(number[12])


def is_argentine(text: str) -> bool:
    return weighted_sum(only_digits(text), (5, 4, 3, 2, 7, 6, 5, 4, 3, 2, 1)) % 11 == 0


def is_australian_medicare(text: str) -> bool:
    number = only_digits(text)
    return weighted_sum(number[:8], (1, 3, 7, 9, 1, 3, 7, 9)) % 10 == int(number[8])
