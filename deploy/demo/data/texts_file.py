"""Reads a JSON lines file of texts with what should be written about each, and says what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.demo.data.csv_file import CsvData
from deploy.demo.data.jsonl_file import read_lines

MIN_ANSWER_CHARS = 20
"""Shorter answers of a generation are not trained on (`dataset.min_answer_chars`)."""
TEXTS_WAY_OUT = "Give --data FILE.jsonl: your own texts."
_FORM = 'Each line is {"text": "what was asked", "answer": "what should be answered"}.'


def read_texts(path: Path) -> CsvData:
    """Read the rows; a row's label is the text that people write. There are no labels to choose of.

    Drops and counts texts over 2,000 characters, answers under 20, and repeated texts. Raises DataError with the line
    and what to change.
    """
    dropped: Counter[str] = Counter()
    rows = []
    for row in read_lines(path, _answer, _FORM, dropped):
        if len(row.label) < MIN_ANSWER_CHARS:
            dropped[f"answer under {MIN_ANSWER_CHARS} characters"] += 1
        else:
            rows.append(row)
    return CsvData(tuple(rows), (), dict(dropped))


def _answer(row: Mapping[str, Any]) -> str:
    if not isinstance(answer := row.get("answer"), str) or not answer.strip():
        raise ValueError("expected an `answer`, a text that is not empty")
    return answer.strip()
