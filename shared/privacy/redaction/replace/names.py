"""Surrogates of the names of people, towns and streets, word by word, and of e-mail and postal addresses."""

from __future__ import annotations

import re
from functools import lru_cache

from shared.privacy.redaction.data.gazetteer import load_gazetteer
from shared.privacy.redaction.replace.keyed_random import KeyedRandom, match_case

_WORD = re.compile(r"[^\W\d_]+(?:['’`][^\W\d_]+)*")
_PIECE = re.compile(r"\d+|[^\W\d_]+(?:['’`][^\W\d_]+)*")
_AT = re.compile(r"(\s?[@＠]\s?|%40|&#0{0,4}64;|&#x0{0,4}40;|&commat;|\s?[\[(]at[\])]\s?| at )", re.I)
_UNCHANGED_IN_NAMES = frozenset(
    """
    de da di del della der den van von bin ibn bint du dos das do san ter ten zu y af av jr sr
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
_UNCHANGED_IN_ADDRESSES = frozenset(
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
_TOWN_BEGINNINGS = """
    Ash Beck Bir Bram Brook Cald Clar Cran Dal Dun Elm Fair Fern Glen Had Hart Hazel Kirk Lang Lin Mar Mel Nor Oak
    Pem Rad Sed Stan Thorn Wal Wen Whit
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
_TOWN_ENDINGS = """
    bourne bridge bury by combe cott don field ford ham hurst leigh low mere minster mont more ridge sted stow ton
    wick wold worth
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
_TOWNS = tuple(beginning + ending for beginning in _TOWN_BEGINNINGS for ending in _TOWN_ENDINGS)


class SurrogateNames:
    """Chooses surrogates of names; a word has the same surrogate wherever it occurs."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._gazetteer = load_gazetteer()
        self._surrogate = lru_cache(50_000)(self._choose)

    def person(self, text: str) -> str:
        """Replace a name word by word: particles stay, initials become initials, the case stays."""
        surrogate = _WORD.sub(lambda m: self._name_word(m[0]), text)
        if surrogate != text:
            return surrogate
        return _WORD.sub(lambda m: match_case(self._surrogate("name", m[0].casefold()), m[0]), text)

    def town(self, text: str) -> str:
        """Replace a town's whole name by one surrogate."""
        return match_case(self._surrogate("town", " ".join(text.casefold().split())), text)

    def address(self, text: str) -> str:
        """Replace words by surrogate towns, except those common in addresses; digits and postcodes keep their shape."""
        return _PIECE.sub(lambda m: self._address_word(text, m), text)

    def email(self, text: str) -> str:
        """Replace the names in the local part as elsewhere, and the domain by an example domain (RFC 2606)."""
        local, separator, domain = _AT.split(text, maxsplit=1) if _AT.search(text) else (text, "", "")
        surrogate = _PIECE.sub(lambda m: self._local_word(m[0]), local)
        index = KeyedRandom(self._key, "domain", domain.casefold()).below(3)
        if surrogate == local and _DOMAINS[index] == domain.casefold():
            index = (index + 1) % 3
        return surrogate + separator + _DOMAINS[index] if separator else surrogate  # What a heavier finding has left.

    def _name_word(self, word: str) -> str:
        lower = word.casefold()
        if lower in _UNCHANGED_IN_NAMES:
            return word
        if len(word) == 1:
            return KeyedRandom(self._key, "initial", lower).same_shape(word)
        return match_case(self._surrogate("name", lower), word)

    def _local_word(self, word: str) -> str:
        lower = word.casefold()
        if word.isdigit() or len(word) == 1:
            return KeyedRandom(self._key, "local", lower).same_shape(word)
        return word if lower in _ROLES else match_case(self._surrogate("name", lower), word).replace("'", "")

    def _address_word(self, text: str, found: re.Match[str]) -> str:
        word, lower = found[0], found[0].casefold()
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        if word.isdigit() or before.isdigit() or after.isdigit() or len(word) <= 2:
            if (
                lower in _UNCHANGED_IN_ADDRESSES
                or lower in ("st", "nd", "rd", "th")
                or (word.isupper() and not (before + after).strip(" ,.\n"))
            ):
                return word  # A direction, a state, "Apt".
            return KeyedRandom(self._key, "address", lower).same_shape(word)
        if lower in _UNCHANGED_IN_ADDRESSES:
            return word
        ending = next((e for e in _STREET_ENDS if lower.endswith(e) and len(lower) > len(e) + 2), "")
        return match_case(self._surrogate("town", lower.removesuffix(ending)), word) + word[len(word) - len(ending) :]

    def _choose(self, kind: str, lower: str) -> str:
        gazetteer = self._gazetteer
        if kind == "town":
            choices = _TOWNS
        elif lower in gazetteer.first_names:
            choices = gazetteer.female_surrogates if lower in gazetteer.only_female else gazetteer.male_surrogates
        else:
            choices = gazetteer.last_name_surrogates
        index = KeyedRandom(self._key, kind, lower).below(len(choices))
        return choices[index] if choices[index].casefold() != lower else choices[(index + 1) % len(choices)]
