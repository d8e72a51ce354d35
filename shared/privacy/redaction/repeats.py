"""Numbers that are said again without the word that told what they are: "My account 55031877. Why is 55031877 closed?"

In a conversation the answer repeats them, and beside its surrogate a number in clear would even say whose it is. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from shared.privacy.redaction.spans import TextSpan

_KINDS = frozenset(("phone", "account", "id", "ssn", "card", "iban"))
_WORD = re.compile(r"(?<![\w.,-])[A-Za-z]{0,4}\d[A-Za-z0-9]{5,33}(?!\w|[.,-]\d)")
"""Six digits and letters at least: shorter numbers are many other things, too."""


def compact_number(kind: str, text: str) -> str | None:
    """Return a number as one word, as which it is looked for; None for what is too short, or no number."""
    compact = "".join(char for char in text if char.isalnum()) if kind in _KINDS else ""
    return compact if _WORD.fullmatch(compact) else None


def find_repeats(text: str, spans: Iterable[TextSpan]) -> Iterator[TextSpan]:
    """Yield where numbers of these spans may stand again; these themselves are among them."""
    kinds = {number: s.kind for s in spans if (number := compact_number(s.kind, text[s.start : s.end]))}
    if kinds:
        for found in _WORD.finditer(text):
            if (kind := kinds.get(found[0])) is not None:
                yield TextSpan(*found.span(), kind)


def replace_repeats(text: str, surrogates: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the text with numbers that other texts of its conversation have, and the surrogates that are in it now.

    `surrogates`: of each number, as one word too.
    """
    put: list[str] = []

    def other(found: re.Match[str]) -> str:
        if (surrogate := surrogates.get(found[0])) is None:
            return found[0]
        put.append(surrogate)
        return surrogate

    return _WORD.sub(other, text), put
