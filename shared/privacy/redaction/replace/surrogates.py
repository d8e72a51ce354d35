"""Made-up data in the place of personal data: of the same shape, always the same for the same, and nobody's.

    person      another name, word by word: "Maria Gonzalez" and a later "Maria" stay one person; so does her e-mail
    phone       the number ranges that are kept for fiction where a country has them; country code and groups kept
    card        a test card number of the same network, valid by Luhn where the real one was
    iban        same country, valid check digits
    ip, email   the ranges and domains kept for documentation (RFC 5737, 3849, 7042, 2606)
    others      a digit for a digit, a letter for a letter; dates stay dates

The choice is keyed (HMAC-SHA256): without the key nobody can tell which name stands for whom by trying names. Two
people may share a made-up name, as people do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from shared.privacy.redaction.replace import numbers
from shared.privacy.redaction.replace.keyed_random import Chance
from shared.privacy.redaction.replace.names import NamesMadeUp

_CACHED = 50_000


class Surrogates:
    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"key: found {len(key)} bytes, expected at least 16")
        self._key = key
        self._names = NamesMadeUp(key)
        self._makers: dict[str, Callable[[str, Chance], str]] = {
            "phone": numbers.phone,
            "card": numbers.card,
            "iban": numbers.iban,
            "ssn": numbers.ssn,
            "id": numbers.identifier,
            "account": numbers.account,
            "ip": numbers.machine_address,
            "birth_date": numbers.date,
            "crypto": numbers.wallet,
        }
        self.of = lru_cache(_CACHED)(self._of)

    def _of(self, kind: str, text: str) -> str:
        """What stands for `text`, never `text` itself."""
        named = {"person": self._names.person, "town": self._names.town, "address": self._names.address}
        if kind in named:
            return named[kind](text)
        if kind == "email":
            return self._names.email(text)
        maker = self._makers.get(kind, numbers.shape)
        for attempt in range(100):
            made = maker(text, Chance(self._key, kind, numbers.canonical(kind, text), str(attempt)))
            if made != text:
                return made
        return "x" * len(text)  # Nothing in it can be another: no digit, no letter.
