"""Identity numbers of many countries that nothing else looks like: their form, and the checksum or date in them.

A number of plain digits is left alone behind a word like "order"; so is what does not hold. Numbers that hold too
easily (BSN, PESEL, TFN) need their name before them: `identifiers` looks for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from shared.privacy.redaction.data import national_checksums as checks
from shared.privacy.redaction.data.checksums import luhn_valid, nhs_valid, verhoeff_valid
from shared.privacy.redaction.replace.keyed_random import Chance
from shared.privacy.redaction.spans import TextSpan

_ORDERED = re.compile(
    r"(?:\b(?:orders?|bestell\w*|commande|pedido|ordine|ticket|case|ref(?:erence)?|invoice|rechnung\w*|facture|factura|"
    r"tracking|parcel|shipment|colis|booking|transaction|sku|serial|article|artikel\w*|item|product|model|batch|lot|part|"
    r"isbn|ean|upc|imei|build|job|request|error|timestamp)\b|#)[^\d\n]{0,24}$",
    re.I,
)
# Where one may begin: up to six letters, and four digits not far apart.
_STARTS = re.compile(r"(?<![\w.+-])(?<!\d )(?=[A-Z]{0,6} ?\d(?:[A-Z]{0,3}[ ./+-]?[A-Z]{0,2}\d){3})")


@dataclass(frozen=True)
class Form:
    """`born`: where among its digits a date of birth stands and its order; `check`: how many signs at the end check.

    `kept`: from which sign to which it is the same in every such number.
    """

    pattern: re.Pattern[str]
    holds: Callable[[str], bool]
    check: int = 0
    born: tuple[int, str] | None = None
    kept: tuple[int, int] = (0, 0)


def find_national(text: str) -> Iterator[TextSpan]:
    """Numbers of these forms that hold."""
    for start in _STARTS.finditer(text):
        for form in FORMS:
            found = form.pattern.match(text, start.start())
            if found is None or not form.holds(found[0]):
                continue
            if found[0].isdigit() and _ORDERED.search(text, max(0, found.start() - 40), found.start()):
                continue
            yield TextSpan(*found.span(), "id", 7)


def made_up(text: str, chance: Chance) -> str | None:
    """Another number of the same form that holds too; None: the text is of none of the forms."""
    form = next((f for f in (*FORMS, *_BY_NAME) if f.pattern.fullmatch(text) and f.holds(text)), None)
    if form is None:
        return None
    start, end = form.kept
    for _ in range(400):
        made = chance.like(text)
        made = made[:start] + text[start:end] + made[end:]
        if form.born:
            made = _with_birth(made, *form.born, chance)
        for candidate in _checked(made, form.check):
            if candidate != text and form.pattern.fullmatch(candidate) and form.holds(candidate):
                return candidate
    return None


def _with_birth(text: str, start: int, order: str, chance: Chance) -> str:
    parts = {"d": 1 + chance.below(28), "m": 1 + chance.below(12), "y": 50 + chance.below(45)}
    fill = iter("".join(f"{parts[letter]:02d}" for letter in order))
    places = [i for i, char in enumerate(text) if char.isdigit()][start : start + 2 * len(order)]
    made = list(text)
    for place in places:
        made[place] = next(fill)
    return "".join(made)


def _checked(text: str, count: int) -> Iterator[str]:
    """The text with every possible end: `count` digits or one letter."""
    places = [i for i, char in enumerate(text) if char.isalnum()][-count:] if count else []
    if len(places) == 1:
        ends: Iterator[str] = iter("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    else:
        ends = (f"{value:0{count}d}" for value in range(10**count)) if count else iter(("",))
    for end in ends:
        made = list(text)
        for place, sign in zip(places, end, strict=True):
            made[place] = sign
        yield "".join(made)


def _form(
    pattern: str,
    holds: Callable[[str], bool] = checks.anything,
    check: int = 0,
    born: tuple[int, str] | None = None,
    kept: tuple[int, int] = (0, 0),
) -> Form:
    whole = re.compile(rf"(?<![\w.+-])(?<!\d[ ])(?:{pattern})(?![\w-])(?!\.\d| \d)")
    return Form(whole, holds, check, born, kept)


_NIR = r"[12] \d{2} (?:0[1-9]|1[0-2]|[2-4]\d) (?:\d{2}|2[AB]) \d{3} \d{3} \d{2}"
_FISCALE = r"[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]"
_CURP = r"[A-Z]{4}\d{6}[HMX][A-Z]{5}[A-Z0-9]\d"
_LICENCE = r"[A-Z9]{5}\d[0156]\d[0-3]\d{2}[A-Z9]{2}[A-Z0-9]{3}"  # A British one, for driving.
_L, _N = "[AC-HJKMNP-RT-Y]", "[0-9AC-HJKMNP-RT-Y]"
_MBI = rf"[1-9]{_L}{_N}\d-{_L}{_N}\d-{_L}{{2}}\d{{2}}"  # US Medicare.
FORMS = (
    _form(
        r"\d{2}\.\d{2}\.\d{2}[- ]\d{3}[.-]\d{2}",
        checks.belgian,
        2,
        (0, "ymd"),
    ),
    _form(r"\d{6}[-+A-FU-Y]\d{3}[0-9A-FHJ-NPR-Y]", checks.finnish, 1, (0, "dmy"), (6, 7)),
    _form(r"756(?:\.\d{4}\.\d{4}\.\d{2}| \d{4} \d{4} \d{2}|\d{10})", checks.swiss, 1, None, (0, 3)),
    _form(rf"{_NIR}|{_NIR.replace(' ', '')}", checks.french, 2, (1, "ym")),
    _form(_NIR, checks.anything, 0, (1, "ym")),  # Mistyped: its blanks are nobody else's.
    _form(r"\d{6}[-+]\d{4}", checks.swedish, 1, (0, "ymd"), (6, 7)),
    _form(r"(?:19|20)\d{6}-\d{4}", checks.swedish, 1, (2, "ymd"), (0, 2)),
    _form(r"[0-3]\d{5} ?\d{5}", checks.norwegian, 2, (0, "dmy")),
    _form(r"[1-9]\d \d{3} \d{3} \d{3}|[1-9]\d{10}", checks.german, 1),
    _form(r"\d{3}\.\d{3}\.\d{3}-\d{2}|[1-9]\d{10}", checks.brazilian, 2),
    _form(r"\d{3}\.\d{3}\.\d{3}-\d{2}"),
    _form(r"[1-9]\d{9}[02468]", checks.turkish, 2),
    _form(r"[1-9]\d{5}(?:19|20)\d{9}[\dXx]", checks.chinese, 1, (8, "ymd"), (6, 8)),
    _form(r"\d{6}-[1-8]\d{6}", lambda t: checks.has_date(t, "ymd"), 0, (0, "ymd")),  # Korea.
    _form(r"\d{10}[01][89]\d", checks.south_african, 1, (0, "ymd"), (10, 12)),  # South Africa.
    _form(r"[1-8]\d{12}", checks.romanian, 1, (1, "ymd")),
    _form(r"\d{6}/\d{4}", checks.czech, 1, (0, "ymd")),
    _form(r"\d{1,2}\.\d{3}\.\d{3}-[\dkK]|\d{7,8}-[kK]", checks.chilean, 1),
    _form(r"\d{2}-\d{8}-\d", checks.argentine, 1, None, (0, 2)),
    _form(r"\d-\d{4}-\d{5}-\d{2}-\d", checks.thai, 1),
    _form(r"\d{5}-\d{7}-\d"),  # Pakistan.
    _form(r"\d{6}-(?:0[1-9]|[1-5]\d)-\d{4}", lambda t: checks.has_date(t, "ymd"), 0, (0, "ymd")),  # Malaysia.
    _form(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]"),  # National Insurance.
    _form(r"\d{3} \d{3} \d{4}", lambda t: nhs_valid(checks.digits(t)), 1),
    _form(r"[A-Z]{5}\d{4}[A-Z]"),  # India's PAN.
    _form(r"[2-9]\d{3} \d{4} \d{4}", lambda t: verhoeff_valid(checks.digits(t)), 1),  # Aadhaar.
    _form(_FISCALE, checks.italian, 1),
    _form(_FISCALE),
    _form(r"[XYZ]?\d{7,8}-?[TRWAGMYFPDXBNJZSQVHLCKE]", checks.spanish, 1),
    _form(_CURP, lambda t: checks.has_date(t, "ymd"), 0, (0, "ymd"), (10, 11)),
    _form(r"\d{7}[A-W][A-IW]?", checks.irish),
    _form(r"[STFG]\d{7}[A-Z]", checks.singaporean, 1, None, (0, 1)),
    _form(r"[A-Z]{1,2}\d{6}\([\dA]\)"),  # Hong Kong.
    _form(_LICENCE),
    _form(_MBI),
    _form(r"\d{3}[- ]\d{3}[- ]\d{3}", lambda t: luhn_valid(checks.digits(t)), 1),  # Canada's SIN.
    _form(r"[2-6]\d{3} \d{5} \d", checks.australian_medicare),
)
# Too easily met by any number to be found alone; what is made up in their place holds too.
_BY_NAME = (
    _form(r"\d{11}", checks.polish, 1),
    _form(r"\d{9}", checks.dutch, 1),
    _form(r"\d{3} ?\d{3} ?\d{3}", checks.australian, 1),
    _form(r"\d{6}-?\d{4}", lambda t: checks.has_date(t, "dmy"), 0, (0, "dmy")),  # Denmark.
)
