"""A changed text still says the same, is another text, and is the same one every time."""

from __future__ import annotations

import random
import re
import unicodedata

import pytest

from services.evaluator.adversarial.changes import (
    lengthened,
    with_distractor,
    with_other_casing,
    with_typos,
)
from services.evaluator.adversarial.texts import DISTRACTORS
from shared.grading.text import MARK, WORD

TEXT = "Where is my Parcel? It should have arrived yesterday, order 4711."


def chance(seed: int = 1) -> random.Random:
    return random.Random(seed)


@pytest.mark.parametrize("seed", range(20))
def test_typos_change_every_fourth_long_word_by_one_letter(seed: int) -> None:
    before, after = TEXT.split(), with_typos(TEXT, set(), chance(seed)).split()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2  # Of seven words of four letters and more.
    for a, b in changed:
        assert (a[0], a.rstrip("?.,")[-1] in b) == (b[0], True)
        assert abs(len(a) - len(b)) <= 1
    assert "4711." in after


def test_what_the_answer_quotes_keeps_its_letters() -> None:
    kept = {"parcel", "where", "should", "have", "arrived", "yesterday"}
    assert with_typos(TEXT, kept, chance()).replace("order", "") != TEXT
    assert all(word in with_typos(TEXT, kept, chance(s)) for s in range(9) for word in ("Parcel", "yesterday"))
    assert all("Parcel" in with_other_casing(TEXT, kept, chance(s)) for s in range(9))


def test_casing_changes_nothing_but_the_case_and_never_to_what_it_was() -> None:
    for seed in range(12):
        for text in (TEXT, TEXT.upper(), TEXT.lower()):
            changed = with_other_casing(text, set(), chance(seed))
            assert changed != text
            assert changed.casefold() == text.casefold()


def test_texts_without_words_or_case_stay_as_they_are() -> None:
    assert with_typos("12 34?", set(), chance()) == "12 34?"
    assert with_other_casing("山上的雪", set(), chance()) == "山上的雪"


def test_a_distractor_stands_before_or_behind_the_text() -> None:
    found = {with_distractor(TEXT, chance(seed)).startswith(TEXT) for seed in range(12)}
    assert found == {True, False}
    assert any(sentence in with_distractor(TEXT, chance()) for sentence in DISTRACTORS)


@pytest.mark.parametrize("characters", [300, 6_000])
def test_a_long_input_ends_with_the_text_and_is_nearly_as_long_as_wanted(characters: int) -> None:
    found = lengthened(TEXT, characters)
    assert found.endswith(f"\n\n{TEXT}")
    assert characters - 100 < len(found) <= characters
    assert lengthened(TEXT, characters)[:150] == lengthened("Another text of that length", characters)[:150]


def test_a_text_that_fills_the_context_is_not_lengthened() -> None:
    assert lengthened(TEXT, 50) == lengthened(TEXT, -1) == TEXT


HINDI = "मेरी डिलीवरी अभी तक क्यों नहीं पहुँची, कृपया बताइए"
FRENCH = unicodedata.normalize("NFD", "Où est la crème brûlée commandée à l’épicerie?")


def letters(text: str) -> list[str]:
    """Return the letters of a text, each with its combining marks."""
    return re.findall(rf"\w{MARK}*|\W", text)


@pytest.mark.parametrize("text", [HINDI, FRENCH])
def test_a_typo_and_another_case_take_no_mark_from_its_letter(text: str) -> None:
    for seed in range(20):
        changed = with_typos(text, set(), chance(seed))
        assert changed != text
        assert {letter for letter in letters(changed) if len(letter) > 1} <= set(letters(text))
        cased = with_other_casing(text, set(), chance(seed))
        assert cased.casefold() == text.casefold()
        assert all(word[1:] in (word[1:].lower(), word[1:].upper()) for word in cased.replace("’", " ").split())


def test_a_quoted_word_with_marks_keeps_its_letters() -> None:
    kept = {word.casefold() for word in re.findall(WORD, HINDI)} - {"डिलीवरी"}
    assert with_typos(HINDI, kept, chance()) != HINDI
    assert all(with_typos(HINDI, kept, chance(seed)).startswith("मेरी ") for seed in range(9))
    assert all(with_typos(HINDI, kept, chance(seed)).endswith(" कृपया बताइए") for seed in range(9))
