"""Changes a text so that its meaning stays. The same text and generator give the same change. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence, Set

from services.evaluator.adversarial.texts import DISTRACTORS, SMALL_TALK
from shared.grading.text import MARK, WORD

_TYPO_SHARE = 0.25
"""Of the words that may get a typo: about 4 % of the letters of English text."""
_MIN_LETTERS = 4
_WORD, _LETTER = re.compile(WORD), re.compile(rf"\w{MARK}*")
"""A letter has its combining marks with it."""


def with_typos(text: str, kept: Set[str], chance: random.Random) -> str:
    """Return the text with a typo in every fourth of its longer words, one at least. `kept`: words to leave alone."""
    spans = [match.span() for match in _WORD.finditer(text) if _may_change(match[0], kept)]
    count = min(len(spans), max(1, round(_TYPO_SHARE * len(spans))))
    for start, end in sorted(chance.sample(spans, count), reverse=True):
        text = text[:start] + _mistyped(text[start:end], chance) + text[end:]
    return text


def _may_change(word: str, kept: Set[str]) -> bool:
    letters: list[str] = _LETTER.findall(word)
    return (
        len(letters) >= _MIN_LETTERS and all(letter[0].isalpha() for letter in letters) and word.casefold() not in kept
    )


def _mistyped(word: str, chance: random.Random) -> str:
    """Return the word with one typo behind its first letter: people rarely mistype that one."""
    letters: list[str] = _LETTER.findall(word)
    at = chance.randrange(1, len(letters) - 1)
    letter, following = letters[at], letters[at + 1]
    before, behind = "".join(letters[:at]), "".join(letters[at + 1 :])
    kind = chance.choice(("swap", "double", "omit"))
    if kind == "double":
        return before + letter + letter + behind
    if kind == "omit" or letter == following:
        return before + behind
    return before + following + letter + "".join(letters[at + 2 :])


def with_other_casing(text: str, kept: Set[str], chance: random.Random) -> str:
    """Return the text in upper case, in lower case, or with capitalised words: in one of them that it is not in."""
    ways = chance.sample((str.upper, str.lower, str.capitalize), 3)
    return next((other for way in ways if (other := _cased(text, kept, way)) != text), text)


def _cased(text: str, kept: Set[str], way: Callable[[str], str]) -> str:
    return _WORD.sub(lambda match: match[0] if match[0].casefold() in kept else way(match[0]), text)


def with_distractor(text: str, chance: random.Random) -> str:
    """Return the text with a sentence before or behind it that has nothing to do with it."""
    sentence = chance.choice(DISTRACTORS)
    return f"{sentence} {text}" if chance.random() < 0.5 else f"{text}\n{sentence}"


def lengthened(text: str, characters: int, sentences: Sequence[str] = SMALL_TALK) -> str:
    """Return the text behind so much small talk that it has nearly `characters` characters; unchanged if it has them.

    All texts get the same beginning, whose prompt an engine with a prefix cache reads once.
    """
    room, filling = characters - len(text) - 2, ""
    for number in range(max(0, room)):
        sentence = sentences[number % len(sentences)] + " "
        if len(filling) + len(sentence) > room:
            break
        filling += sentence
    return f"{filling.strip()}\n\n{text}" if filling else text
