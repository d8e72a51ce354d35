"""Says in words why people are asked. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from schemas.labels import Purpose


class Words(NamedTuple):
    """A purpose's name beside a number, and the sentence beside a question."""

    plural: str
    reason: str


WORDS: Mapping[Purpose, Words] = {
    Purpose.LOW_CONFIDENCE: Words("doubtful answers", "The model was unsure of its answer."),
    Purpose.FEEDBACK: Words("complaints", "A user said that the answer was wrong."),
    Purpose.DISCORDANT_PAIR: Words("pairs", "Two models answered differently."),
    Purpose.TIE_BREAK: Words("disagreements", "People disagree about this one: yours is one more opinion."),
    Purpose.AUDIT: Words("random checks", "Random check of a share of all answers, however sure the model was."),
    Purpose.UNCALIBRATED: Words(
        "random questions",
        "No calibration yet: the model's confidence means nothing, so a random share is asked about.",
    ),
    Purpose.SUSPICIOUS_LABEL: Words(
        "suspicious labels", "Asked again: the label that it has is unlike those of similar texts."
    ),
}


def open_questions(by_purpose: Mapping[str, int]) -> str:
    """Return how many questions are open for which purpose, the most first."""
    counts = sorted(by_purpose.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {WORDS[Purpose(purpose)].plural}" for purpose, count in counts if count)
