"""Surrogates: made-up data of the same shape as the original, and the same for every occurrence of it.

    person      another name, word by word: "Maria Gonzalez", a later "Maria" and her e-mail stay one person
    phone       a number reserved for fiction where the country has some; country code and groups stay
    card        a number of the same network whose issuer exists for tests only
    iban        the same country, with check digits that no account has
    ip, email   ranges and domains reserved for documentation (RFC 5737, 3849, 7042, 2606)
    others      a digit for a digit, a letter for a letter; dates stay dates

The choice is keyed (HMAC-SHA256): without the key nobody can find out by trying names which surrogate stands for whom.
Two people may share a surrogate, as people share names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from shared.privacy.redaction.replace import numbers
from shared.privacy.redaction.replace.keyed_random import KeyedRandom
from shared.privacy.redaction.replace.names import SurrogateNames

_MAX_CACHED = 50_000


class Surrogates:
    """Chooses surrogates; `of(kind, text)` returns the surrogate of a text, never the text itself."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"key: found {len(key)} bytes, expected at least 16")
        self._key = key
        names = SurrogateNames(key)
        self._name_surrogates: dict[str, Callable[[str], str]] = {
            "person": names.person,
            "town": names.town,
            "address": names.address,
            "email": names.email,
        }
        self._number_surrogates: dict[str, Callable[[str, KeyedRandom], str]] = {
            "phone": numbers.phone,
            "card": numbers.card,
            "iban": numbers.iban,
            "ssn": numbers.ssn,
            "id": numbers.identifier,
            "ip": numbers.network_address,
            "birth_date": numbers.date,
            "crypto": numbers.wallet,
        }
        self.of = lru_cache(_MAX_CACHED)(self._choose)

    def _choose(self, kind: str, text: str) -> str:
        replace_name = self._name_surrogates.get(kind)
        if replace_name is not None and (surrogate := replace_name(text)) != text:
            return surrogate
        replace_number = self._number_surrogates.get(kind, numbers.other)
        for attempt in range(100):
            surrogate = replace_number(text, KeyedRandom(self._key, kind, numbers.canonical(kind, text), str(attempt)))
            if surrogate != text:
                return surrogate
        return "x" * len(text)  # It has no digit and no letter that could be replaced.
