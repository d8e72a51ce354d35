"""People are told in words why they are asked."""

from __future__ import annotations

from schemas.labels import Purpose
from services.console.pages.purposes import WORDS, open_questions


def test_every_purpose_has_words_of_its_own() -> None:
    assert set(WORDS) == set(Purpose) - {Purpose.IMPORT}, "nobody is asked about a row that came with its label"
    assert (
        len({words.plural for words in WORDS.values()}) == len({words.reason for words in WORDS.values()}) == len(WORDS)
    )


def test_questions_without_a_calibration_say_why_they_are_random() -> None:
    assert WORDS[Purpose.UNCALIBRATED].reason.startswith("No calibration yet")
    assert "random share" in WORDS[Purpose.UNCALIBRATED].reason
    assert WORDS[Purpose.AUDIT].reason.startswith("Random check")


def test_open_questions_are_counted_by_purpose() -> None:
    assert (
        open_questions({"audit": 12, "uncalibrated": 1_300, "feedback": 0})
        == "1,300 random questions, 12 random checks"
    )
