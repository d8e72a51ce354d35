"""Planted near-copies of Banking77's questions, its own split, and texts of many scripts that must stay different."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from shared.model.near_copies import NearCopies, Question, group_near_copies, jaccard, shingles
from shared.model.texts import normalise, text_hash
from tests.benchmarks.builds import banking77

SIMILARITY = 0.8
DIFFERENT_TEXTS = Path(__file__).parent.parent / "unit" / "shared" / "different_texts.jsonl"
_PLANTED = 1_000
_MIN_CHARS = 50
"""Two per cent of fewer characters are less than one."""


def planted() -> dict[str, float]:
    """Return for each kind of change the share of changed questions that are in one group with their original."""
    texts = sorted({text for text, _ in banking77("train") if len(text) >= _MIN_CHARS})
    chosen = random.Random(20).sample(texts, _PLANTED)
    kinds: dict[str, Callable[[str, random.Random], str]] = {
        "2 % of characters changed": _change_characters,
        "two neighbouring characters swapped": _swap_characters,
        "casing changed": lambda text, chance: "".join(chance.choice((c.upper(), c.lower())) for c in text),
    }
    return {
        name: _grouped(chosen, [change(text, random.Random(text)) for text in chosen]) for name, change in kinds.items()
    }


def wrongly_equal() -> tuple[int, int]:
    """Return how many pairs of different texts of other scripts, and of code, count as equal, and of how many."""
    pairs = [json.loads(line)["texts"] for line in DIFFERENT_TEXTS.read_text("utf-8").splitlines()]
    return sum(text_hash(left) == text_hash(right) for left, right in pairs), len(pairs)


def merged_unequal() -> int:
    """Return how many of Banking77's texts have the hash of another one whose normalised text differs."""
    by_hash: dict[str, set[str]] = {}
    for text, _ in (*banking77("train"), *banking77("test")):
        by_hash.setdefault(text_hash(text), set()).add(normalise(text))
    return sum(len(texts) - 1 for texts in by_hash.values())


def across_the_split() -> list[tuple[float, str, str]]:
    """Return (Jaccard, test, train) of Banking77's test questions that are near-copies of training questions."""
    train, test = ([text for text, _ in banking77(part)] for part in ("train", "test"))
    index = NearCopies(SIMILARITY)
    of_number: dict[int, str] = {}
    for text in train:
        of_number.setdefault(index.add(Question(text)), text)
    found = ((text, next(index.near(Question(text)), None)) for text in test)
    pairs = [(text, of_number[number]) for text, number in found if number is not None]
    return sorted(((_similarity(left, right), left, right) for left, right in pairs), reverse=True)


def _grouped(originals: Sequence[str], copies: Sequence[str]) -> float:
    groups = group_near_copies([*originals, *copies], SIMILARITY)
    return sum(groups[n] == groups[n + len(originals)] for n in range(len(originals))) / len(originals)


def _change_characters(text: str, chance: random.Random) -> str:
    """Replace letters by others: digits and signs are what two questions may differ in."""
    letters = [at for at, character in enumerate(text) if character.isalpha()]
    changed = list(text)
    for at in chance.sample(letters, max(1, len(text) // 50)):
        changed[at] = chance.choice([c for c in "abcdefghijklmnopqrstuvwxyz" if c != text[at].lower()])
    return "".join(changed)


def _swap_characters(text: str, chance: random.Random) -> str:
    places = [at for at in range(len(text) - 1) if text[at : at + 2].isalpha() and text[at] != text[at + 1]]
    at = chance.choice(places)
    return text[:at] + text[at + 1] + text[at] + text[at + 2 :]


def _similarity(left: str, right: str) -> float:
    return round(jaccard(shingles(left), shingles(right)), 3)
