"""Finds postal addresses: house number and street, with the flat before, and the town and postcode after."""

from __future__ import annotations

import re
from collections.abc import Iterator

from shared.privacy.redaction.data import language_model
from shared.privacy.redaction.spans import TextSpan

_TYPES = (
    r"street|str|st|road|rd|avenue|ave|av|lane|ln|drive|drv|dr|terrace|parkway|pkwy|boulevard|blvd|court|ct|place|pl|"
    r"square|sq|way|close|crescent|cres|highway|hwy|row|mews|gardens|grove|hill|walk|circle|cir|trail|trl|quay|wharf|"
    r"alley|plaza|loop|path|pass|ridge|rise|view|park|green|turnpike|expressway|route|bypass|causeway|esplanade|parade|"
    r"villas?|station|stravenue|mountains?|mount|valley|lodge|islands?|isle|inlet|knolls?|lakes?|harbors?|haven|heights|"
    r"hollow|junctions?|keys?|manors?|meadows?|mills?|mission|neck|orchard|oval|points?|port|prairie|ramp|ranch|rapids?|"
    r"rest|river|roads|run|shoals?|shores?|skyway|springs?|spurs?|squares|stream|summit|trace|track|trafficway|tunnel|"
    r"union|unions|village|ville|vista|well|wells|cove|corner|corners|creek|crossing|curve|dale|dam|divide|estates?|"
    r"cottages?|yard|barns?|farm|house|hall|buildings?|mansions|bungalows?|towers?|lofts?|maisonettes?|gate|common|chase|"
    r"extensions?|falls|ferry|fields?|flats?|fords?|forest|forges?|forks?|fort|freeway|garden|gateway|glens?|greens|groves"
)
_SURE_TYPES = (
    r"street|road|avenue|lane|drive|terrace|parkway|boulevard|crescent|highway|mews|gardens|grove|rd|ave|blvd|ln|st|dr|"
    r"ct|close|court"
)
_EVERYDAY_TYPES = frozenset(
    """
    gateway path pass key keys point points run summit loop stream union track rest port field fields fork forks trace
    route extension extensions tunnel
    """.split()  # noqa: SIM905 - a column of words reads better than a list of literals
)
"""Behind a number and a word these are seldom a street: "502 Bad Gateway", "5 Key Points", "a 7 Day Pass"."""
_HOME = re.compile(
    r"\b(?:address\w*|live[sd]?|living|resid\w+|deliver\w*|ship\w*|send|sent|post(?:ed)?|mov(?:e|ed|ing))\b"
    r"[^.!?\n\d]{0,24}$",
    re.I,
)
_UNIT = (
    r"(?:(?:apt|apartment|flat|unit|suite|ste|room|floor|no|block|building|bldg|house)\.?,? ?#?\w{1,6},? ?(?:,? ?at )?)"
)
# Fragments of the patterns below: a capitalised word, British and other postcodes, small words inside a town.
_CAP = r"[A-ZÀ-ÞİŁŚŠŻŽŞĆČĐŘŤŐŰ][^\W\d_]*(?:['’.-][^\W\d_]+)*\.?"
_UK = r"[A-Za-z]{1,2}\d[A-Za-z\d]? ?\d[A-Za-z]{2}"
_ZIP = r"\d{5}(?:-\d{4})?|\d{4} ?[A-Z]{2}|[A-Z]\d[A-Z] ?\d[A-Z]\d|\d{4}|\d{6}|\d{2}-\d{3}|\d{3} \d{2}|\d{3}-\d{4}"
_SMALL_WORDS = "of|the|upon|on|de|la|le|les|los|las|do|da|dos|di|du|aux|sur|am|an|der|im|del|den"
_TOWN = rf"(?:{_CAP}|{_SMALL_WORDS})(?:[ -](?:{_CAP}|{_SMALL_WORDS})(?!\w)){{0,3}}(?!\w)"
_STATE = r"[A-Z]{2}\b|[A-Z]{3}\b"
_FLOOR = (  # "3.º B", "2e étage", "1. OG links", "scala B int. 4"
    r"(?:\d{1,2}\.?[ºªo°](?:[ -]?[A-Z]|,? (?:izq|dcha|izda|Dto|Esq)\.?)?|\d{1,2}(?:er?|ème) étage|"
    r"\d{1,2}\. (?:OG|Stock|Etage)(?: links| rechts| mitte)?|(?:EG|DG|Hinterhaus|bajo|ático|escalera \w|bât\.? \w{1,3}|"
    r"appt\.? \w{1,4}|(?:scala|int\.?|piano) \w{1,3}(?:,? (?:scala|int\.?|piano) \w{1,3})?)(?: \w\b)?)"
)
_TAIL = (
    rf"(?:(?:,? ?\n? ?|\s)(?:(?:{_UK})(?!\w)|(?:{_STATE})?,? ?(?:{_ZIP})(?!\w)(?: {_TOWN})?|"
    rf"(?i:{_UNIT})(?=[,\n]|$)|(?<=[,\n] ){_FLOOR}(?=[,\n]|$)|"
    rf"(?<=[,\n] ){_TOWN}(?:,? (?:{_STATE}))?(?:,? (?:{_UK}|{_ZIP}|\d{{3}})(?!\w))?|"
    rf"(?<=\n){_TOWN}(?:,? (?:{_STATE}))?(?:,? (?:{_UK}|{_ZIP})(?!\w))?|"
    rf"(?<=\w ){_TOWN},? (?:(?:{_STATE}),? )?(?:{_UK}|{_ZIP})(?!\w))){{0,4}}"
)
_ENGLISH = re.compile(
    rf"(?<![\w.-])(?:(?i:{_UNIT}))?\d{{1,5}}(?:[A-Za-z]|[-/]\d{{1,4}}[A-Za-z]?)?,? (?:[NSEW]\.? |[NS][EW] )?"
    rf"(?:(?:{_CAP}|of|the|de|\d{{1,3}}(?:st|nd|rd|th))[ -]){{1,4}}(?P<type>(?i:{_TYPES}))\b"
    rf"\.?(?: [NSEW]{{1,2}}\b)?{_TAIL}"
)
_LOWER = re.compile(
    rf"(?<![\w.-])(?:{_UNIT})?\d{{1,5}}[a-z]? (?!(?:days?|weeks?|hours?|times?|minutes?|months?|years?|of|to|in|on|and|"
    rf"or|at)\b)"
    rf"(?:[a-z'’-]+ ){{1,3}}(?:{_SURE_TYPES})\b\.?(?:(?:,? [a-z]+){{1,3}},? (?:{_UK}|{_ZIP})(?!\w)| (?:{_UK})(?!\w))?",
    re.I,
)
_ROMANCE = re.compile(
    rf"(?<![\w.-])(?:(?i:{_UNIT}))?(?:\d{{1,4}}(?: ?(?:bis|ter|[A-Za-z]))?,? )?"
    rf"(?:(?i:rue|avenue|boulevard|place|chemin|allée|impasse|quai|route|cours|via|viale|piazza|corso|vicolo|largo|strada|"
    rf"calle|avenida|avda|paseo|plaza|carrer|c/|rua|travessa|praça|ulica|ul|al|os)\.?) "
    rf"(?:(?:de|du|des|de la|de l'|d'|del|della|dalla|dal|dei|degli|delle|la|le|los|las|san|santa|do|da|dos|na|nad|"
    rf"pod) ?){{0,2}}{_CAP}(?:[ -](?:{_CAP}|de|du|des|del|di|la)){{0,3}}"
    rf"(?:,? (?:n\.?[º°]? ?)?\d{{1,4}}(?:/\d{{1,3}})?[A-Za-z]?(?!\w))?{_TAIL}"
)
_GERMANIC = re.compile(
    rf"(?<![\w.-])(?:[A-ZÄÖÜ][\wäöüß-]*(?:straße|strasse|str\.|weg|gasse|platz|allee|ring|damm|ufer|steig|straat|laan|"
    rf"plein|gracht|kade|gatan|vägen|gata|vej|gade|veien|katu|tie)|(?:{_CAP} )?"
    rf"[A-ZÄÖÜ][\wäöüß-]+[ -](?:Straße|Str\.|Strasse|Weg|Allee|"
    rf"Platz|Ring|Gasse))"
    rf" \d{{1,4}} ?[a-zA-Z]?(?![\w])(?:-\d{{1,3}})?{_TAIL}"
)
_BOX = re.compile(r"\bP\.? ?O\.? ?Box \d{1,6}", re.I)
_POSTCODE = re.compile(
    r"(?<!\w)(?:GIR ?0AA|[A-PR-UWYZ](?:\d{1,2}|[A-HK-Y]\d|[A-HK-Y]\d\d|\d[A-HJKSTUW]|[A-HK-Y]\d[ABEHMNPRV-Y])) ?"
    r"\d[ABD-HJLNP-UW-Z]{2}(?!\w)"
)
_NUMBER_LAST = re.compile(
    rf"(?<![\w.-]){_CAP}(?:[ -](?:{_CAP}|\d{{1,2}}\.|de|la|del|der|den|van|von|di|da|dalla|zur?|na|nad|pod|út|utca|tér|"
    rf"enparantza|kalea)){{0,5}},? \d{{1,4}} ?[A-Za-z]?,? ?\n?"
    rf"(?<=[ ,\n])(?:[A-Z]{{1,2}}-)?(?:\d{{4,5}}(?: ?[A-Z]{{2}}(?!\w))?|\d{{2}}-\d{{3}}|\d{{3}} \d{{2}}) {_TOWN}"
)
_CITY_STATE_ZIP = re.compile(rf"(?<!\w){_CAP}(?: {_CAP}){{0,2}}, [A-Z]{{2}},? \d{{5}}(?:-\d{{4}})?(?!\w)")


