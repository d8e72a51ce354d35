"""Formats of national identity numbers: the pattern, and the checksum or date that makes a number valid."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from shared.privacy.redaction.data.checksums import is_luhn_valid, is_nhs_valid, is_verhoeff_valid, only_digits
from shared.privacy.redaction.data.national_checksums import (
    has_date,
    is_argentine,
    is_australian_medicare,
    is_belgian,
    is_brazilian,
    is_chilean,
    is_chinese,
    is_czech,
    is_finnish,
    is_french,
    is_german,
    is_irish,
    is_italian,
    is_norwegian,
    is_romanian,
    is_singaporean,
    is_south_african,
    is_spanish,
    is_swedish,
    is_swiss,
    is_thai,
    is_turkish,
)


class NumberFormat(NamedTuple):
    """The format of one kind of number."""

    pattern: re.Pattern[str]
    is_valid: Callable[[str], bool]


def _number_format(pattern: str, is_valid: Callable[[str], bool] = bool) -> NumberFormat:
    """`is_valid`: by default every text that matches the pattern."""
    return NumberFormat(re.compile(rf"(?<![\w.+-])(?<!\d[ ])(?:{pattern})(?![\w-])(?!\.\d| \d)"), is_valid)


_NIR = r"[12] \d{2} (?:0[1-9]|1[0-2]|[2-4]\d) (?:\d{2}|2[AB]) \d{3} \d{3} \d{2}"
_FISCALE = r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"
_CURP = r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d"
_LICENCE = r"[A-Z9]{5}\d[0156]\d[0-3]\d{2}[A-Z9]{2}[A-Z0-9]{3}"  # British driving licence.
_L, _N = "[AC-HJKMNP-RT-Y]", "[0-9AC-HJKMNP-RT-Y]"
_MBI = rf"[1-9]{_L}{_N}\d-{_L}{_N}\d-{_L}{{2}}\d{{2}}"  # US Medicare.
NUMBER_FORMATS = (
    _number_format(r"\d{2}\.\d{2}\.\d{2}[- ]\d{3}[.-]\d{2}", is_belgian),
    _number_format(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", is_finnish),
    _number_format(r"756(?:\.\d{4}\.\d{4}\.\d{2}| \d{4} \d{4} \d{2}|\d{10})", is_swiss),
    _number_format(rf"{_NIR}|{_NIR.replace(' ', '')}", is_french),
    _number_format(_NIR, bool),  # Mistyped: no other number has these blanks.
    _number_format(r"\d{6}[-+]\d{4}", is_swedish),
    _number_format(r"(?:19|20)\d{6}-\d{4}", is_swedish),
    _number_format(r"[0-3]\d{5} ?\d{5}", is_norwegian),
    _number_format(r"[1-9]\d \d{3} \d{3} \d{3}|[1-9]\d{10}", is_german),
    _number_format(r"\d{3}\.\d{3}\.\d{3}-\d{2}|[1-9]\d{10}", is_brazilian),
    _number_format(r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _number_format(r"[1-9]\d{9}[02468]", is_turkish),
    _number_format(r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]", is_chinese),
    _number_format(r"\d{6}-[1-8]\d{6}", lambda t: has_date(t, "ymd")),  # Korea.
    _number_format(r"\d{10}[01][89]\d", is_south_african),  # South Africa.
    _number_format(r"[1-8]\d{12}", is_romanian),
    _number_format(r"\d{6}/\d{4}", is_czech),
    _number_format(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]|\d{7,8}-[kK]", is_chilean),
    _number_format(r"\d{2}-\d{8}-\d", is_argentine),
    _number_format(r"\d-\d{4}-\d{5}-\d{2}-\d", is_thai),
    _number_format(r"\d{5}-\d{7}-\d"),  # Pakistan.
    _number_format(r"\d{6}-(?:0[1-9]|[1-5]\d)-\d{4}", lambda t: has_date(t, "ymd")),  # Malaysia.
    _number_format(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]"),  # National Insurance.
    _number_format(r"\d{3} \d{3} \d{4}", lambda t: is_nhs_valid(only_digits(t))),
    _number_format(r"[A-Z]{5}\d{4}[A-Z]"),  # India's PAN.
    _number_format(r"[2-9]\d{3} \d{4} \d{4}", lambda t: is_verhoeff_valid(only_digits(t))),  # Aadhaar.
    _number_format(_FISCALE, is_italian),
    _number_format(_FISCALE),
    _number_format(r"[XYZ]?\d{7,8}-?[TRWAGMYFPDXBNJZSQVHLCKE]", is_spanish),
    _number_format(_CURP, lambda t: has_date(t, "ymd")),
    _number_format(r"\d{7}[A-W][A-IW]?", is_irish),
    _number_format(r"[STFG]\d{7}[A-Z]", is_singaporean),
    _number_format(r"[A-Z]{1,2}\d{6}\([\dA]\)"),  # Hong Kong.
    _number_format(_LICENCE),
    _number_format(_MBI),
    _number_format(r"\d{3}[- ]\d{3}[- ]\d{3}", lambda t: is_luhn_valid(only_digits(t))),  # Canada's SIN.
    _number_format(r"[2-6]\d{3} \d{5} \d", is_australian_medicare),
)
