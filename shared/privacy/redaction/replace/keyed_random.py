"""Choices that follow from a key: the same key and the same words, the same choices, on every machine and any day."""

from __future__ import annotations

import hashlib
import hmac
import string
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Chance:
    """A stream of choices drawn from HMAC-SHA256 of what it is for. Without the key nobody can redo or undo them."""

    def __init__(self, key: bytes, *purpose: str) -> None:
        message = "\x1f".join(purpose).encode("utf-8", "surrogatepass")
        self._state = hmac.new(key, message, hashlib.sha256).digest()
        self._pool = int.from_bytes(self._state, "big")
        self._left = 1 << 256

    def below(self, limit: int) -> int:
        """0 to limit - 1."""
        if self._left < limit << 64:
            self._state = hashlib.sha256(self._state).digest()
            self._pool, self._left = int.from_bytes(self._state, "big"), 1 << 256
        self._pool, value = divmod(self._pool, limit)
        self._left //= limit
        return value

    def of(self, choices: Sequence[T]) -> T:
        """One of the choices."""
        return choices[self.below(len(choices))]

    def like(self, text: str) -> str:
        """A digit for each digit, a letter of the same case for each ASCII letter; every other sign stays."""
        return "".join(self._like(char) for char in text)

    def digits(self, count: int) -> str:
        """That many digits."""
        return f"{self.below(10**count):0{count}d}" if count else ""

    def _like(self, char: str) -> str:
        if char.isdigit():
            return str(self.below(10))
        if char.isalpha():
            return self.of(string.ascii_uppercase if char.isupper() else string.ascii_lowercase)
        return char


def pour(digits: str, shape: str) -> str:
    """The digits, from the right, in the places where `shape` has digits; its other places stay as they are.

    `digits` shorter than the digits of `shape`: the first of the shape stay.
    """
    left = list(digits)
    out = [left.pop() if char.isdigit() and left else char for char in reversed(shape)]
    return "".join(reversed(out))


def in_case_of(word: str, model: str) -> str:
    """The word in upper, lower or title case, as the model is."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.lower() if model.islower() else word
