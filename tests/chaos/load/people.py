"""Forty invented people and the texts they write: the personal data that must not be stored in clear anywhere.

Their numbers are valid (Luhn, IBAN mod 97) and belong to nobody: telephone numbers of an unassigned exchange, cards
of the networks' test prefixes, IP addresses of RFC 2544, mail domains of RFC 2606. They are outside the ranges of a
redactor's surrogates (555-01xx, RFC 5737), which would look like leaks.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

_NAMES = (
    "Anna Schneider", "Robert Whitfield", "Maria Escobar", "James Ashworth", "Sophie Lambert", "David Caldwell",
    "Laura Benedetti", "Thomas Becker", "Emily Radcliffe", "Michael Thornbury", "Julia Hoffmann", "Daniel Prescott",
    "Sarah Kensington", "Peter Andersen", "Linda Fairbanks", "Paul Lefevre", "Karen Hollingsworth", "George Pemberton",
    "Nina Petersen", "Charles Winslow", "Olivia Marchetti", "Henry Blackwood", "Rachel Goldstein", "Martin Fischer",
    "Alice Montgomery", "Stephen Lockhart", "Hannah Weber", "Brian Gallagher", "Claire Dubois", "Kevin Sutherland",
    "Susan Abernathy", "Oliver Kaufmann", "Monica Alvarado", "Edward Harrington", "Teresa Romano", "Jonathan Whitaker",
    "Elena Morales", "Victor Lindqvist", "Barbara Eastwood", "Samuel Rosenthal",
)  # fmt: skip
"""Uncommon names: a surrogate could equal a common one and look like a leak."""

_TEMPLATES = {
    "name": "Hello, my name is {name} and my parcel has not arrived.",
    "email": "Please answer to {email}, I never got the invoice.",
    "phone": "You can call me at {phone} after six.",
    "card": "The amount was taken twice from my card {card}.",
    "iban": "Please send the refund to {iban}.",
    "ip": "Since yesterday I cannot log in from {ip}.",
    "ssn": "My social security number is {ssn}, is that what you need?",
    "both": "I am {name}, write to me at {email} please.",
}

_REQUESTS = (
    "where is my order", "I want my money back", "the box was damaged", "cannot log in", "wrong address",
    "cancel the order", "is the blue one in stock", "the discount did not work", "how long is the warranty",
    "the invoice is wrong", "the delivery is late", "the courier never came",
)  # fmt: skip
_ENDINGS = (
    "thanks", "please help", "since monday", "for the second time", "and nobody answers", "as agreed", "again",
    "what can I do", "any news", "it is urgent", "no hurry", "I am waiting",
)  # fmt: skip
_PRODUCTS = (
    "jacket", "lamp", "kettle", "desk", "bicycle", "camera", "printer", "phone case", "blanket", "tent", "chair",
    "keyboard", "mirror", "backpack", "coffee machine", "speaker", "monitor", "drill", "vacuum cleaner", "carpet",
)  # fmt: skip
PLACES = (
    "messages", "long messages", "parts", "prompts", "authors", "tool arguments", "tool results", "tool descriptions",
    "response formats", "parameters", "metadata",
)  # fmt: skip
"""The places of a request that get texts with personal data. Answers have them at every place of their own."""
_AUTHORS = ("customer", "agent", "second_agent", "back_office")


@dataclass(frozen=True)
class Person:
    """An invented person. `number` makes their data unique."""

    name: str
    number: int

    @property
    def author(self) -> str:
        """The name as the author's of a message, which has no spaces."""
        return self.name.replace(" ", "_")

    @property
    def email(self) -> str:
        return f"{self.name.lower().replace(' ', '.')}{self.number}@mail.example.com"

    @property
    def phone(self) -> str:
        return f"(646) 555-04{self.number:02d}"

    @cached_property
    def card(self) -> str:
        digits = _with_luhn(f"41111111{self.number * 7919 % 10_000_000:07d}")
        return " ".join(digits[i : i + 4] for i in range(0, 16, 4))

    @cached_property
    def iban(self) -> str:
        account = f"37040044{self.number * 104_729 % 10_000_000_000:010d}"
        check = 98 - int(account + "131400") % 97  # D and E are 13 and 14; the check digits count as 00.
        return f"DE{check:02d}{account}"

    @property
    def ip(self) -> str:
        return f"198.18.37.{self.number + 10}"

    @property
    def ssn(self) -> str:
        return f"{self.number + 512:03d}-{self.number % 80 + 11:02d}-{self.number * 37 % 9000 + 1000:04d}"

    @property
    def data(self) -> dict[str, str]:
        """The person's data, kind to value."""
        return {kind: getattr(self, kind) for kind in ("name", "email", "phone", "card", "iban", "ip", "ssn")}


PEOPLE = tuple(Person(name, number) for number, name in enumerate(_NAMES))


def personal_texts() -> list[str]:
    """Return every person's sentences."""
    return [template.format(**person.data) for person in PEOPLE for template in _TEMPLATES.values()]


def plain_texts() -> list[str]:
    """Return a few thousand different short texts without personal data."""
    return [f"{request} ({product}), {ending}" for request in _REQUESTS for product in _PRODUCTS for ending in _ENDINGS]


def long_text(rng: random.Random, characters: int, insert: str = "") -> str:
    """Return a text of at least so many characters, with `insert` in its middle.

    It repeats few sentences, because a redactor needs seconds for so many different ones.
    """
    sentences = rng.sample(plain_texts(), 30)
    paragraph = "\n".join(sentences)
    half = "\n".join([paragraph] * (characters // 2 // len(paragraph) + 1))
    return f"{half}\n{insert}\n{half}" if insert else f"{half}\n{half}"


def seeded_values() -> dict[str, list[str]]:
    """Return the values that a scan looks for, by kind. A card also without its spaces, a name also as an author's."""
    found: dict[str, list[str]] = {}
    for person in PEOPLE:
        for kind, value in person.data.items():
            found.setdefault(kind, []).append(value)
        found["card"].append(person.card.replace(" ", ""))
        found["name"].append(person.author)
    return found


class Texts:
    """Draws texts in a seeded order, a share of them with personal data, at each place the second one.

    `seeded`: how many, by place in a request.
    """

    def __init__(self, seed: int, personal_share: float) -> None:
        self._random = random.Random(seed)
        self._share = personal_share
        self._plain, self._personal = plain_texts(), personal_texts()
        self.seeded: Counter[str] = Counter()
        self._drawn: Counter[str] = Counter()

    def next(self, place: str) -> str:
        """Return the next text for this place."""
        if self._is_personal(place):
            return self._random.choice(self._personal)
        return self._random.choice(self._plain)

    def author(self) -> str:
        """Return a message's author: a role, or a person."""
        if self._is_personal("authors"):
            person = self._random.choice(PEOPLE)
            return self._random.choice((person.author, person.email))
        return self._random.choice(_AUTHORS)

    def _is_personal(self, place: str) -> bool:
        self._drawn[place] += 1
        if (self._share and self._drawn[place] == 2) or self._random.random() < self._share:
            self.seeded[place] += 1
            return True
        return False


def _with_luhn(digits: str) -> str:
    """Return the number with its check digit."""
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if position % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)
