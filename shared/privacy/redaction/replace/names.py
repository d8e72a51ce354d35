"""Made-up names of people, towns and streets, word by word, and what is built of them: e-mail and postal addresses."""

from __future__ import annotations

import re
from functools import lru_cache

from shared.privacy.redaction.data.gazetteer import names
from shared.privacy.redaction.replace.keyed_random import Chance, in_case_of

_WORD = re.compile(r"[^\W\d_]+(?:['’`][^\W\d_]+)*")
_PIECE = re.compile(r"\d+|[^\W\d_]+(?:['’`][^\W\d_]+)*")
_AT = re.compile(r"(\s?[@＠]\s?|%40|\s?[\[(]at[\])]\s?| at )", re.I)
_KEPT_IN_NAMES = frozenset(
    """
    de da di del della der den van von bin ibn bint du dos das do san ter ten zu y af av jr sr
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
_KEPT_IN_ADDRESSES = frozenset(
    """
    street st road rd avenue ave lane ln drive dr terrace parkway pkwy boulevard blvd court ct place pl square sq
    way close crescent highway hwy row mews gardens grove hill walk circle trail quay apt apartment flat unit suite
    ste room floor no block building bldg house at of the de la le les du des rue via viale piazza corso calle
    avenida plaza chemin impasse allée quai route cours straße strasse str weg gasse platz allee ring ulica ul rua p
    o po box n s e w ne nw se sw north south east west upon on sur am an der im del den bis ter new saint mount port
    fort
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
_STREET_ENDS = (
    "straße",
    "strasse",
    "str",
    "weg",
    "gasse",
    "platz",
    "allee",
    "ring",
    "damm",
    "straat",
    "laan",
    "gracht",
    "gatan",
    "vägen",
    "vej",
)
_ROLES = frozenset(
    """
    support info help helpdesk ops sales admin billing contact hello office service team noreply reply no mail
    bank escalations accounts accounting hr it jobs press marketing orders returns refunds news newsletter
    postmaster
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
_DOMAINS = ("example.com", "example.net", "example.org")
_HEADS = """
    Ash Beck Bir Bram Brook Cald Clar Cran Dal Dun Elm Fair Fern Glen Had Hart Hazel Kirk Lang Lin Mar Mel Nor Oak
    Pem Rad Sed Stan Thorn Wal Wen Whit
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
_TAILS = """
    bourne bridge bury by combe cott don field ford ham hurst leigh low mere minster mont more ridge sted stow ton
    wick wold worth
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
TOWNS = tuple(head + tail for head in _HEADS for tail in _TAILS)


class NamesMadeUp:
    def __init__(self, key: bytes) -> None:
        self._key = key
        self._names = names()
        self._word = lru_cache(50_000)(self._chosen)

    def person(self, text: str) -> str:
        """Word by word: particles stay, initials become initials, case stays."""
        made = _WORD.sub(lambda m: self._name_word(m[0]), text)
        return (
            made if made != text else _WORD.sub(lambda m: in_case_of(self._word("name", m[0].casefold()), m[0]), text)
        )

    def town(self, text: str) -> str:
        """One made-up town for the whole of it."""
        return in_case_of(self._word("town", " ".join(text.casefold().split())), text)

    def address(self, text: str) -> str:
        """Its words become made-up towns, but for the words that every address has; digits and postcodes keep form."""
        return _PIECE.sub(lambda m: self._address_word(text, m), text)

    def email(self, text: str) -> str:
        """The local part as its names are elsewhere; an example domain (RFC 2606)."""
        local, mark, domain = _AT.split(text, maxsplit=1)
        made = _PIECE.sub(lambda m: self._local_word(m[0]), local)
        at = Chance(self._key, "domain", domain.casefold()).below(3)
        if made == local and _DOMAINS[at] == domain.casefold():
            at = (at + 1) % 3
        return made + mark + _DOMAINS[at]

    def _name_word(self, word: str) -> str:
        low = word.casefold()
        if low in _KEPT_IN_NAMES:
            return word
        if len(word) == 1:
            return Chance(self._key, "initial", low).like(word)
        return in_case_of(self._word("name", low), word)

    def _local_word(self, word: str) -> str:
        low = word.casefold()
        if word.isdigit() or len(word) == 1:
            return Chance(self._key, "local", low).like(word)
        return word if low in _ROLES else in_case_of(self._word("name", low), word).replace("'", "")

    def _address_word(self, text: str, found: re.Match[str]) -> str:
        word, low = found[0], found[0].casefold()
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        if word.isdigit() or before.isdigit() or after.isdigit() or len(word) <= 2:
            if (
                low in _KEPT_IN_ADDRESSES
                or low in ("st", "nd", "rd", "th")
                or (word.isupper() and not (before + after).strip(" ,.\n"))
            ):
                return word  # A direction, a state, "Apt".
            return Chance(self._key, "address", low).like(word)
        if low in _KEPT_IN_ADDRESSES:
            return word
        end = next((e for e in _STREET_ENDS if low.endswith(e) and len(low) > len(e) + 2), "")
        return in_case_of(self._word("town", low.removesuffix(end)), word) + word[len(word) - len(end) :]

    def _chosen(self, kind: str, low: str) -> str:
        known = self._names
        if kind == "town":
            choices = TOWNS
        elif low in known.first:
            choices = known.female if low in known.female_known else known.male
        else:
            choices = known.family
        at = Chance(self._key, kind, low).below(len(choices))
        return choices[at] if choices[at].casefold() != low else choices[(at + 1) % len(choices)]
