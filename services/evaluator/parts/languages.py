"""The language of each question (py3langid), so that a loss in one of them shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from services.evaluator.domain import Question

MIN_ROWS = 10
MIN_PROBABILITY = 0.5
"""Short texts of many names and numbers are guessed at: a guess below this is of no language."""
_MAX_CHARACTERS = 2_000


def with_languages(questions: Sequence[Question]) -> list[Question]:
    """Return the questions with a slice for their language: of each that at least `MIN_ROWS` questions have.

    Without a second language there are none, since such a part would be the whole. Languages by their ISO 639 codes.
    """
    languages = [_language(question.text) for question in questions]
    common = {language for language, rows in Counter(languages).items() if language and rows >= MIN_ROWS}
    if len(common) < 2:
        return list(questions)
    return [
        replace(question, slices=(*question.slices, f"language {language}")) if language in common else question
        for question, language in zip(questions, languages, strict=True)
    ]


def _language(text: str) -> str:
    """Return the language of a text; empty where it cannot be told."""
    if not text.strip():
        return ""
    code, probability = _identifier().classify(text[:_MAX_CHARACTERS])
    return str(code) if probability >= MIN_PROBABILITY else ""


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
