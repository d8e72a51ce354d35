"""Random choices determined by a key: the same key and purpose give the same choices on every machine."""

from __future__ import annotations

import hashlib
import hmac
import string
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class KeyedRandom:
    """A stream of choices drawn from HMAC-SHA256 of its purpose; without the key nobody can reproduce or reverse it."""

    def __init__(self, key: bytes, *purpose: str) -> None:
        message = "\x1f".join(purpose).encode("utf-8", "surrogatepass")
        self._state = hmac.new(key, message, hashlib.sha256).digest()
        self._entropy = int.from_bytes(self._state, "big")
        self._entropy_limit = 1 << 256

    def below(self, limit: int) -> int:
        """Return a number from 0 to limit - 1."""
        if self._entropy_limit < limit << 64:
            self._state = hashlib.sha256(self._state).digest()
            self._entropy, self._entropy_limit = int.from_bytes(self._state, "big"), 1 << 256
        self._entropy, value = divmod(self._entropy, limit)
        self._entropy_limit //= limit
        return value

    def choice(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        return choices[self.below(len(choices))]

    def same_shape(self, text: str) -> str:
        """Return the text with other digits and other letters of the same case; all other characters stay."""
        return "".join(self._same_shape(char) for char in text)

    def digits(self, count: int) -> str:
        """Return a string of `count` digits."""
        return f"{self.below(10**count):0{count}d}" if count else ""

    def _same_shape(self, char: str) -> str:
        if char.isdigit():
            return str(self.below(10))
        if char.isalpha():
            return self.choice(string.ascii_uppercase if char.isupper() else string.ascii_lowercase)
        return char


def fill_digits(digits: str, shape: str) -> str:
    """Replace the digits in `shape` by `digits`, from the right; where these are fewer, the first in `shape` stay."""
    remaining = list(digits)
    filled = [remaining.pop() if char.isdigit() and remaining else char for char in reversed(shape)]
    return "".join(reversed(filled))


def match_case(word: str, original: str) -> str:
    """Return the word in the case of the original: upper, lower or as it is."""
    if original.isupper() and len(original) > 1:
        return word.upper()
    return word.lower() if original.islower() else word
