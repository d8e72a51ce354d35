"""A changed text still says the same, is another text, and is the same one every time."""

from __future__ import annotations

import random

import pytest

from services.evaluator.adversarial.changes import (
    NEIGHBOURS,
    lengthened,
    with_distractor,
    with_other_casing,
    with_typos,
)
from services.evaluator.adversarial.texts import DISTRACTORS

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


def test_a_typo_hits_a_key_beside_the_right_one() -> None:
    assert set(NEIGHBOURS["g"]) == set("fhtyvb")
    assert all(key in NEIGHBOURS[near] for key, beside in NEIGHBOURS.items() for near in beside)


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
