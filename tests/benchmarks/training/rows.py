"""Rows of the training benchmarks: Banking77's ten most frequent intents, and SciTLDR's abstracts with summaries."""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from schemas.conversation import Message, Role
from schemas.datasets import Example

_DATA = Path(__file__).parents[4] / "shared" / "data"
BANKING77 = Path(os.environ.get("RATCHET_BANKING77", _DATA / "banking77"))
PROMPT = "Classify the customer's message. Answer with one label."
SUMMARISE = "Summarise the abstract in one sentence."
Pair = tuple[str, str]
"""A question and its answer."""


def banking(per_intent: int, held_out: int, seed: int = 20) -> tuple[list[Pair], list[Pair], list[str]]:
    """Training rows of the ten most frequent intents, so many of each; rows of the test file; and the labels."""
    training = _read(BANKING77 / "train.csv")
    labels = sorted(label for label, _ in Counter(label for _, label in training).most_common(10))
    chance = random.Random(seed)
    chance.shuffle(training)
    chosen = [pair for label in labels for pair in [p for p in training if p[1] == label][:per_intent]]
    chance.shuffle(chosen)
    test = [pair for pair in _read(BANKING77 / "test.csv") if pair[1] in labels]
    chance.shuffle(test)
    return chosen, test[:held_out], labels


def abstracts(rows: int) -> list[Pair]:
    """Abstracts of SciTLDR and their summaries."""
    lines = (_DATA / "scitldr" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    read = (json.loads(line) for line in lines)
    return [(" ".join(row["source"]), row["target"][0]) for row in read][:rows]


def _read(path: Path) -> list[Pair]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


def messages(pair: Pair, prompt: str = PROMPT) -> list[dict[str, str]]:
    question, answer = pair
    return [
        {"role": "system", "content": prompt}, {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]  # fmt: skip


def examples(pairs: Sequence[Pair], prompt: str = PROMPT) -> list[Example]:
    return [
        Example(
            example_id=f"e{number}",
            messages=tuple(Message(role=Role(m["role"]), content=m["content"]) for m in messages(pair, prompt)),
            group=f"e{number}",
            prediction_ids=(),
            correction_ids=(),
        )
        for number, pair in enumerate(pairs)
    ]


def write_examples(path: Path, pairs: Sequence[Pair], prompt: str = PROMPT) -> Path:
    path.write_text("".join(row.model_dump_json() + "\n" for row in examples(pairs, prompt)), encoding="utf-8")
    return path