_TURKISH = re.compile(
    rf"(?<!\w)(?:{_CAP} ){{1,4}}(?:Sokak|Sokağı|Sok\.|Sk\.|Caddesi|Cad\.|Cd\.|Mahallesi|Mah\.|Bulvarı|Blv\.)"
    rf"(?:,? {_CAP}){{0,4}},? (?:No|Numara)\.? ?:? ?\d{{1,4}}(?:/\d{{1,4}})?[A-Z]?"
    rf"(?:,? (?:Daire|D|Kat)\.? ?:? ?\d{{1,3}})*(?:,? (?:\d{{5}},? )?{_TOWN}(?:/{_TOWN})?)?"
)
# A named house or only a unit: capitalised parts with commas between them that end with a British postcode.
_NAMED_HOUSE = re.compile(
    rf"(?<![\w.-])(?:(?i:{_UNIT}))?{_CAP}(?: {_CAP}| (?:of|the|on|upon)){{0,4}}"
    rf"(?:,\s(?:\d{{1,4}}[A-Z]? )?{_CAP}(?:[ -](?:{_CAP}|of|the|on|upon)){{0,4}}){{1,4}},?\s(?:{_UK})(?!\w)"
)


def find_addresses(text: str) -> Iterator[TextSpan]:
    """Yield postal addresses, from house number to postcode."""
    if not any(char.isdigit() for char in text):
        return
    for pattern, weight in (
        (_ENGLISH, 6),
        (_GERMANIC, 6),
        (_ROMANCE, 6),
        (_LOWER, 5),
        (_NUMBER_LAST, 5),
        (_BOX, 6),
        (_CITY_STATE_ZIP, 5),
        (_TURKISH, 6),
        (_NAMED_HOUSE, 6),
        (_POSTCODE, 4),
    ):
        for found in pattern.finditer(text):
            if pattern is _ROMANCE and not any(char.isdigit() for char in found[0]):
                continue
            if pattern is _ENGLISH and _is_everyday(text, found):
                continue
            if pattern is _GERMANIC and _is_english(found[0].split()[0].casefold()):
                continue
            yield TextSpan(found.start(), found.start() + len(found[0].rstrip(" ,.\n")), "address", weight)


def _is_everyday(text: str, found: re.Match[str]) -> bool:
    """Return True for a number of everyday things: no town stands behind it, and nothing before it says "at home"."""
    return (
        found["type"].lower() in _EVERYDAY_TYPES
        and found.end("type") == found.end()
        and found[0][0].isdigit()
        and _HOME.search(text, max(0, found.start() - 48), found.start()) is None
    )


def _is_english(word: str) -> bool:
    """Return True for During or Engineering, which end like a German street ("Parkring 3")."""
    verbs_and_more, nouns = language_model.ordinary_words()
    stem = word.removesuffix("ing")
    spellings = (word, stem, stem + "e")
    return word in language_model.stop_words() or any(s in verbs_and_more or s in nouns for s in spellings)
