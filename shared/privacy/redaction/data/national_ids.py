"""Formats of national identity numbers: the pattern, and the checksum or date that makes a number valid."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from shared.privacy.redaction.data.checksums import is_luhn_valid, is_nhs_valid, is_verhoeff_valid, only_digits
from shared.privacy.redaction.data.national_checksums import (
    has_date,
    is_argentine,
    is_australian,
    is_australian_medicare,
    is_belgian,
    is_brazilian,
    is_chilean,
    is_chinese,
    is_czech,
    is_dutch,
    is_finnish,
    is_french,
    is_german,
    is_irish,
    is_italian,
    is_norwegian,
    is_polish,
    is_romanian,
    is_singaporean,
    is_south_african,
    is_spanish,
    is_swedish,
    is_swiss,
    is_thai,
    is_turkish,
)


@dataclass(frozen=True)
class NumberFormat:
    """The format of one kind of number, and what its surrogates must have.

    `check_characters`: how many at the end are check digits or letters. `birth_date`: where among the digits a date of
    birth starts, and its order. `fixed`: the range of characters that a surrogate copies.
    """

    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]
    check_characters: int = 0
    birth_date: tuple[int, str] | None = None
    fixed: tuple[int, int] = (0, 0)


def _number_format(
    pattern: str,
    is_valid: Callable[[str], bool] = bool,  # Every text that matches the pattern.
    check_characters: int = 0,
    birth_date: tuple[int, str] | None = None,
    fixed: tuple[int, int] = (0, 0),
) -> NumberFormat:
    whole = re.compile(rf"(?<![\w.+-])(?<!\d[ ])(?:{pattern})(?![\w-])(?!\.\d| \d)")
    return NumberFormat(whole, is_valid, check_characters, birth_date, fixed)


_NIR = r"[12] \d{2} (?:0[1-9]|1[0-2]|[2-4]\d) (?:\d{2}|2[AB]) \d{3} \d{3} \d{2}"
_FISCALE = r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"
_CURP = r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d"
_LICENCE = r"[A-Z9]{5}\d[0156]\d[0-3]\d{2}[A-Z9]{2}[A-Z0-9]{3}"  # British driving licence.
_L, _N = "[AC-HJKMNP-RT-Y]", "[0-9AC-HJKMNP-RT-Y]"
_MBI = rf"[1-9]{_L}{_N}\d-{_L}{_N}\d-{_L}{{2}}\d{{2}}"  # US Medicare.
NUMBER_FORMATS = (
    _number_format(r"\d{2}\.\d{2}\.\d{2}[- ]\d{3}[.-]\d{2}", is_belgian, 2, (0, "ymd")),
    _number_format(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", is_finnish, 1, (0, "dmy"), (6, 7)),
    _number_format(r"756(?:\.\d{4}\.\d{4}\.\d{2}| \d{4} \d{4} \d{2}|\d{10})", is_swiss, 1, None, (0, 3)),
    _number_format(rf"{_NIR}|{_NIR.replace(' ', '')}", is_french, 2, (1, "ym")),
    _number_format(_NIR, bool, 0, (1, "ym")),  # Mistyped: no other number has these blanks.
    _number_format(r"\d{6}[-+]\d{4}", is_swedish, 1, (0, "ymd"), (6, 7)),
    _number_format(r"(?:19|20)\d{6}-\d{4}", is_swedish, 1, (2, "ymd"), (0, 2)),
    _number_format(r"[0-3]\d{5} ?\d{5}", is_norwegian, 2, (0, "dmy")),
    _number_format(r"[1-9]\d \d{3} \d{3} \d{3}|[1-9]\d{10}", is_german, 1),
    _number_format(r"\d{3}\.\d{3}\.\d{3}-\d{2}|[1-9]\d{10}", is_brazilian, 2),
    _number_format(r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _number_format(r"[1-9]\d{9}[02468]", is_turkish, 2),
    _number_format(r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]", is_chinese, 1, (8, "ymd"), (6, 8)),
    _number_format(r"\d{6}-[1-8]\d{6}", lambda t: has_date(t, "ymd"), 0, (0, "ymd")),  # Korea.
    _number_format(r"\d{10}[01][89]\d", is_south_african, 1, (0, "ymd"), (10, 12)),  # South Africa.
    _number_format(r"[1-8]\d{12}", is_romanian, 1, (1, "ymd")),
    _number_format(r"\d{6}/\d{4}", is_czech, 1, (0, "ymd")),
    _number_format(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]|\d{7,8}-[kK]", is_chilean, 1),
    _number_format(r"\d{2}-\d{8}-\d", is_argentine, 1, None, (0, 2)),
    _number_format(r"\d-\d{4}-\d{5}-\d{2}-\d", is_thai, 1),
    _number_format(r"\d{5}-\d{7}-\d"),  # Pakistan.
    _number_format(r"\d{6}-(?:0[1-9]|[1-5]\d)-\d{4}", lambda t: has_date(t, "ymd"), 0, (0, "ymd")),  # Malaysia.
    _number_format(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]"),  # National Insurance.
    _number_format(r"\d{3} \d{3} \d{4}", lambda t: is_nhs_valid(only_digits(t)), 1),
    _number_format(r"[A-Z]{5}\d{4}[A-Z]"),  # India's PAN.
    _number_format(r"[2-9]\d{3} \d{4} \d{4}", lambda t: is_verhoeff_valid(only_digits(t)), 1),  # Aadhaar.
    _number_format(_FISCALE, is_italian, 1),
    _number_format(_FISCALE),
    _number_format(r"[XYZ]?\d{7,8}-?[TRWAGMYFPDXBNJZSQVHLCKE]", is_spanish, 1),
    _number_format(_CURP, lambda t: has_date(t, "ymd"), 0, (0, "ymd"), (10, 11)),
    _number_format(r"\d{7}[A-W][A-IW]?", is_irish),
    _number_format(r"[STFG]\d{7}[A-Z]", is_singaporean, 1, None, (0, 1)),
    _number_format(r"[A-Z]{1,2}\d{6}\([\dA]\)"),  # Hong Kong.
    _number_format(_LICENCE),
    _number_format(_MBI),
    _number_format(r"\d{3}[- ]\d{3}[- ]\d{3}", lambda t: is_luhn_valid(only_digits(t)), 1),  # Canada's SIN.
    _number_format(r"[2-6]\d{3} \d{5} \d", is_australian_medicare),
)
FORMATS_NEEDING_A_LABEL = (
    _number_format(r"\d{11}", is_polish, 1),
    _number_format(r"\d{9}", is_dutch, 1),
    _number_format(r"\d{3} ?\d{3} ?\d{3}", is_australian, 1),
    _number_format(r"\d{6}-?\d{4}", lambda t: has_date(t, "dmy"), 0, (0, "dmy")),  # Denmark.
)
"""Too many other numbers are valid in these: found only behind a label, which `detect.identifiers` looks for."""
