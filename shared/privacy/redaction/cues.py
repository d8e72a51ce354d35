"""Names and numbers of free JSON. What a value is called says what it is: `phone` before ten digits. Pure."""

from __future__ import annotations

import re
from functools import lru_cache

_IDENTIFIER = re.compile(r"(?!.*\d(?:[_.:$-]*\d){6})[A-Za-z_][A-Za-z0-9_.:$-]{0,63}")
"""Seven digits, also in groups (`customer:123-45-6789`), may be somebody's."""
_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_.:$-]+")
_MAX_CUE = 64
_SMALL = 100_000


def is_identifier(name: str) -> bool:
    """Return True for a name that a program gave. Others are redacted, as values are."""
    return _IDENTIFIER.fullmatch(name) is not None


def cue_of(name: str) -> str:
    """Return what the redactor reads before a value of this name: `phoneNumber` and `phone_number` are two words."""
    return _cue(name[:_MAX_CUE])


@lru_cache(4_096)
def _cue(name: str) -> str:
    words = _WORD_ENDS.sub(" ", name).strip()
    return f"{words}: " if words else ""


def digits_of(number: float) -> str | None:
    """Return the text of a number that has enough digits to be somebody's phone number, card or account, else None."""
    if -_SMALL < number < _SMALL:
        return None
    return str(int(number)) if isinstance(number, int) or number.is_integer() else repr(number)
