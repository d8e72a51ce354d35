"""Answers of which people prefer one, from a version's preferences.jsonl, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.conversation import Message, Role
from schemas.datasets import PREFERENCES, Example, PreferredAnswer
from services.trainer.domain import TrainingRow
from services.trainer.rows import tokenize

_GOOD = {"a": (True, False), "b": (False, True), "both_right": (True, True), "both_wrong": (False, False)}


@dataclass(frozen=True)
class ComparedRows:
    """Two answers to one prompt, and whether each is good. If only one is, that one is preferred."""

    rows: tuple[TrainingRow, TrainingRow]
    good: tuple[bool, bool]

    @property
    def chosen(self) -> TrainingRow | None:
        """The preferred one; None: neither is."""
        return self.rows[self.good.index(True)] if self.good[0] != self.good[1] else None

    @property
    def rejected(self) -> TrainingRow:
        return self.rows[self.good.index(False)]

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.rows[0].tokens[: self.rows[0].start]


def read_pairs(dataset: Path) -> list[PreferredAnswer]:
    """The pairs of a version that may be trained on: none of one without such a file."""
    path = dataset / PREFERENCES
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        pairs = [PreferredAnswer.model_validate_json(line) for line in file]
    return [pair for pair in pairs if not pair.held_out and pair.preferred in _GOOD]


def tokenize_pairs(pairs: Sequence[PreferredAnswer], tokenizer: Any, max_length: int) -> list[ComparedRows]:
    """The pairs as tokens, without those that are too long or that the chat template refuses."""
    compared = []
    for pair in pairs:
        rows = [row for row in (tokenize(example, tokenizer) for example in _examples(pair)) if row is not None]
        if len(rows) == 2 and max(len(row.tokens) for row in rows) <= max_length:
            compared.append(ComparedRows((rows[0], rows[1]), _GOOD[pair.preferred]))
    return compared


def _examples(pair: PreferredAnswer) -> list[Example]:
    answers = (
        Message(role=Role.ASSISTANT, content=answer.text or None, tool_calls=answer.tool_calls)
        for answer in pair.answers
    )
    return [
        Example(
            example_id=pair.correction_ids[0],
            messages=(*pair.prompt, answer),
            tools=pair.tools,
            group=pair.correction_ids[0],
            prediction_ids=pair.prediction_ids,
            correction_ids=pair.correction_ids,
        )
        for answer in answers
    ]
