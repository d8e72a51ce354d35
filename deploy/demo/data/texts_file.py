"""Reads a JSON lines file of texts with what should be written about each, and says what is wrong with it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from deploy.demo.data.csv_file import CsvData, DataRow
from deploy.demo.data.jsonl_file import read_lines
from shared.grading.json_values import read_json

MIN_ANSWER_CHARS = 20
"""Shorter answers of a generation are not trained on (`dataset.min_answer_chars`)."""
TEXTS_WAY_OUT = (
    "Give --data FILE.jsonl: your own texts, or SciTLDR's abstracts (github.com/allenai/scitldr, "
    "SciTLDR-Data/SciTLDR-A/train.jsonl)."
)
_FORM = (
    'Each line is {"text": "what was asked", "answer": "what should be answered"}, or as in SciTLDR {"source": '
    '["sentence", …], "target": ["summary", …]}, of which the first summary is taken.'
)


def read_texts(path: Path) -> CsvData:
    """Read the rows; a row's label is the text that people write. There are no labels to choose of.

    Drops and counts texts over 2,000 characters, answers under 20, and repeated texts. Raises DataError with the line
    and what to change.
    """
    dropped: Counter[str] = Counter()
    rows = []
    for row in read_lines(path, lambda line: _row(read_json(line)), _FORM, dropped):
        if len(row.label) < MIN_ANSWER_CHARS:
            dropped[f"answer under {MIN_ANSWER_CHARS} characters"] += 1
        else:
            rows.append(row)
    return CsvData(tuple(rows), (), dict(dropped))


def _row(value: Any) -> DataRow:
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    text, answer = value.get("text"), value.get("answer")
    if "source" in value and "target" in value:
        text, targets = _joined(value["source"]), value["target"]
        answer = targets[0] if isinstance(targets, list) and targets else targets
    if not isinstance(text, str) or not isinstance(answer, str):
        raise ValueError("expected `text` and `answer`, both texts")
    if not text.strip() or not answer.strip():
        raise ValueError("`text` or `answer` is empty")
    part = value.get("part")
    return DataRow(text.strip(), answer.strip(), part if isinstance(part, str) else "")


def _joined(source: Any) -> Any:
    if isinstance(source, list) and all(isinstance(sentence, str) for sentence in source):
        return " ".join(sentence.strip() for sentence in source)
    return source
