"""Surrogates of national identity numbers: same format, and valid where the original was."""

from __future__ import annotations

from collections.abc import Iterator

from shared.privacy.redaction.data.national_ids import FORMATS_NEEDING_A_LABEL, NUMBER_FORMATS
from shared.privacy.redaction.replace.keyed_random import KeyedRandom

_ATTEMPTS = 400


def surrogate_national_id(text: str, random: KeyedRandom) -> str | None:
    """Return another valid number of the same format; None if the text has none of the formats."""
    formats = (*NUMBER_FORMATS, *FORMATS_NEEDING_A_LABEL)
    number_format = next((f for f in formats if f.pattern.fullmatch(text) and f.is_valid(text)), None)
    if number_format is None:
        return None
    start, end = number_format.fixed
    for _ in range(_ATTEMPTS):
        surrogate = random.same_shape(text)
        surrogate = surrogate[:start] + text[start:end] + surrogate[end:]
        if number_format.birth_date:
            surrogate = _with_birth_date(surrogate, *number_format.birth_date, random)
        for candidate in _with_check_characters(surrogate, number_format.check_characters):
            if candidate != text and number_format.pattern.fullmatch(candidate) and number_format.is_valid(candidate):
                return candidate
    return None


def _with_birth_date(text: str, start: int, order: str, random: KeyedRandom) -> str:
    parts = {"d": 1 + random.below(28), "m": 1 + random.below(12), "y": 50 + random.below(45)}
    digits = "".join(f"{parts[letter]:02d}" for letter in order)
    positions = [i for i, char in enumerate(text) if char.isdigit()][start : start + len(digits)]
    return _with_characters(text, positions, digits)


def _with_check_characters(text: str, count: int) -> Iterator[str]:
    """Yield the text with every possible end: `count` digits, or one digit or letter."""
    positions = [i for i, char in enumerate(text) if char.isalnum()][-count:] if count else []
    if len(positions) == 1:
        ends: Iterator[str] = iter("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    else:
        ends = (f"{value:0{count}d}" for value in range(10**count)) if count else iter(("",))
    for end in ends:
        yield _with_characters(text, positions, end)


def _with_characters(text: str, positions: list[int], characters: str) -> str:
    replaced = list(text)
    for position, character in zip(positions, characters, strict=True):
        replaced[position] = character
    return "".join(replaced)
